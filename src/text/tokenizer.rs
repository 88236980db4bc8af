//! Stand-in of this branch: single-byte vocabularies only.

use std::path::Path;

use base64::Engine as _;

use crate::error::{Error, Result};

/// What becomes of special tokens' surface forms (such as `<|im_end|>`) in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are ordinary text: content can never become a control token.
    AsText,
    /// They become their control ids.
    Parse,
}

/// A checkpoint's vocabulary. Immutable; any thread may use it.
pub struct Tokenizer {
    tokens: Vec<Vec<u8>>,
}

impl Tokenizer {
    /// Reads the vocabulary in `folder`.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("qwen.tiktoken");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", &e))?;
        let token = |line: &str| {
            let word = line.split(' ').next().unwrap_or("");
            base64::engine::general_purpose::STANDARD.decode(word).unwrap_or_default()
        };
        Ok(Tokenizer { tokens: text.lines().map(token).collect() })
    }

    /// Text -> ids.
    pub fn encode(&self, text: &str, _specials: Specials) -> Vec<u32> {
        let id = |byte: u8| self.tokens.iter().position(|token| token == &[byte]);
        text.bytes().filter_map(id).map(|id| id as u32).collect()
    }

    /// The bytes of `id`: a special's surface form, a token's bytes; `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match id as usize {
            id if id < self.tokens.len() => Some(&self.tokens[id]),
            id if id < self.num_tokens() => Some(b"<|special|>"),
            _ => None,
        }
    }

    /// The bytes of a sequence of ids; ids outside the vocabulary give nothing, specials only when
    /// `keep_specials`.
    pub fn decode_bytes(&self, ids: &[u32], keep_specials: bool) -> Vec<u8> {
        let shown = |id: &&u32| keep_specials || !self.is_special(**id);
        let bytes = |id: &u32| self.token_bytes(*id).unwrap_or(b"").to_vec();
        ids.iter().filter(shown).flat_map(bytes).collect()
    }

    /// The id of a special token by its surface form.
    pub fn special_id(&self, surface: &str) -> Option<u32> {
        match surface {
            "<|endoftext|>" => Some(self.end_of_text()),
            "<|im_start|>" => Some(self.im_start()),
            "<|im_end|>" => Some(self.im_end()),
            _ => None,
        }
    }

    /// Is `id` a special token?
    pub fn is_special(&self, id: u32) -> bool {
        (self.tokens.len()..self.num_tokens()).contains(&(id as usize))
    }

    /// Ids in use: 0..num_tokens (ordinary and special).
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + 208
    }

    /// `<|endoftext|>`.
    pub fn end_of_text(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// `<|im_start|>`.
    pub fn im_start(&self) -> u32 {
        self.tokens.len() as u32 + 1
    }

    /// `<|im_end|>`.
    pub fn im_end(&self) -> u32 {
        self.tokens.len() as u32 + 2
    }
}
