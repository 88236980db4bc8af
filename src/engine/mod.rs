//! The engine: owns the model, the KV pages and the table of requests; one loop thread steps it.
//!
//! ```text
//! any thread                      the thread "qwen-engine"                     rank threads
//! Engine::submit -> Shared.inbox -> Stepper: scheduler -> Batch -> Workers --> Rank::submit
//! Request::next  <- Mailbox      <- Sequence <- tokens, or Sampler <- logits <- Rank::collect
//! ```
//!
//! Only the loop thread changes sequences and pages; callers see it through an inbox and mailboxes.
//! An engine lives as long as its handles and the sessions made from it. With the last of them it
//! ends: requests still outstanding end as cancelled, and the model's memory is released before
//! that drop returns (it waits for the step that is running, no longer).

mod assemble;
mod calls;
mod completion;
mod embed;
mod histogram;
mod logits;
mod mail;
mod memory;
mod metrics;
mod open;
pub mod options;
mod prefix;
mod prometheus;
pub mod request;
mod saved;
pub mod scheduler;
mod score;
mod scoring;
pub mod sequence;
pub mod session;
mod shared;
mod start;
mod states;
mod step;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::grammar::GrammarState;
use crate::model::generation::ChatFormat;
use crate::text::chat::{self, Prompt, Window};
use crate::text::tokenizer::Tokenizer;
use calls::ReactReply;
pub use calls::ToolCallNews;
pub use completion::CompletionQueue;
pub use logits::{Logprob, TokenLogprobs};
pub use options::{EngineOptions, GenerationParams, Overflow};
pub use request::{Event, EventKind, FinishReason, Request, Usage};
pub use score::{Score, ScoredToken};
use sequence::{Limits, Sequence};
use shared::Shared;
pub use start::EngineParts;
pub use states::Pooling;

/// Progress of loading, in bytes of weights made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Ready so far.
    pub done_bytes: u64,
    /// Of all weights of this process.
    pub total_bytes: u64,
}

/// What an engine would need, computed without allocating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// What it was computed for: a backend as `Engine::info` names it.
    pub backend: String,
    /// The GPU, as in `cuda:0`, or several; empty on the CPU. All bytes are those of the fullest: the one
    /// that has room for the fewest tokens beside its share of the model.
    pub device: String,
    /// Why a GPU was not taken, where one could have been.
    pub no_gpu: String,
    /// Weights, as the backend stores them.
    pub weight_bytes: u64,
    /// KV cache of `kv_cache_tokens`.
    pub kv_cache_bytes: u64,
    /// Capacity of the KV cache over all requests.
    pub kv_cache_tokens: u64,
    /// Activations and logits of the largest step; on a GPU also code and recorded steps.
    pub workspace_bytes: u64,
    /// What the machine has free; on a GPU, beside a context like the one that an engine makes.
    pub available_bytes: u64,
    /// The sum is not more than what is free.
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
    /// Something the caller asked for did not happen.
    Error = 1,
    /// It works, but probably not as meant.
    Warn = 2,
    /// Once per engine.
    Info = 3,
    /// Up to once per step.
    Debug = 4,
}

/// Receives whole log lines: level, target (the room), message. Silent when absent.
pub type LogHook = Arc<dyn Fn(LogLevel, &str, &str) + Send + Sync>;

/// A loaded model that serves many requests at once. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

/// What the clones of an `Engine` share; its drop is the drop of the last of them.
struct Handle {
    shared: Arc<Shared>,
    loop_thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let thread = self.loop_thread.get_mut().take();
        if self.shared.check_process().is_err() {
            // A forked child has no such thread, and the inbox may be locked for ever.
            std::mem::forget(thread);
            return;
        }
        self.shared.begin_shutdown(Shutdown::Cancel);
        if !self.shared.is_loop_thread()
            && let Some(thread) = thread
        {
            // The loop catches its own panics: nothing is lost with this result.
            let _ = thread.join();
        }
    }
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
        open::open(folder, options, log, progress)
    }

    /// What `open` would need.
    pub fn estimate(folder: &Path, options: &EngineOptions) -> Result<Estimate> {
        open::estimate(folder, options)
    }

    /// Starts an engine on a model that is loaded. Errors: an option that can never work
    /// (`Error::Option`), or threads that cannot be had (`Error::EngineFailed`).
    pub fn start(parts: EngineParts) -> Result<Engine> {
        let (shared, thread) = start::start(parts)?;
        let loop_thread = Mutex::new(Some(thread));
        Ok(Engine { handle: Arc::new(Handle { shared, loop_thread }) })
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared().tokenizer
    }

    /// Generation defaults of the checkpoint, with a fresh random seed in every call.
    pub fn generation_defaults(&self) -> GenerationParams {
        GenerationParams::from_config(&self.shared().generation, start::random_seed())
    }

    /// Renders `messages` (see `text::chat`) and submits them. Whatever the checkpoint's own format
    /// is, the reply ends as ChatML does.
    /// `queue`: where events are announced; without one, `Request::next` is the only way.
    pub fn submit_chat(
        &self,
        messages: &[chat::Message],
        params: &GenerationParams,
        queue: Option<(Arc<CompletionQueue>, u64)>,
    ) -> Result<Request> {
        let request = Request::prepared(queue);
        self.begin_chat(&request, messages, params)?;
        Ok(request)
    }

    /// `submit_chat` for a request that others know already.
    pub(crate) fn begin_chat(
        &self,
        request: &Request,
        messages: &[chat::Message],
        params: &GenerationParams,
    ) -> Result<()> {
        self.shared().health()?;
        params.validate()?;
        if params.echo {
            return Err(options::wrong("echo", "is for prompts of token ids".to_string()));
        }
        let tokenizer = self.tokenizer();
        let is_whole = params.overflow != Overflow::TruncateOldestTurns;
        // Before encoding, which takes far more memory than the text itself.
        let (tools, choice) = (params.tools.as_deref(), &params.tool_choice);
        check_room(chat::fewest_tokens(tokenizer, messages, tools, is_whole), self.shared())?;
        let all = self.shared().sequence_tokens;
        let window = match is_whole {
            true => Window { history_tokens: usize::MAX, prompt_tokens: usize::MAX },
            false => Window {
                history_tokens: params.max_window_size,
                prompt_tokens: all - params.max_tokens.min(all / 4),
            },
        };
        let prompt = chat::render_with(tokenizer, messages, tools, choice, window)?;
        self.begin(request, prompt, ChatFormat::ChatMl, params)
    }

    /// Submits token ids as they are (raw format). Errors: `Error::Argument` for an empty prompt
    /// or an id outside the vocabulary, `Error::Option` for parameters that can never work,
    /// `Error::ContextFull` when the prompt and one more token can never fit, `Error::QueueFull`,
    /// `Error::Closed`, `Error::EngineFailed`, `Error::Forked`.
    pub fn submit_tokens(
        &self,
        prompt: Vec<u32>,
        params: &GenerationParams,
        queue: Option<(Arc<CompletionQueue>, u64)>,
    ) -> Result<Request> {
        let request = Request::prepared(queue);
        self.begin_tokens(&request, prompt, params)?;
        Ok(request)
    }

    /// `submit_tokens` for a request that others know already.
    pub(crate) fn begin_tokens(
        &self,
        request: &Request,
        prompt: Vec<u32>,
        params: &GenerationParams,
    ) -> Result<()> {
        if params.tools.is_some() {
            let reason = "a prompt of tokens cannot offer tools, only a chat can";
            return Err(options::wrong("tools", reason.to_string()));
        }
        let prompt = Prompt { ids: prompt, react: None };
        self.begin(request, prompt, self.shared().generation.chat_format, params)
    }

    fn begin(
        &self,
        request: &Request,
        prompt: Prompt,
        format: ChatFormat,
        params: &GenerationParams,
    ) -> Result<()> {
        let Prompt { ids: prompt, react } = prompt;
        let shared = self.shared();
        shared.health()?;
        params.validate()?;
        check_prompt(&prompt, shared)?;
        check_bias(&params.logit_bias, shared)?;
        if params.n > 1 && params.echo && params.logprobs {
            let reason = "must be 1 with echo and logprobs: the prompt would be measured for each";
            return Err(options::wrong("n", reason.to_string()));
        }
        if params.n as usize > shared.max_queue_requests {
            let most = shared.max_queue_requests;
            return Err(options::wrong("n", format!("must be at most max_queue_requests, {most}")));
        }
        if params.overflow == Overflow::Error {
            check_room(prompt.len().saturating_add(params.max_tokens - 1), shared)?;
        }
        let limits = || {
            let mut limits = Limits {
                total_tokens: shared
                    .sequence_tokens
                    .min(prompt.len().saturating_add(params.max_tokens)),
                react: react.clone().map(ReactReply::new),
                ..start::stops(shared, format, params)
            };
            // Of a format the end is a part, whatever else may not end a reply.
            limits.stop_token_ids.extend(params.response_format.as_ref().map(|_| shared.end_id()));
            limits
        };
        let root = crate::model::rope::ntk_factor(&shared.model, prompt.len()).to_bits();
        // An echo measures the tokens of the prompt, for which they must be computed.
        let uses_cache = shared.prefix_cache && params.cache && !params.echo;
        let format = params.response_format.as_ref();
        let mut grammar = format.map(|format| shared.grammars()?.begin(format)).transpose()?;
        // What may come first is found out here and not by the loop, for all choices at once.
        grammar.iter_mut().for_each(GrammarState::prepare);
        let mailbox = request.mailbox();
        let sequence = |choice: u32| {
            let params = params.of_choice(choice);
            let mailbox = (Arc::clone(mailbox), choice);
            let mut sequence = Sequence::new(prompt.clone(), &params, limits(), mailbox);
            sequence.rules.grammar = grammar.clone();
            sequence.prefix_root = uses_cache.then_some(root);
            sequence
        };
        shared.submit((0..params.n).map(sequence).collect())
    }

    /// Model, backend, sizes, options in force: a JSON object.
    pub fn info(&self) -> Value {
        self.shared().info.clone()
    }

    /// Counters and gauges: a JSON object of numbers, and of `histograms` by their names.
    pub fn metrics(&self) -> Value {
        self.shared().metrics.to_json()
    }

    /// The same in Prometheus's text format; `model` becomes a label of that name, unless it is empty.
    pub fn metrics_prometheus(&self, model: &str) -> String {
        prometheus::text(&self.shared().metrics, model)
    }

    /// `Ok` while the engine can serve; the reason otherwise.
    pub fn health(&self) -> Result<()> {
        self.shared().health()
    }

    /// Ends the engine's work and releases the model; idempotent, and a drain can still be turned
    /// into a cancel. `Error::Timeout` when requests are still running after `timeout` (the
    /// shutdown goes on). From inside the log hook, which the loop itself calls:
    /// `Error::Reentrant`.
    pub fn shutdown(&self, how: Shutdown, timeout: Duration) -> Result<()> {
        let shared = self.shared();
        shared.check_process()?;
        shared.begin_shutdown(how);
        if shared.is_loop_thread() {
            return Err(Error::Reentrant { object: "engine" });
        }
        shared.wait_released(timeout)
    }

    /// What saved state of this model is known by.
    pub(crate) fn fingerprint(&self) -> u64 {
        saved::fingerprint(&self.shared().model, self.tokenizer())
    }

    /// `Error::Forked` in a child of the process that opened the engine.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.shared().check_process()
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

/// A prompt the model can take, and that leaves room for a reply of at least one token.
fn check_prompt(prompt: &[u32], shared: &Shared) -> Result<()> {
    let wrong = |reason: String| Error::Argument { argument: "prompt", reason };
    if prompt.is_empty() {
        return Err(wrong("has no tokens".to_string()));
    }
    let usable = shared.usable_ids;
    if let Some(index) = prompt.iter().position(|&id| id as usize >= usable) {
        let id = prompt[index];
        return Err(wrong(format!("id {id} at index {index} is not below {usable}")));
    }
    check_room(prompt.len(), shared)
}

/// Biases of ids that can be drawn.
fn check_bias(bias: &[(u32, f32)], shared: &Shared) -> Result<()> {
    let usable = shared.usable_ids;
    match bias.iter().find(|(id, _)| *id as usize >= usable) {
        Some((id, _)) => {
            Err(options::wrong("logit_bias", format!("id {id} is not below {usable}")))
        }
        None => Ok(()),
    }
}

/// Is there room for so many tokens and one more?
fn check_room(num_tokens: usize, shared: &Shared) -> Result<()> {
    if num_tokens >= shared.sequence_tokens {
        return Err(Error::ContextFull {
            needed_tokens: (num_tokens as u64).saturating_add(1),
            available_tokens: shared.sequence_tokens as u64,
        });
    }
    Ok(())
}
