//! The engine: owns the model, the KV pages and the table of requests; one loop thread steps it.

pub mod request;
pub mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::sample::SamplingParams;
use crate::text::tokenizer::Tokenizer;
pub use request::{CompletionQueue, Event, EventKind, FinishReason, Request, Usage};

/// How an engine is opened. `capi::options` maps string keys to these fields.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// `"auto"`, `"cpu"` (fast) or `"cpu-reference"` (plain loops).
    pub backend: String,
    /// Threads per rank of the CPU backend; 0 means the machine's cores divided by the ranks.
    pub num_threads: usize,
    /// Ranks that share the model in this process.
    pub tensor_parallel: usize,
    /// `"map"` (weights stay in the page cache) or `"copy"` (into this process's own memory).
    pub weights: String,
    /// Longest sequence a request may reach; 0 means what the model allows.
    pub max_context_tokens: usize,
    /// KV cache capacity in tokens over all requests; 0 means derived from free memory.
    pub kv_cache_tokens: usize,
    /// Most sequences in one step.
    pub max_batch_sequences: usize,
    /// Most prompt tokens computed in one step: the bound on how long a step can take.
    pub prefill_chunk_tokens: usize,
    /// Most requests waiting; one more is refused.
    pub max_queue_requests: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            backend: "auto".to_string(),
            num_threads: 0,
            tensor_parallel: 1,
            weights: "map".to_string(),
            max_context_tokens: 0,
            kv_cache_tokens: 0,
            max_batch_sequences: 64,
            prefill_chunk_tokens: 512,
            max_queue_requests: 1024,
        }
    }
}

/// How one reply is generated. Defaults come from the checkpoint's `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    pub sampling: SamplingParams,
    /// Most tokens of the reply.
    pub max_tokens: usize,
    /// Texts that end the reply; never part of it.
    pub stop: Vec<String>,
    /// Token ids that end the reply, besides the format's own.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the end-of-text and chat control tokens.
    pub ignore_eos: bool,
    /// History window of the chat format, in tokens.
    pub max_window_size: usize,
}

/// Progress of loading, in bytes of weights made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What an engine would need, computed without allocating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    pub weight_bytes: u64,
    pub kv_cache_bytes: u64,
    pub kv_cache_tokens: u64,
    pub workspace_bytes: u64,
    pub available_bytes: u64,
    pub fits: bool,
}

/// How an engine ends its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Refuse new requests, finish those accepted.
    Drain,
    /// Refuse new requests, cancel those accepted.
    Cancel,
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
}

/// Receives whole log lines: level, target (the room), message. Silent when absent.
pub type LogHook = Arc<dyn Fn(LogLevel, &str, &str) + Send + Sync>;

/// A loaded model that serves many requests at once. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Engine {
    _inner: Arc<()>,
}

impl Engine {
    /// Loads the checkpoint in `folder`. `progress` is called on this thread; `false` cancels
    /// (`Error::Cancelled`).
    pub fn open(
        folder: &Path,
        options: &EngineOptions,
        log: Option<LogHook>,
        progress: &mut dyn FnMut(LoadProgress) -> bool,
    ) -> Result<Engine> {
        let _ = (options, log, progress);
        Err(Error::NotFound { path: folder.to_path_buf() })
    }

    /// What `open` would need.
    pub fn estimate(folder: &Path, options: &EngineOptions) -> Result<Estimate> {
        let _ = options;
        Err(Error::NotFound { path: folder.to_path_buf() })
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        unimplemented!()
    }

    /// Generation defaults of the checkpoint.
    pub fn generation_defaults(&self) -> GenerationParams {
        unimplemented!()
    }

    /// Renders `messages` (see `text::chat`) and submits them.
    /// `queue`: where events are announced; without one, `Request::next` is the only way.
    pub fn submit_chat(
        &self,
        messages: &[crate::text::chat::Message],
        params: &GenerationParams,
        queue: Option<(Arc<CompletionQueue>, u64)>,
    ) -> Result<Request> {
        let _ = (messages, params, queue);
        Err(Error::Closed { object: "engine" })
    }

    /// Submits token ids as they are (raw format).
    pub fn submit_tokens(
        &self,
        prompt: Vec<u32>,
        params: &GenerationParams,
        queue: Option<(Arc<CompletionQueue>, u64)>,
    ) -> Result<Request> {
        let _ = (prompt, params, queue);
        Err(Error::Closed { object: "engine" })
    }

    /// Model, backend, sizes, options in force.
    pub fn info(&self) -> Value {
        Value::Null
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> Value {
        Value::Null
    }

    /// `Ok` while the engine can serve; the reason otherwise.
    pub fn health(&self) -> Result<()> {
        Ok(())
    }

    /// Ends the engine's work; idempotent. `Error::Timeout` when requests are still running after
    /// `timeout` (the shutdown goes on).
    pub fn shutdown(&self, how: Shutdown, timeout: Duration) -> Result<()> {
        let _ = (how, timeout);
        Ok(())
    }
}
