//! One source file as the rules see it: its text, and the same text with everything that is not
//! code blanked out.
//!
//! This is not a parser. It knows comments, string and character literals and braces, which is
//! enough for code that rustfmt or clang-format has laid out. Offsets and lines of `code` are those
//! of `text`, so a finding in one can be shown in the other.

/// Something that breaks a rule, with the place to go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// 1-based.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A file of the tree. `path` is relative to the repository root, with `/` between its parts.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// `text` with comments and the insides of literals made spaces.
    pub(crate) code_with_tests: String,
    /// The same with test modules made spaces, too.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let mut code = blank_non_code(text);
        let code_with_tests = String::from_utf8_lossy(&code).into_owned();
        blank_test_modules(&mut code);
        let code = String::from_utf8_lossy(&code).into_owned();
        Source { path: path.to_string(), text: text.to_string(), code_with_tests, code }
    }

    /// A finding at byte `offset`.
    pub(crate) fn finding(&self, offset: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: self.line(offset), message: message.into() }
    }

    /// The 1-based line of byte `offset`.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(crate) fn has_extension(&self, extensions: &[&str]) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, found)| extensions.contains(&found))
    }

    /// Is this part of the library itself, its in-file tests apart?
    pub(crate) fn is_library(&self) -> bool {
        self.path.starts_with("src/") && !self.path.ends_with("/tests.rs")
    }
}

/// Byte offsets at which `needle` stands in `code` as a whole word: no identifier goes on before
/// or after it.
pub(crate) fn words<'a>(code: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let is_word = |at: Option<&u8>| at.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    code.match_indices(needle).map(|(offset, _)| offset).filter(move |&offset| {
        let end = offset + needle.len();
        let starts = !is_word(needle.as_bytes().first())
            || offset == 0
            || !is_word(bytes.get(offset.wrapping_sub(1)));
        starts && (!is_word(needle.as_bytes().last()) || !is_word(bytes.get(end)))
    })
}

/// The offset of the brace that closes the one at `open`.
pub(crate) fn matching_brace(code: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(offset),
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Makes comments and the insides of literals spaces; line ends stay.
fn blank_non_code(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (from, to, next) = match literal_or_comment(text, at) {
            Some(span) => span,
            None => {
                at += 1;
                continue;
            }
        };
        blank(&mut code[from..to]);
        at = next.max(at + 1);
    }
    code
}

/// What begins at `at`, if it is not code: the bytes to blank, and where code goes on.
fn literal_or_comment(text: &str, at: usize) -> Option<(usize, usize, usize)> {
    let rest = &text.as_bytes()[at..];
    if rest.starts_with(b"//") {
        let end = at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        return Some((at, end, end));
    }
    if rest.starts_with(b"/*") {
        let end = at + block_comment_len(rest);
        return Some((at, end, end));
    }
    let literal_len = match rest[0] {
        b'"' => quoted_len(rest, b'"'),
        b'\'' => char_len(rest)?,
        b'r' | b'R' if !continues_word(text, at) => raw_string_len(rest)?,
        b'b' | b'c' if rest.get(1) == Some(&b'r') && !continues_word(text, at) => {
            1 + raw_string_len(&rest[1..])?
        }
        _ => return None,
    };
    let end = at + literal_len;
    Some((at + 1, end.saturating_sub(1).max(at + 1), end))
}

fn continues_word(text: &str, at: usize) -> bool {
    at > 0 && (text.as_bytes()[at - 1].is_ascii_alphanumeric() || text.as_bytes()[at - 1] == b'_')
}

/// Rust's block comments nest; C's do not, but C written here never has `/*` inside one.
fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `'x'` and `'\n'` are literals; `'a` alone is a lifetime.
fn char_len(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(quoted_len(rest, b'\''));
    }
    let inside = std::str::from_utf8(&rest[1..rest.len().min(5)])
        .or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]));
    let width = inside.ok()?.chars().next()?.len_utf8();
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// Rust's `r#"..."#` and C++'s `R"mark(...)mark"`.
fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(rest);
    let (opening_len, closing) = if rest[0] == b'r' {
        let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
        if rest.get(1 + hashes) != Some(&b'"') {
            return None;
        }
        (hashes + 2, format!("\"{}", "#".repeat(hashes)))
    } else {
        let mark = text.strip_prefix("R\"")?.split_once('(')?.0;
        (mark.len() + 3, format!("){mark}\""))
    };
    let inside = text.get(opening_len..)?;
    Some(inside.find(&closing).map_or(rest.len(), |end| opening_len + end + closing.len()))
}

/// Blanks the item that follows each `#[cfg(test)]`.
fn blank_test_modules(code: &mut [u8]) {
    const MARK: &[u8] = b"#[cfg(test)]";
    let mut at = 0;
    while at + MARK.len() <= code.len() {
        if !code[at..].starts_with(MARK) {
            at += 1;
            continue;
        }
        let end = item_end(code, at + MARK.len());
        blank(&mut code[at..end]);
        at = end;
    }
}

/// Just past the item that begins at `start`: its `;`, or the brace that closes its body.
fn item_end(code: &[u8], start: usize) -> usize {
    let Some(stop) = code[start..].iter().position(|b| matches!(b, b'{' | b';')) else {
        return code.len();
    };
    match code[start + stop] {
        b'{' => matching_brace(code, start + stop).map_or(code.len(), |end| end + 1),
        _ => start + stop + 1,
    }
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = concat!(
        "let a = \"x{\"; // y{\n",
        "/* z{ /* q{ */ { */ let b = '{';\n",
        "let c = r#\"u\"{\"#; let d: &'static str = b\"v{\\\"{\"; let e = '\\'';\n",
        "auto f = R\"m(w\"{)m\"; let g = 'é'; r#type()\n",
    );
    let code = Source::new("src/a.rs", text).code;
    assert_eq!(code.len(), text.len());
    assert!(!code.contains('{'), "{code}");
    for kept in ["let a", "let b", "let c", "let d: &'static str", "let e", "let g", "r#type()"] {
        assert!(code.contains(kept), "`{kept}` is gone from {code}");
    }
}

#[test]
fn test_modules_are_not_code_but_what_follows_is() {
    let text = "a();\n#[cfg(test)]\nmod tests {\n    fn t() { b(); }\n}\nc();\n";
    let code = Source::new("src/a.rs", text).code;
    assert!(code.contains("a();") && code.contains("c();") && !code.contains("b()"), "{code}");
}

#[test]
fn words_are_whole() {
    let code = "unsafe { not_unsafe(); unsafely() } unsafe";
    assert_eq!(words(code, "unsafe").collect::<Vec<_>>(), [0, 36]);
    assert_eq!(words("process::exit", "process::exit").count(), 1);
}
