//! The GPT-2 byte alphabet: each of the 256 byte values as one printable character.
//!
//! What it is: the fixed bijection with which byte-level BPE writes arbitrary bytes as text, in
//! `tokenizer.json` and inside the `tokenizers` crate. What it is not: a text encoding; the
//! characters stand for bytes, not for what they look like. Pure tables, no state.

/// The character that stands for each byte. Printable Latin-1 bytes stand for themselves; the other
/// 68 take U+0100, U+0101, ... in byte order.
const CHARS: [char; 256] = chars();

/// One past the last character of the alphabet, U+0143.
const END: usize = 0x144;

/// The byte each character below `END` stands for; `NONE` for characters outside the alphabet.
const BYTES: [u16; END] = bytes();
const NONE: u16 = 256;

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

const fn chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut next_above: u8 = 0;
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = if stands_for_itself(byte as u8) {
            byte as u8 as char
        } else {
            next_above += 1;
            // Never `None`; a constant cannot `unwrap` under the house's lints.
            match char::from_u32(0xFF + next_above as u32) {
                Some(char) => char,
                None => '\0',
            }
        };
        byte += 1;
    }
    chars
}

const fn bytes() -> [u16; END] {
    let mut bytes = [NONE; END];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = byte as u16;
        byte += 1;
    }
    bytes
}

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// Writes `bytes` in the alphabet into `text`, replacing what was there.
pub(super) fn write(bytes: &[u8], text: &mut String) {
    text.clear();
    text.extend(bytes.iter().map(|&byte| char_of(byte)));
}

/// The bytes that `text` stands for; `None` if a character is outside the alphabet.
pub(super) fn read(text: &str) -> Option<Vec<u8>> {
    let byte_of = |char: char| u8::try_from(*BYTES.get(char as usize)?).ok();
    text.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        write(&all, &mut text);
        assert_eq!(text.chars().count(), 256);
        assert_eq!(read(&text), Some(all));
        assert_eq!(text.chars().max().map(|char| char as usize + 1), Some(END));
    }

    #[test]
    fn known_characters() {
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(b'!'), '!');
        assert_eq!(char_of(0xAD), '\u{143}');
    }

    #[test]
    fn characters_outside_are_refused() {
        for text in [" ", "\n", "\u{AD}", "\u{144}", "中", "a b"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
