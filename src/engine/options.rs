//! What a caller may choose: options of an engine, parameters of one reply, and their bounds.
//!
//! Plain data and checks; nothing here acts. `capi::options` maps string keys to these fields.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::grammar::Format;
use crate::model::config::ModelConfig;
use crate::model::generation::GenerationConfig;
use crate::sample::{SamplingParams, seed_of_choice};
use crate::text::tools::{ToolChoice, Tools};

/// How an engine is opened. `capi::options` maps string keys to these fields.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// `"auto"` (a GPU that can run the model, else the CPU), `"cpu"` (fast), `"cpu-reference"` (plain
    /// loops) or `"cuda"`.
    pub backend: String,
    /// Indices of the CUDA devices to use, such as `0` or `0,1`, a rank on each; empty means the first,
    /// or as many as `tensor_parallel` says.
    pub devices: String,
    /// Where the embedding table lives with a GPU: `"device"`, `"host"` (pinned memory, read over
    /// the bus, a few rows a step) or `"auto"` (host when device memory is short).
    pub embedding: String,
    /// With a GPU: time the algorithms of matrix products when the engine is opened and when a prompt
    /// first has a new length, and keep the fastest for as long as the process lives. Without it a
    /// request that runs alone gives the same bits in each run on the same GPU and libraries.
    pub autotune: bool,
    /// Threads per rank of the CPU backend; 0 means the machine's cores divided by the ranks that
    /// compute at once.
    pub num_threads: usize,
    /// Ranks that share the model in this process; 1 where `devices` names several: it says how many.
    pub tensor_parallel: usize,
    /// How ranks, or devices, share it: `"tensors"` (each has a part of every matrix, and all compute at
    /// once) or `"layers"` (each has whole layers, as many as its memory has room for, and they compute
    /// one after the other: for GPUs without a fast link, or of unequal memory).
    pub split: String,
    /// `"map"` (weights stay in the page cache, shared with other processes; the files must not be
    /// cut or rewritten meanwhile), `"copy"` (into this process's own memory: faster to read),
    /// `"auto"` (copy when memory is plentiful), or `"random"` (no files are read: random numbers of
    /// the shapes and dtype in config.json, for measuring).
    pub weights: String,
    /// Longest sequence a request may reach; 0 means what the model allows.
    pub max_context_tokens: usize,
    /// KV cache capacity in tokens over all requests; 0 means derived from free memory.
    pub kv_cache_tokens: usize,
    /// Most sequences in one step.
    pub max_batch_sequences: usize,
    /// Most prompt tokens computed in one step: the bound on how long a step can take; 0 means what
    /// suits the backend.
    pub prefill_chunk_tokens: usize,
    /// Most requests waiting; one more is refused.
    pub max_queue_requests: usize,
    /// Keep full KV pages after use, and share them between requests that begin with the same tokens.
    pub prefix_cache: bool,
    /// A request's tokens and their log-probabilities depend on nothing but its prompt, its parameters and
    /// seed, bit for bit: not on what else runs, nor on when it came. A CPU keeps that anyway. On a GPU, where
    /// rounding depends on the rows of a step, it costs most of the speed under load: requests run one at a
    /// time, each to its end whatever its priority, over no prefix cache, and without `autotune`. It says
    /// nothing across GPU types, drivers, versions of the library, or other values of `devices`,
    /// `tensor_parallel`, `split`, `num_threads`, `prefill_chunk_tokens` and `max_batch_sequences`.
    pub deterministic: bool,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            backend: "auto".to_string(),
            devices: String::new(),
            embedding: "auto".to_string(),
            autotune: true,
            num_threads: 0,
            tensor_parallel: 1,
            split: "tensors".to_string(),
            weights: "auto".to_string(),
            max_context_tokens: 0,
            kv_cache_tokens: 0,
            max_batch_sequences: 64,
            prefill_chunk_tokens: 0,
            max_queue_requests: 1024,
            prefix_cache: true,
            deterministic: false,
        }
    }
}

impl EngineOptions {
    /// `Error::Option`, naming the key, when one of the loop's own limits can never work. The
    /// backend's keys are checked where the backend is chosen.
    pub fn validate(&self) -> Result<()> {
        in_range("max_batch_sequences", self.max_batch_sequences, 1, 1 << 12)?;
        in_range("prefill_chunk_tokens", self.prefill_chunk_tokens, 0, 1 << 20)?;
        in_range("max_queue_requests", self.max_queue_requests, 1, 1 << 20)?;
        // Positions and slots are 32-bit.
        in_range("max_context_tokens", self.max_context_tokens, 0, u32::MAX as usize)?;
        in_range("kv_cache_tokens", self.kv_cache_tokens, 0, u32::MAX as usize)
    }

    /// The longest sequence: as chosen, else the published maximum of the model. That is four
    /// training lengths for the models that stretch their rotary base, one for the others.
    pub fn context_tokens(&self, config: &ModelConfig) -> usize {
        match (self.max_context_tokens, config.use_dynamic_ntk) {
            (0, true) => config.train_context_tokens.saturating_mul(4),
            (0, false) => config.train_context_tokens,
            (chosen, _) => chosen,
        }
    }
}

/// Most CPU threads of one rank.
pub(crate) const MAX_THREADS: usize = 1024;

/// How one reply is generated. Defaults come from the checkpoint's `generation_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Most tokens of the reply.
    pub max_tokens: usize,
    /// Texts that end the reply; never part of it.
    pub stop: Vec<String>,
    /// Token ids that end the reply, besides the format's own.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the end-of-text and chat control tokens.
    pub ignore_eos: bool,
    /// History window of the chat format, in tokens; for `Overflow::TruncateOldestTurns`.
    pub max_window_size: usize,
    /// Ids, and what is added to the logit of each before anything else; the last of an id counts.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tell how likely the model found each token of the reply.
    pub logprobs: bool,
    /// With `logprobs`: and so many of the likeliest tokens in its place.
    pub top_logprobs: u32,
    /// Tell the prompt's tokens before the reply's, with `logprobs` how likely each of them was, too. Only
    /// for prompts of token ids.
    pub echo: bool,
    /// Replies to the same prompt, each with a seed of its own.
    pub n: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Most milliseconds from the submit to the end; 0 means no limit.
    pub deadline_ms: u64,
    /// Most milliseconds from the submit to the first step; 0 means no limit.
    pub queue_timeout_ms: u64,
    /// Tools that a chat offers to the model, which may then answer by calling one.
    pub tools: Option<Arc<Tools>>,
    /// Whether it may, must or must not.
    pub tool_choice: ToolChoice,
    /// What the reply must look like; a text of any kind where this is absent.
    pub response_format: Option<Format>,
    /// What happens when a conversation does not fit the context.
    pub overflow: Overflow,
    /// Use the engine's prefix cache; otherwise nothing is read from it and nothing left in it.
    pub cache: bool,
}

/// What happens when a conversation outgrows the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest turns are left out of the prompt: those beyond `max_window_size`, and more where the
    /// prompt would leave less room for the reply than `max_tokens`, or than a quarter of the context. The
    /// system message and the last message stay. A session still remembers all.
    TruncateOldestTurns,
    /// Nothing is left out; the reply ends (`FinishReason::Length`) where the context does.
    Stop,
    /// Nothing is left out; `Error::ContextFull` unless the prompt and `max_tokens` more fit.
    Error,
}

impl Overflow {
    /// Every policy, and its name as an option.
    pub const ALL: [(Overflow, &'static str); 3] = [
        (Overflow::TruncateOldestTurns, "truncate_oldest_turns"),
        (Overflow::Stop, "stop"),
        (Overflow::Error, "error"),
    ];
}

/// Most stop texts and stop ids of one request.
const MAX_STOPS: usize = 256;
/// Most replies to one prompt.
pub(crate) const MAX_CHOICES: u32 = 128;
/// Most biases of one request.
pub(crate) const MAX_BIASES: usize = 1024;
/// Largest bias, in either direction.
pub(crate) const MAX_BIAS: f32 = 100.0;
/// Most likeliest tokens told in place of one.
pub(crate) const MAX_TOP_LOGPROBS: u32 = 20;
/// Longest stop text, in bytes: as much as the stream may have to hold back.
pub(crate) const MAX_STOP_BYTES: usize = 4096;

impl GenerationParams {
    /// The checkpoint's defaults, with `seed`.
    pub fn from_config(config: &GenerationConfig, seed: u64) -> GenerationParams {
        GenerationParams {
            sampling: SamplingParams {
                temperature: if config.do_sample { config.temperature } else { 0.0 },
                top_k: config.top_k,
                top_p: config.top_p,
                min_p: 0.0,
                repetition_penalty: config.repetition_penalty,
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
                seed,
            },
            max_tokens: config.max_new_tokens,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            max_window_size: config.max_window_size,
            logit_bias: Vec::new(),
            logprobs: false,
            top_logprobs: 0,
            echo: false,
            n: 1,
            priority: 0,
            deadline_ms: 0,
            queue_timeout_ms: 0,
            tools: None,
            tool_choice: ToolChoice::Auto,
            response_format: None,
            overflow: Overflow::TruncateOldestTurns,
            cache: true,
        }
    }

    /// The same for one of several replies.
    pub(crate) fn of_choice(&self, choice: u32) -> GenerationParams {
        let mut params = self.clone();
        params.sampling.seed = seed_of_choice(self.sampling.seed, choice);
        params
    }

    /// `Error::Option`, naming the key, when a value can never work. Whether stop ids are in the
    /// vocabulary makes no difference: one that is not is never drawn.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        in_range("max_tokens", self.max_tokens, 1, usize::MAX)?;
        in_range("n", self.n as usize, 1, MAX_CHOICES as usize)?;
        in_range("max_window_size", self.max_window_size, 1, usize::MAX)?;
        if self.stop.len() > MAX_STOPS {
            return Err(wrong("stop", format!("has more than {MAX_STOPS} texts")));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let reason = format!("each text must have 1 to {MAX_STOP_BYTES} bytes");
            return Err(wrong("stop", reason));
        }
        if self.stop_token_ids.len() > MAX_STOPS {
            return Err(wrong("stop_token_ids", format!("has more than {MAX_STOPS} ids")));
        }
        let fits = |(_, bias): &(u32, f32)| (-MAX_BIAS..=MAX_BIAS).contains(bias);
        if self.logit_bias.len() > MAX_BIASES || !self.logit_bias.iter().all(fits) {
            let reason = format!("has at most {MAX_BIASES} ids, from -{MAX_BIAS} to {MAX_BIAS}");
            return Err(wrong("logit_bias", reason));
        }
        in_range("top_logprobs", self.top_logprobs as usize, 0, MAX_TOP_LOGPROBS as usize)?;
        if self.top_logprobs > 0 && !self.logprobs {
            return Err(wrong("top_logprobs", "wants logprobs to be true".to_string()));
        }
        if self.response_format.is_some() && self.tools.is_some() {
            let reason = "a reply with tools has a format of its own".to_string();
            return Err(wrong("response_format", reason));
        }
        self.tool_choice.check(self.tools.as_deref())
    }
}

fn in_range(key: &str, value: usize, least: usize, most: usize) -> Result<()> {
    if value < least {
        return Err(wrong(key, format!("must be at least {least}, is {value}")));
    }
    if value > most {
        return Err(wrong(key, format!("must be at most {most}, is {value}")));
    }
    Ok(())
}

pub(crate) fn wrong(key: &str, reason: String) -> Error {
    Error::Option { key: key.to_string(), reason }
}
