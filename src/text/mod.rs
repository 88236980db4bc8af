//! Text in and out: tokenizer, chat format, streaming detokeniser, stop texts. Pure; no device.
//!
//! Inwards, `chat` turns messages into token ids with `tokenizer`: `vocabulary` holds the tokens of
//! a checkpoint (from `qwen.tiktoken`, or `tokenizer_json`), `split` cuts text into pieces, `bpe`
//! and `pairs` turn a piece into ids, `special` knows the control tokens. Outwards, `stream` turns
//! the bytes of generated tokens into text, and `stop` keeps stop texts out of it.

pub mod chat;
pub mod split;
pub mod tokenizer;

mod bpe;
mod byte_level;
mod pairs;
mod special;
mod stop;
mod stream;
mod tokenizer_json;
#[cfg(test)]
mod twin;
mod vocabulary;

pub use stream::{TextDelta, TextStream};
