//! Tests of the text room through the public API, on the real vocabulary of Qwen-1.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use qwen::text::tokenizer::Tokenizer;

mod chat;
mod encode;
mod hostile;
mod react;
mod react_stream;
mod split;
mod stream;

/// The real vocabulary. It is absent only if `make test` did not run first: a failure, not a skip.
fn qwen() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/vocabulary");
        Tokenizer::open(&folder).unwrap_or_else(|error| panic!("{error}: `make test` fetches it"))
    })
}

/// A new empty folder for a test's own files, under the build folder.
fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A tokenizer whose `qwen.tiktoken` holds these tokens, given in base64.
fn with_tokens(name: &str, tokens: &[&str]) -> Tokenizer {
    let folder = empty_folder(name);
    let lines = tokens.iter().zip(0..).map(|(token, rank)| format!("{token} {rank}\n"));
    std::fs::write(folder.join("qwen.tiktoken"), lines.collect::<String>()).unwrap();
    Tokenizer::open(&folder).unwrap()
}
