//! Arguments of a call that are nearly JSON -> JSON.
//!
//! What it is: one pass that closes what is open at the end, drops commas before a closing bracket,
//! writes Python's quotes and literals in JSON's way and escapes control characters in strings; its
//! result counts only if it is JSON. What it is not: a guess. A value that is not there, two values,
//! a text in which a quote could end in two ways: such arguments stay as the model wrote them.

use serde_json::Value;

/// What became of a call's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentsForm {
    /// The model wrote JSON; it stands as written.
    Json,
    /// What the model wrote was plainly meant as this JSON.
    Mended,
    /// No JSON: the text stands as written.
    Text,
}

/// `text` as it is or mended, and which of both.
pub(super) fn mend(text: &str) -> (String, ArgumentsForm) {
    if is_json(text) {
        return (text.to_string(), ArgumentsForm::Json);
    }
    // A word or a number alone is a text, not a broken object.
    let mended = if text.starts_with(['{', '[']) { Mender::new(text).mended() } else { None };
    match mended.filter(|mended| is_json(mended)) {
        Some(mended) => (mended, ArgumentsForm::Mended),
        None => (text.to_string(), ArgumentsForm::Text),
    }
}

/// JSON that a parser with bounded depth takes, as the caller's may be.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

struct Mender<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    out: String,
    /// The closing brackets that are due, the innermost last.
    due: Vec<char>,
}

impl Mender<'_> {
    fn new(text: &str) -> Mender<'_> {
        let out = String::with_capacity(text.len() + 8);
        Mender { rest: text.chars().peekable(), out, due: Vec::new() }
    }

    /// `None` where a bracket closes what is not open.
    fn mended(mut self) -> Option<String> {
        while let Some(next) = self.rest.next() {
            match next {
                '"' | '\'' => self.string(next),
                '{' | '[' => {
                    self.due.push(if next == '{' { '}' } else { ']' });
                    self.out.push(next);
                }
                '}' | ']' if self.due.pop() == Some(next) => {
                    self.drop_comma();
                    self.out.push(next);
                }
                '}' | ']' => return None,
                letter if letter.is_ascii_alphabetic() => self.word(letter),
                other => self.out.push(other),
            }
        }
        self.drop_comma();
        self.out.extend(self.due.iter().rev());
        Some(self.out)
    }

    /// Takes back a comma that nothing follows.
    fn drop_comma(&mut self) {
        let kept = self.out.trim_end();
        if let Some(kept) = kept.strip_suffix(',') {
            self.out.truncate(kept.len());
        }
    }

    /// A string behind its opening `quote`, closed by the next one, or by the end.
    fn string(&mut self, quote: char) {
        self.out.push('"');
        while let Some(next) = self.rest.next() {
            match next {
                '\\' => self.escape(),
                next if next == quote => break,
                '"' => self.out.push_str("\\\""),
                control if control < ' ' => {
                    self.out.push_str(&format!("\\u{:04x}", u32::from(control)));
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }

    /// What follows a backslash; one at the end of the text is half of nothing.
    fn escape(&mut self) {
        match self.rest.next() {
            None => {}
            // Python escapes it, JSON must not.
            Some('\'') => self.out.push('\''),
            Some(escaped) => {
                self.out.push('\\');
                self.out.push(escaped);
            }
        }
    }

    /// A word outside strings that begins with `first`.
    fn word(&mut self, first: char) {
        let mut word = String::from(first);
        while let Some(next) = self.rest.next_if(char::is_ascii_alphanumeric) {
            word.push(next);
        }
        self.out.push_str(match word.as_str() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_as_it_is() {
        for text in ["{}", r#"{"a": [1, 2], "b": "it's \"so\""}"#, "5", "\"a\"", "[ ]", "null"] {
            assert_eq!(mend(text), (text.to_string(), ArgumentsForm::Json));
        }
    }

    #[test]
    fn what_is_plainly_broken_is_mended() {
        let pairs = [
            (r#"{"a": 1"#, r#"{"a": 1}"#),
            (r#"{"a": "b"#, r#"{"a": "b"}"#),
            (r#"{"a": [1, {"b": "c\"#, r#"{"a": [1, {"b": "c"}]}"#),
            (r#"{"a": [1, 2,], "b": {},}"#, r#"{"a": [1, 2], "b": {}}"#),
            (r#"{"a": 1, "#, r#"{"a": 1}"#),
            ("{'a': 'b', \"c\": True}", r#"{"a": "b", "c": true}"#),
            (r#"{'a': 'say "hi", it\'s', 'b': None}"#, r#"{"a": "say \"hi\", it's", "b": null}"#),
            ("{\"a\": \"x\ny\"}", "{\"a\": \"x\\u000ay\"}"),
            ("[False, 'True'", "[false, \"True\"]"),
            ("{", "{}"),
        ];
        for (text, mended) in pairs {
            assert_eq!(mend(text), (mended.to_string(), ArgumentsForm::Mended), "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_stays() {
        let texts = [
            "",
            "Boston",
            "```py\nprint(1)\n```",
            "'a'",
            r#"{"a":"#,
            r#"{"a": tru"#,
            r#"{"a"#,
            r#"{"a" 1}"#,
            r#"{"a": 1}}"#,
            r#"{"a": 1} {"b": 2}"#,
            r#"{"a": [1}"#,
            "{'a': 'it's'}",
            "{a: 1}",
            r#"{"a": "\u12"#,
            "[1,,]",
        ];
        for text in texts {
            assert_eq!(mend(text), (text.to_string(), ArgumentsForm::Text));
        }
        let deep = "[".repeat(100_000);
        assert_eq!(mend(&deep), (deep.clone(), ArgumentsForm::Text));
    }
}
