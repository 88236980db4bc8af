//! Token bytes -> streamed text: whole characters only, and never a part of a stop text.
//!
//! What it is: the buffer between a model, whose tokens may be half a character, and a reader of
//! text. What it is not: a tokenizer; it takes the bytes that `Tokenizer::token_bytes` gives. Bytes
//! arrive by `push` and leave once, in order, in a [`TextDelta`].

use crate::text::stop::StopTexts;

/// What one `push` or `finish` released.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextDelta {
    /// Whole characters; bytes that are not UTF-8 appear as U+FFFD.
    pub text: String,
    /// The bytes that `text` shows, verbatim.
    pub bytes: Vec<u8>,
    /// A stop text was met: nothing more will come.
    pub stopped: bool,
}

/// One reply's text on its way out.
///
/// However the bytes are cut into pushes, the texts of all deltas joined are
/// `String::from_utf8_lossy` of the bytes of all deltas joined, and those are all the bytes pushed,
/// up to the first stop text to end. One thread at a time.
#[derive(Debug, Clone)]
pub struct TextStream {
    stops: StopTexts,
    /// Bytes pushed and not released: the start of a stop text or of a character.
    held: Vec<u8>,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> TextStream {
        TextStream { stops: StopTexts::new(stops), held: Vec::new(), stopped: false }
    }

    /// Takes `bytes` and releases what can no longer change. After a stop text, takes nothing.
    pub fn push(&mut self, bytes: &[u8]) -> TextDelta {
        for &byte in bytes {
            if self.stopped {
                break;
            }
            self.held.push(byte);
            if let Some(stop_bytes) = self.stops.advance(byte) {
                self.held.truncate(self.held.len().saturating_sub(stop_bytes));
                self.stopped = true;
            }
        }
        let keep = match self.stopped {
            true => 0,
            false => self.stops.held_bytes().max(incomplete_bytes(&self.held)),
        };
        self.release(keep)
    }

    /// Releases everything: no more bytes will come. An incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> TextDelta {
        self.release(0)
    }

    /// Releases all but the last `keep` bytes. The cut never falls inside a character: a kept start
    /// of a stop text, or of a character, begins with a byte that cannot continue another one.
    fn release(&mut self, keep: usize) -> TextDelta {
        let cut = self.held.len().saturating_sub(keep);
        let bytes: Vec<u8> = self.held.drain(..cut).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        TextDelta { text, bytes, stopped: self.stopped }
    }
}

/// How many bytes at the end are the start of a character that more bytes could complete.
fn incomplete_bytes(bytes: &[u8]) -> usize {
    let is_start = |&length: &usize| {
        let Some(at) = bytes.len().checked_sub(length) else { return false };
        let tail = std::str::from_utf8(&bytes[at..]);
        tail.is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=3).find(is_start).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(stops: &[&str], pushes: &[&[u8]]) -> Vec<String> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stream = TextStream::new(&stops);
        let mut texts: Vec<String> = pushes.iter().map(|bytes| stream.push(bytes).text).collect();
        texts.push(stream.finish().text);
        texts
    }

    #[test]
    fn characters_come_whole() {
        assert_eq!(
            texts(&[], &[b"a\xE4\xBD", b"\xA0b", b"\xF0\x9F", b"\x98"]),
            ["a", "你b", "", "", "\u{FFFD}"]
        );
    }

    #[test]
    fn bad_bytes_are_replaced_as_soon_as_they_are_known_bad() {
        assert_eq!(
            texts(&[], &[b"\xE4", b"a", b"\xFF", b"\xE0\x80"]),
            ["", "\u{FFFD}a", "\u{FFFD}", "\u{FFFD}\u{FFFD}", ""]
        );
    }

    #[test]
    fn stop_texts_are_held_and_never_shown() {
        assert_eq!(
            texts(&["STOP"], &[b"a S", b"TO", b"Sx ST", b"OP more", b"no"]),
            ["a ", "", "STOSx ", "", "", ""]
        );
        assert_eq!(texts(&["\nx"], &[b"a\n"]), ["a", "\n"]);
        assert_eq!(texts(&["你x"], &[b"a\xE4\xBD", b"\xA0", b"y"]), ["a", "", "你y", ""]);
    }

    #[test]
    fn a_stop_text_after_half_a_character() {
        let mut stream = TextStream::new(&["end".into()]);
        assert_eq!(
            stream.push(b"\xE4\xBDen"),
            TextDelta { text: "\u{FFFD}".into(), bytes: b"\xE4\xBD".to_vec(), stopped: false }
        );
        assert!(stream.push(b"d!").stopped);
        assert_eq!(stream.push(b"x"), TextDelta { stopped: true, ..TextDelta::default() });
        assert_eq!(stream.finish(), TextDelta { stopped: true, ..TextDelta::default() });
    }
}
