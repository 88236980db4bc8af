//! Engines on the GPU with random weights: a shape and a small vocabulary, no weight files.

use std::path::{Path, PathBuf};

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions};
use qwen::error::Result;
use qwen::tensor::Dtype;

use crate::checkpoint::{Shape, write_config};

/// Of a tiny checkpoint: 280 tokens and the special ones.
const VOCABULARY: &str = include_str!("../data/tiny/plain-bf16/qwen.tiktoken");
const GENERATION: &str = include_str!("../data/tiny/plain-bf16/generation_config.json");

/// Two layers of two heads, which take every path and little time.
pub(crate) const SMALL: Shape = Shape {
    layers: 2,
    hidden: 256,
    heads: 2,
    width: 512,
    vocab: 304,
    dtype: Dtype::Bf16,
    stretched: false,
};

/// What every number of devices up to four divides.
pub(crate) const DIVIDED: Shape = Shape { layers: 4, hidden: 512, heads: 4, ..SMALL };

/// A folder that an engine opens with random weights; gone when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str, shape: &Shape) -> Folder {
        let path = std::env::temp_dir().join(format!("qwen-opened-{}-{name}", std::process::id()));
        write_config(&path, shape);
        std::fs::write(path.join("qwen.tiktoken"), VOCABULARY).expect("written");
        std::fs::write(path.join("generation_config.json"), GENERATION).expect("written");
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Random weights on the GPU, and a small cache.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        backend: "cuda".to_string(),
        weights: "random".to_string(),
        kv_cache_tokens: 2048,
        max_context_tokens: 1024,
        ..EngineOptions::default()
    }
}

/// An engine that computes all of a prompt, however often it is asked.
#[cfg(feature = "test-hooks")]
pub(crate) fn open(folder: &Folder) -> Result<Engine> {
    let options = EngineOptions { prefix_cache: false, ..options() };
    Engine::open(folder.path(), &options, None, &mut |_| true)
}

/// Twenty greedy tokens after a prompt of more rows than our own linears take.
pub(crate) fn reply(engine: &Engine) -> Result<String> {
    let mut params = engine.generation_defaults();
    params.sampling.temperature = 0.0;
    params.max_tokens = 20;
    params.ignore_eos = true;
    let session = Session::new(engine, None);
    Ok(session.chat("Hello, hello.", &params, &mut |_| Flow::Continue)?.text)
}

#[test]
fn such_a_folder_opens_and_answers_on_the_cpu() {
    let folder = Folder::new("cpu", &SMALL);
    let options = EngineOptions { backend: "cpu".to_string(), ..options() };
    let engine = Engine::open(folder.path(), &options, None, &mut |_| true).expect("it opens");
    assert!(!reply(&engine).expect("a reply").is_empty());
}
