//! Text -> pre-tokens: the pieces inside which byte pairs may merge.
//!
//! What it is: Qwen's split pattern by hand, one function per alternative, in the pattern's order.
//! A regex engine with look-ahead spends most of an encode here; this is a table look-up per
//! character. What it is not: a normaliser; text arrives in NFC. The character classes come from
//! `regex-syntax`, the tables of the regex engines themselves, and a property test holds the
//! function to the pattern.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// The pattern that [`pieces`] implements, as `tokenizer.json` files write it.
pub const PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The non-empty pieces of `text`, in order; together they are `text`.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let classes: &Classes = &CLASSES;
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let (piece, after) = rest.split_at(classes.first_piece_bytes(rest, first));
        rest = after;
        Some(piece)
    })
}

/// All that the pattern asks about a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\r` or `\n`
    Newline,
    /// any other `\s`
    Space,
    /// none of these
    Other,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

/// Code points of the basic plane, each a byte in a flat table.
const BASIC: usize = 0x1_0000;

struct Classes {
    basic: Vec<Class>,
    /// `(first, last, class)` beyond the basic plane, ascending; what is in no range is `Other`.
    beyond: Vec<(u32, u32, Class)>,
}

impl Classes {
    fn new() -> Classes {
        let mut classes = Classes { basic: vec![Class::Other; BASIC], beyond: Vec::new() };
        classes.assign(r"\p{L}", Class::Letter);
        classes.assign(r"\p{N}", Class::Number);
        classes.assign(r"\s", Class::Space);
        classes.assign(r"[\r\n]", Class::Newline);
        classes.beyond.sort_unstable_by_key(|&(first, ..)| first);
        classes
    }

    /// Gives `class` to every character of a fixed pattern, which always parses.
    fn assign(&mut self, pattern: &str, class: Class) {
        let Ok(hir) = regex_syntax::parse(pattern) else { return };
        let HirKind::Class(HirClass::Unicode(set)) = hir.into_kind() else { return };
        for range in set.ranges() {
            let (first, last) = (range.start() as u32, range.end() as u32);
            if first as usize >= BASIC {
                self.beyond.push((first, last, class));
                continue;
            }
            self.basic[first as usize..=(last as usize).min(BASIC - 1)].fill(class);
        }
    }

    fn of(&self, char: char) -> Class {
        let code = char as u32;
        if let Some(&class) = self.basic.get(code as usize) {
            return class;
        }
        let index = self.beyond.partition_point(|&(_, last, _)| last < code);
        match self.beyond.get(index) {
            Some(&(first, _, class)) if first <= code => class,
            _ => Class::Other,
        }
    }

    /// The bytes of the longest prefix of `text` whose characters all pass `test`.
    fn run(&self, text: &str, test: impl Fn(Class) -> bool) -> usize {
        text.find(|char| !test(self.of(char))).unwrap_or(text.len())
    }

    /// The pattern: the first alternative that matches at the start of `text`.
    fn first_piece_bytes(&self, text: &str, first: char) -> usize {
        let class = self.of(first);
        contraction(text)
            .or_else(|| self.word(text, first, class))
            .or_else(|| (class == Class::Number).then_some(first.len_utf8()))
            .or_else(|| self.symbols(text))
            .unwrap_or_else(|| self.spaces(text))
    }

    /// `[^\r\n\p{L}\p{N}]?\p{L}+`
    fn word(&self, text: &str, first: char, class: Class) -> Option<usize> {
        let prefix = match class {
            Class::Space | Class::Other => first.len_utf8(),
            Class::Letter | Class::Number | Class::Newline => 0,
        };
        let letters = self.run(&text[prefix..], |class| class == Class::Letter);
        (letters > 0).then_some(prefix + letters)
    }

    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    fn symbols(&self, text: &str) -> Option<usize> {
        let prefix = usize::from(text.starts_with(' '));
        let symbols = self.run(&text[prefix..], |class| class == Class::Other);
        let end = prefix + symbols;
        (symbols > 0).then(|| end + self.run(&text[end..], |class| class == Class::Newline))
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+` on a text that starts with white space: up to the run's last line
    /// break; else the run, less its last character if something follows that could carry it.
    fn spaces(&self, text: &str) -> usize {
        let run = self.run(text, |class| matches!(class, Class::Space | Class::Newline));
        let spaces = &text[..run];
        if let Some(line_break) = spaces.rfind(['\r', '\n']) {
            return line_break + 1;
        }
        let last = spaces.chars().next_back().map_or(0, char::len_utf8);
        if run < text.len() && run > last { run - last } else { run }
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; without regard to case, `s` is also U+017F, the long s.
fn contraction(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut chars = rest.chars().map(|char| char.to_ascii_lowercase());
    let tail = match (chars.next()?, chars.next()) {
        ('s' | 't' | 'm' | 'd', _) => 1,
        ('ſ', _) => 'ſ'.len_utf8(),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => 2,
        _ => return None,
    };
    Some(1 + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        pieces(text).collect()
    }

    #[test]
    fn words_numbers_and_symbols() {
        assert_eq!(split("Hello, world!"), ["Hello", ",", " world", "!"]);
        assert_eq!(split("in 2023年"), ["in", " ", "2", "0", "2", "3", "年"]);
        assert_eq!(split("a+=b;\n\n  c"), ["a", "+=", "b", ";\n\n", " ", " c"]);
        assert_eq!(split("你好，世界"), ["你好", "，世界"]);
        assert_eq!(split(""), [""; 0]);
    }

    #[test]
    fn white_space() {
        assert_eq!(split("a  b"), ["a", " ", " b"]);
        assert_eq!(split("a \t"), ["a", " \t"]);
        assert_eq!(split(" \n \r\n  x"), [" \n \r\n", " ", " x"]);
        assert_eq!(split("\u{3000}\u{3000}1"), ["\u{3000}", "\u{3000}", "1"]);
        assert_eq!(split("\u{1C}\u{1C}"), ["\u{1C}\u{1C}"]);
    }

    #[test]
    fn contractions() {
        assert_eq!(split("I'VE he'ſa we'lla"), ["I", "'VE", " he", "'ſ", "a", " we", "'ll", "a"]);
        assert_eq!(split("'x 'rx"), ["'x", " '", "rx"]);
    }

    #[test]
    fn classes_beyond_the_basic_plane() {
        let classes = Classes::new();
        assert_eq!(classes.of('😀'), Class::Other);
        assert_eq!(classes.of('𠀀'), Class::Letter);
        assert_eq!(classes.of('𝟙'), Class::Number);
        assert_eq!(classes.of('\u{10FFFF}'), Class::Other);
        assert_eq!(classes.of('\u{FFFD}'), Class::Other);
    }
}
