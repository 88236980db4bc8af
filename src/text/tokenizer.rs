//! `qwen.tiktoken` (or `tokenizer.json`) -> exact Qwen-1 token ids and back.

use std::path::Path;

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
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads the vocabulary in `folder`.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        Err(Error::NotFound { path: folder.join("qwen.tiktoken") })
    }

    /// Text -> ids.
    pub fn encode(&self, text: &str, specials: Specials) -> Vec<u32> {
        let _ = (text, specials);
        Vec::new()
    }

    /// The bytes of `id`: a special's surface form, a token's bytes; `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let _ = id;
        None
    }

    /// The bytes of a sequence of ids; ids outside the vocabulary give nothing, specials only when
    /// `keep_specials`.
    pub fn decode_bytes(&self, ids: &[u32], keep_specials: bool) -> Vec<u8> {
        let _ = (ids, keep_specials);
        Vec::new()
    }

    /// The id of a special token by its surface form.
    pub fn special_id(&self, surface: &str) -> Option<u32> {
        let _ = surface;
        None
    }

    /// Is `id` a special token?
    pub fn is_special(&self, id: u32) -> bool {
        let _ = id;
        false
    }

    /// Ids in use: 0..num_tokens (ordinary and special).
    pub fn num_tokens(&self) -> usize {
        0
    }

    /// `<|endoftext|>`.
    pub fn end_of_text(&self) -> u32 {
        0
    }

    /// `<|im_start|>`.
    pub fn im_start(&self) -> u32 {
        0
    }

    /// `<|im_end|>`.
    pub fn im_end(&self) -> u32 {
        0
    }
}
