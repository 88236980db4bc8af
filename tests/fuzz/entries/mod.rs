//! What a fuzzer does with its bytes: one function for each kind of input that comes from outside.
//!
//! Each takes any bytes and says, by a panic, when the library broke a promise: it panicked, gave a
//! bug's status, or two ways to the same answer differed. The targets beside this folder call these
//! under libFuzzer; tests/fuzz.rs calls them with every file of the corpus.

#![allow(dead_code, reason = "each target uses one of them")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a panic is a finding")]

mod files;
mod json;
mod streams;

use std::path::PathBuf;
use std::sync::OnceLock;

use qwen::text::tokenizer::Tokenizer;

pub(crate) use files::{loader, vocabulary};
pub(crate) use json::{chat, options, schema};
pub(crate) use streams::{react, session, text};

/// Takes any bytes.
pub(crate) type Entry = fn(&[u8]);

/// Each entry by the name of its target and of its folder in the corpus.
pub(crate) const ALL: [(&str, Entry); 8] = [
    ("chat", chat),
    ("loader", loader),
    ("options", options),
    ("react", react),
    ("schema", schema),
    ("session", session),
    ("text", text),
    ("vocabulary", vocabulary),
];

/// The repository's tests/data, from its own crate and from that of the targets.
fn test_data() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folders = here.ancestors().map(|folder| folder.join("tests/data"));
    folders.into_iter().find(|folder| folder.is_dir()).expect("a checkout")
}

fn tiny_model() -> PathBuf {
    test_data().join("tiny/plain-bf16")
}

/// A vocabulary with all bytes and a few merges.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::open(&tiny_model()).expect("a sound vocabulary"))
}
