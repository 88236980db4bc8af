//! Text in and out: tokenizer, chat format, streaming detokeniser, stop texts. Pure; no device.
//!
//! Inwards, `message` reads messages, `react` (with `tools`, and `python_json`) says those with tools
//! in the model's words, and `chat` turns all into token ids with `tokenizer`: `vocabulary` holds the
//! tokens of a checkpoint (from `qwen.tiktoken`, or `tokenizer_json`), `split` cuts text into pieces,
//! `bpe` and `pairs` turn a piece into ids, `special` knows the control tokens. Outwards, `stream`
//! turns the bytes of generated tokens into text, `stop` keeps stop texts out of it, and `react_stream`
//! (with `mend`) tells thought, call and answer apart.

pub mod chat;
pub mod split;
pub mod tokenizer;
pub mod tools;

mod bpe;
mod byte_level;
mod mend;
mod message;
mod pairs;
mod python_json;
mod react;
mod react_stream;
mod special;
mod stop;
mod stream;
mod tokenizer_json;
#[cfg(test)]
mod twin;
mod vocabulary;

pub use mend::ArgumentsForm;
pub use react::ReplyStart;
pub use react_stream::{Call, Piece, ReactStream};
pub use stream::{TextDelta, TextStream};
