//! A session as bytes, and back: versioned, checksummed, refused where it does not belong.
//!
//! Little-endian; N bytes of messages:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | `QWENSESS` |
//! | 8 | 4 | version of this format: 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | fingerprint of the model's shape and vocabulary, FNV-1a of 64 bits |
//! | 24 | 8 | N |
//! | 32 | N | messages, JSON as `text::chat` reads it |
//! | 32 + N | 8 | FNV-1a of 64 bits of all bytes before |
//!
//! There are no keys and values in it: they are computed again, or found in the prefix cache. FNV-1a
//! finds every change of one byte for certain, because each of its steps can be undone; it is no seal
//! against somebody who wants to deceive, so all that follows it is checked like any input.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::text::chat::{MAX_MESSAGES_BYTES, Message, messages_json, parse_messages};
use crate::text::tokenizer::Tokenizer;

const MAGIC: &[u8; 8] = b"QWENSESS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 8;

/// `messages` of a session with the model of this fingerprint.
pub(super) fn write(messages: &[Message], fingerprint: u64) -> Result<Vec<u8>> {
    let json = messages_json(messages);
    if json.len() > MAX_MESSAGES_BYTES {
        let reason = format!("{} bytes of messages; {MAX_MESSAGES_BYTES} can be saved", json.len());
        return Err(Error::State { reason });
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(fingerprint.to_le_bytes());
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json.as_bytes());
    bytes.extend(Fnv::of(&bytes).to_le_bytes());
    Ok(bytes)
}

/// What `write` was given, or what is wrong with `bytes`.
pub(super) fn read(bytes: &[u8], fingerprint: u64) -> Result<Vec<Message>> {
    let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
    if !bytes.starts_with(MAGIC) || body < HEADER_BYTES {
        return Err(corrupt(0, "this is no saved session, or only the beginning of one"));
    }
    let version = number(&bytes[8..12]);
    if version != u64::from(VERSION) {
        return Err(mismatch("format version", version, u64::from(VERSION)));
    }
    if number(&bytes[24..32]) != (body - HEADER_BYTES) as u64 {
        return Err(corrupt(24, "the length is another"));
    }
    if number(&bytes[body..]) != Fnv::of(&bytes[..body]) {
        return Err(corrupt(body, "the checksum is another"));
    }
    if number(&bytes[16..24]) != fingerprint {
        return Err(mismatch("model fingerprint", number(&bytes[16..24]), fingerprint));
    }
    let json = std::str::from_utf8(&bytes[HEADER_BYTES..body])
        .map_err(|error| corrupt(HEADER_BYTES + error.valid_up_to(), "not UTF-8"))?;
    parse_messages(json).map_err(|error| corrupt(HEADER_BYTES, &error.to_string()))
}

/// A number of the shape and vocabulary of a model. The weights and how they are stored are not in it.
pub(super) fn fingerprint(model: &ModelConfig, tokenizer: &Tokenizer) -> u64 {
    let mut hash = Fnv::new();
    let sizes = [
        model.num_layers,
        model.hidden_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        model.intermediate_size,
        model.vocab_size,
        model.train_context_tokens,
        usize::from(model.use_dynamic_ntk),
        usize::from(model.use_logn_attention),
        tokenizer.num_tokens(),
    ];
    sizes.iter().for_each(|size| hash.push(&(*size as u64).to_le_bytes()));
    hash.push(&model.norm_epsilon.to_le_bytes());
    hash.push(&model.rope_base.to_le_bytes());
    for id in 0..tokenizer.num_tokens() as u32 {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        hash.push(&(bytes.len() as u64).to_le_bytes());
        hash.push(bytes);
    }
    hash.0
}

pub(super) fn corrupt(offset: usize, reason: &str) -> Error {
    Error::Corrupt {
        path: PathBuf::from("saved session"),
        tensor: None,
        offset_bytes: Some(offset as u64),
        reason: reason.to_string(),
    }
}

fn mismatch(property: &'static str, saved: u64, here: u64) -> Error {
    Error::StateMismatch { property, saved: format!("{saved:#x}"), here: format!("{here:#x}") }
}

/// The number in up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// FNV-1a of 64 bits.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn of(bytes: &[u8]) -> u64 {
        let mut hash = Fnv::new();
        hash.push(bytes);
        hash.0
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::chat::Role;

    /// Published values of FNV-1a.
    #[test]
    fn the_hash_is_fnv_1a() {
        let known = [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c)];
        known.iter().for_each(|(text, hash)| assert_eq!(Fnv::of(text.as_bytes()), *hash));
        assert_eq!(Fnv::of(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_layout_is_as_documented() {
        let messages = [Message::new(Role::System, "\u{e9}")];
        let bytes = write(&messages, 0x0102_0304_0506_0708).unwrap();
        let json = "[{\"role\":\"system\",\"content\":\"\u{e9}\"}]";
        let header = b"QWENSESS\x01\0\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01";
        assert_eq!(&bytes[..24], header);
        assert_eq!(&bytes[24..32], &(json.len() as u64).to_le_bytes());
        assert_eq!(&bytes[32..32 + json.len()], json.as_bytes());
        assert_eq!(bytes.len(), 40 + json.len());
        assert_eq!(read(&bytes, 0x0102_0304_0506_0708).unwrap(), messages);
    }

    /// Whatever is behind a sound checksum is checked, too.
    #[test]
    fn a_forged_checksum_deceives_nobody() {
        for json in [&b"[{\"role\":\"user\"}]"[..], b"\xff", b"", b"[1]"] {
            let mut bytes = write(&[], 7).unwrap();
            bytes.truncate(24);
            bytes.extend((json.len() as u64).to_le_bytes());
            bytes.extend(json);
            bytes.extend(Fnv::of(&bytes).to_le_bytes());
            assert!(matches!(read(&bytes, 7), Err(Error::Corrupt { .. })), "{json:?}");
        }
    }
}
