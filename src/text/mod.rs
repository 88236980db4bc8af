//! Text in and out: tokenizer, chat format, streaming detokeniser, stop texts. Pure; no device.

pub mod chat;
pub mod tokenizer;
