//! The ordinary tokens of a checkpoint, by id, and the file they usually come from.
//!
//! What it is: the bytes of each token, end to end in one block, and the reader of
//! `qwen.tiktoken`. What it is not: a way from bytes to ids; that is `bpe`. The file is one line a
//! token, `base64(token bytes) rank`, with ranks 0, 1, 2, ... in order; the rank is the id.

use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};

/// The longest token taken; the longest that Qwen has is 128 bytes.
const MAX_TOKEN_BYTES: usize = 256;

/// The largest `qwen.tiktoken` taken; the real one is 2.6 MB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Token bytes by id. Immutable once read.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`; it starts where the one before ends.
    ends: Vec<u32>,
}

impl Vocabulary {
    /// Reads `qwen.tiktoken` at `path`.
    pub(super) fn read(path: &Path) -> Result<Vocabulary> {
        Vocabulary::parse(&read_file(path, MAX_FILE_BYTES)?, path)
    }

    /// Parses the contents of a `qwen.tiktoken`; `path` is for errors. Blank lines mean nothing.
    pub(super) fn parse(contents: &[u8], path: &Path) -> Result<Vocabulary> {
        let mut vocabulary = Vocabulary::default();
        let mut offset = 0;
        for line in contents.split_inclusive(|&byte| byte == b'\n') {
            let text = line.trim_ascii();
            if !text.is_empty() {
                let added = parse_line(text, vocabulary.len());
                let added = added.and_then(|token| vocabulary.push(&token));
                added.map_err(|reason| corrupt_at(path, offset, reason))?;
            }
            offset += line.len() as u64;
        }
        if vocabulary.len() == 0 {
            return Err(Error::corrupt(path, "there are no tokens in it"));
        }
        Ok(vocabulary)
    }

    /// Adds the token with the next id, or says why it cannot be one.
    pub(super) fn push(&mut self, token: &[u8]) -> std::result::Result<(), String> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            let length = token.len();
            return Err(format!("a token of {length} bytes; 1 to {MAX_TOKEN_BYTES} are allowed"));
        }
        let end = u32::try_from(self.bytes.len() + token.len());
        self.ends.push(end.map_err(|_| "the tokens are more than 4 GiB".to_string())?);
        self.bytes.extend_from_slice(token);
        Ok(())
    }

    /// The number of tokens: ids are `0..len`.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of token `id`.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    /// The length of the longest token.
    pub(super) fn longest_bytes(&self) -> usize {
        self.iter().map(<[u8]>::len).max().unwrap_or(0)
    }

    /// All tokens in id order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len() as u32).filter_map(|id| self.get(id))
    }
}

/// The contents of a regular file of at most `max_bytes`.
pub(super) fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Asked before opening: to open a pipe is to wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, "open", &error))?;
    if !metadata.is_file() {
        return Err(Error::corrupt(path, "not a regular file"));
    }
    let file = std::fs::File::open(path).map_err(|error| Error::io(path, "open", &error))?;
    let mut contents = Vec::new();
    let mut limited = file.take(max_bytes + 1);
    limited.read_to_end(&mut contents).map_err(|error| Error::io(path, "read", &error))?;
    if contents.len() as u64 > max_bytes {
        return Err(Error::corrupt(path, format!("a vocabulary of more than {max_bytes} bytes")));
    }
    Ok(contents)
}

/// The token bytes of a line `base64 rank`, whose rank must be `next_id`.
fn parse_line(line: &[u8], next_id: usize) -> std::result::Result<Vec<u8>, String> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (Some(token), Some(rank), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err("a line that is not `base64 rank`".into());
    };
    let rank: Option<usize> = std::str::from_utf8(rank).ok().and_then(|rank| rank.parse().ok());
    match rank {
        None => return Err("a rank that is not a number".into()),
        Some(rank) if rank != next_id => return Err(format!("rank {rank} in place of {next_id}")),
        Some(_) => {}
    }
    // Checked before decoding, so that a huge line costs nothing.
    if token.len() > MAX_TOKEN_BYTES * 2 {
        return Err(format!("a token of {} base64 digits", token.len()));
    }
    STANDARD.decode(token).map_err(|error| format!("a token that is not base64: {error}"))
}

fn corrupt_at(path: &Path, offset_bytes: u64, reason: String) -> Error {
    let path = path.to_path_buf();
    Error::Corrupt { path, tensor: None, offset_bytes: Some(offset_bytes), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(contents: &[u8]) -> Result<Vocabulary> {
        Vocabulary::parse(contents, Path::new("folder/qwen.tiktoken"))
    }

    #[test]
    fn ids_are_ranks() {
        let vocabulary = parse(b"IQ== 0\r\n\nIiM= 1\n/w== 2").unwrap();
        let tokens: Vec<&[u8]> = vocabulary.iter().collect();
        assert_eq!(tokens, [b"!".as_slice(), b"\"#", b"\xFF"]);
        assert_eq!(vocabulary.get(3), None);
        assert_eq!(vocabulary.get(u32::MAX), None);
    }

    #[test]
    fn hostile_files_are_refused_with_the_place() {
        let huge = [b"IQ== 0\n".to_vec(), vec![b'A'; 1 << 20], b" 1\n".to_vec()].concat();
        let cases: [(&[u8], Option<u64>, &str); 12] = [
            (b"", None, "no tokens"),
            (b"\n\n", None, "no tokens"),
            (b"IQ== 0\nIg= 1\n", Some(7), "not base64"),
            (b"IQ== 0\n\xFF\xFE 1\n", Some(7), "not base64"),
            (b"IQ== 0\n 1\n", Some(7), "not `base64 rank`"),
            (b"IQ== 0\nIg==\n", Some(7), "not `base64 rank`"),
            (b"IQ== 0\nIg== 1 2\n", Some(7), "not `base64 rank`"),
            (b"IQ== 0\nIg== \xFF\n", Some(7), "not a number"),
            (b"IQ== 0\nIg== -1\n", Some(7), "not a number"),
            (b"IQ== 0\nIg== 0\n", Some(7), "rank 0 in place of 1"),
            (b"IQ== 0\nIg== 2\n", Some(7), "rank 2 in place of 1"),
            (&huge, Some(7), "base64 digits"),
        ];
        for (contents, offset, part) in cases {
            let Err(Error::Corrupt { path, offset_bytes, reason, .. }) = parse(contents) else {
                panic!("{part}: taken");
            };
            assert_eq!(path, Path::new("folder/qwen.tiktoken"));
            assert_eq!(offset_bytes, offset, "{reason}");
            assert!(reason.contains(part), "{reason}");
        }
    }
}
