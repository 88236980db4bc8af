//! `generation_config.json` -> the checkpoint's generation defaults.
//!
//! Only defaults: what a request asks for comes later and elsewhere. A missing file or key gives
//! the values that the published chat models share.

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
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
    /// Prompt format.
    pub chat_format: ChatFormat,
    /// Ids that end a reply; empty where the file names none (`<|endoftext|>` ends it anyway).
    pub eos_token_ids: Vec<u32>,
    /// History window in tokens.
    pub max_window_size: usize,
    /// Longest reply in tokens.
    pub max_new_tokens: usize,
    /// Whether to draw; greedy otherwise.
    pub do_sample: bool,
    /// Divides the logits; from 0 (greedy) up.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most likely tokens that together reach this probability; above 0, at most 1.
    pub top_p: f32,
    /// Divides the score of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Token sequences that end a reply.
    pub stop_words_ids: Vec<Vec<u32>>,
}

impl Default for GenerationConfig {
    /// What the published chat models have in common.
    fn default() -> GenerationConfig {
        GenerationConfig {
            chat_format: ChatFormat::ChatMl,
            eos_token_ids: Vec::new(),
            max_window_size: 6144,
            max_new_tokens: 512,
            do_sample: true,
            temperature: 1.0,
            top_k: 0,
            top_p: 0.8,
            repetition_penalty: 1.1,
            stop_words_ids: Vec::new(),
        }
    }
}

/// Longest window and reply: any context the configuration allows.
const MAX_TOKENS: u64 = 1 << 30;
const MAX_STOP_WORDS: usize = 1 << 10;

impl GenerationConfig {
    /// Reads `folder/generation_config.json`; the family's published defaults where it is absent.
    /// Values out of range are `Unsupported` and name the key; wrong types are `Corrupt`.
    pub fn open(folder: &Path) -> Result<GenerationConfig> {
        match Fields::open(&folder.join("generation_config.json")) {
            Ok(fields) => read(&fields),
            Err(Error::NotFound { .. }) => Ok(GenerationConfig::default()),
            Err(error) => Err(error),
        }
    }
}

fn read(fields: &Fields) -> Result<GenerationConfig> {
    let default = GenerationConfig::default();
    let tokens = |key, default: usize| -> Result<usize> {
        Ok(fields.integer(&[key], 1..=MAX_TOKENS)?.map_or(default, |tokens| tokens as usize))
    };
    Ok(GenerationConfig {
        chat_format: chat_format(fields)?.unwrap_or(default.chat_format),
        eos_token_ids: eos_token_ids(fields)?,
        max_window_size: tokens("max_window_size", default.max_window_size)?,
        max_new_tokens: tokens("max_new_tokens", default.max_new_tokens)?,
        do_sample: fields.flag("do_sample", default.do_sample)?,
        temperature: fields.number("temperature", 1.0, 0.0..=100.0)? as f32,
        top_k: fields.integer(&["top_k"], 0..=u64::from(u32::MAX))?.unwrap_or(0) as u32,
        top_p: fields.number("top_p", f64::from(default.top_p), 1e-6..=1.0)? as f32,
        // The published base models have the file without this key, and no penalty.
        repetition_penalty: fields.number("repetition_penalty", 1.0, 0.01..=100.0)? as f32,
        stop_words_ids: stop_words_ids(fields)?,
    })
}

fn chat_format(fields: &Fields) -> Result<Option<ChatFormat>> {
    match fields.text("chat_format")? {
        None => Ok(None),
        Some("chatml") => Ok(Some(ChatFormat::ChatMl)),
        Some("raw") => Ok(Some(ChatFormat::Raw)),
        Some(other) => {
            let reason = format!("`{other}` is neither `chatml` nor `raw`");
            Err(fields.unsupported("chat_format", reason))
        }
    }
}

/// The key holds one id or a list of them.
fn eos_token_ids(fields: &Fields) -> Result<Vec<u32>> {
    const KEY: &str = "eos_token_id";
    match fields.get(KEY) {
        Some(Value::Array(list)) => list.iter().map(|id| fields.as_token(KEY, id)).collect(),
        Some(id) => Ok(vec![fields.as_token(KEY, id)?]),
        None => Ok(Vec::new()),
    }
}

fn stop_words_ids(fields: &Fields) -> Result<Vec<Vec<u32>>> {
    const KEY: &str = "stop_words_ids";
    let words = fields.list(KEY)?.unwrap_or_default();
    if words.len() > MAX_STOP_WORDS {
        let reason = format!("{} sequences are over {MAX_STOP_WORDS}", words.len());
        return Err(fields.unsupported(KEY, reason));
    }
    let mut sequences = Vec::new();
    for word in words {
        let ids = word.as_array().map_or(&[][..], |ids| &ids[..]);
        if ids.is_empty() {
            return Err(fields.unsupported(KEY, "a sequence has no ids"));
        }
        sequences.push(ids.iter().map(|id| fields.as_token(KEY, id)).collect::<Result<_>>()?);
    }
    Ok(sequences)
}
