//! A loaded model -> a running loop thread; and that thread's life from first step to release.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::batch::PAGE_TOKENS;
use crate::engine::options::{EngineOptions, GenerationParams, wrong};
use crate::engine::scheduler;
use crate::engine::sequence::Limits;
use crate::engine::shared::{Shared, SharedParts, Turn};
use crate::engine::step::Stepper;
use crate::engine::worker::{Workers, drop_quietly, panic_reason};
use crate::engine::{LogHook, LogLevel};
use crate::error::{Error, Result};
use crate::kv::PagePool;
use crate::model::Rank;
use crate::model::config::ModelConfig;
use crate::model::generation::{ChatFormat, GenerationConfig};
use crate::text::tokenizer::Tokenizer;

/// Everything an engine runs on.
pub struct EngineParts {
    /// The checkpoint's vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Shape and switches of the model.
    pub config: ModelConfig,
    /// The checkpoint's generation defaults.
    pub generation: GenerationConfig,
    /// The model, one part per rank, rank 0 first. A rank that fails is dropped at once; that drop
    /// must release other ranks waiting for it in a collective.
    pub ranks: Vec<Box<dyn Rank>>,
    /// Pages of `PAGE_TOKENS` tokens that every rank's KV cache holds.
    pub num_pages: usize,
    /// Limits of the loop; those of the backend have been used before.
    pub options: EngineOptions,
    /// Where log lines go; called on the loop thread.
    pub log: Option<LogHook>,
    /// What `Engine::info` says of model and backend (an object); the loop's sizes are added.
    pub info: Value,
}

/// Starts the loop thread.
pub(crate) fn start(parts: EngineParts) -> Result<(Arc<Shared>, JoinHandle<()>)> {
    let num_pages = check(&parts)?;
    // Where numbers depend on what is computed beside them, nothing is, nor taken from other steps: a prompt
    // is cut at the same places each time, and what was computed once is not computed anew in other steps.
    let is_alone =
        parts.options.deterministic && !parts.ranks.iter().all(|rank| rank.batch_invariant());
    let limits = scheduler::Limits {
        page_tokens: PAGE_TOKENS,
        max_sequences: if is_alone { 1 } else { parts.options.max_batch_sequences },
        max_rows: parts.options.max_batch_sequences,
        prefill_tokens: parts.options.prefill_chunk_tokens,
        displaces: !is_alone,
    };
    let options = EngineOptions {
        max_batch_sequences: limits.max_sequences,
        prefix_cache: parts.options.prefix_cache && !is_alone,
        ..parts.options
    };
    let vocab_size = parts.config.vocab_size;
    let sequence_tokens = options.context_tokens(&parts.config).min(parts.num_pages * PAGE_TOKENS);
    let shared = Arc::new(Shared::new(SharedParts {
        info: complete_info(parts.info, &options, parts.num_pages, sequence_tokens),
        usable_ids: parts.tokenizer.num_tokens().min(vocab_size),
        tokenizer: parts.tokenizer,
        generation: parts.generation,
        sequence_tokens,
        max_queue_requests: options.max_queue_requests,
        model: parts.config,
        prefix_cache: options.prefix_cache,
        log: parts.log,
    }));
    let workers = Workers::start(parts.ranks)?;
    let pool = PagePool::new(num_pages, PAGE_TOKENS);
    let stepper = Stepper::new(Arc::clone(&shared), pool, workers, limits, vocab_size);
    let loop_shared = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("qwen-engine".to_string())
        .spawn(move || live(&loop_shared, stepper))
        .map_err(|error| Error::EngineFailed { reason: format!("no loop thread: {error}") })?;
    Ok((shared, thread))
}

/// The number of pages, once everything fits together. Slots and positions are u32.
fn check(parts: &EngineParts) -> Result<u32> {
    parts.options.validate()?;
    if parts.options.prefill_chunk_tokens == 0 {
        let reason = "must be at least 1 once the backend is chosen".to_string();
        return Err(wrong("prefill_chunk_tokens", reason));
    }
    if parts.ranks.is_empty() {
        return Err(wrong("tensor_parallel", "must be at least 1".to_string()));
    }
    let most = u32::MAX as usize / PAGE_TOKENS;
    if parts.num_pages == 0 || parts.num_pages > most {
        let (pages, least) = (parts.num_pages, PAGE_TOKENS);
        let reason = format!("gives {pages} pages of {least} tokens; 1 to {most} can be used");
        return Err(wrong("kv_cache_tokens", reason));
    }
    Ok(parts.num_pages as u32)
}

fn complete_info(
    mut info: Value,
    options: &EngineOptions,
    num_pages: usize,
    sequence_tokens: usize,
) -> Value {
    if !info.is_object() {
        info = json!({});
    }
    info["max_context_tokens"] = json!(sequence_tokens);
    info["kv_cache_tokens"] = json!(num_pages * PAGE_TOKENS);
    info["kv_page_tokens"] = json!(PAGE_TOKENS);
    info["max_batch_sequences"] = json!(options.max_batch_sequences);
    info["prefill_chunk_tokens"] = json!(options.prefill_chunk_tokens);
    info["max_queue_requests"] = json!(options.max_queue_requests);
    info["prefix_cache"] = json!(options.prefix_cache);
    info["deterministic"] = json!(options.deterministic);
    info
}

/// The loop thread. Whatever happens, every request gets its last event, the model is released and
/// those who wait for the end are told.
fn live(shared: &Shared, mut stepper: Stepper) {
    shared.enter_loop();
    let served = catch_unwind(AssertUnwindSafe(|| serve(shared, &mut stepper)));
    let failure = match served {
        Ok(Ok(())) => None,
        Ok(Err(Error::EngineFailed { reason })) => Some(reason),
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(panic_reason(&*panic)),
    };
    let failure = failure.map(|reason| Error::EngineFailed { reason });
    shared.end_loop(failure.clone(), &mut stepper.sequences);
    // After a panic the state may be odd in any way; what remains must still be tried.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        stepper.end_all(failure.as_ref().unwrap_or(&Error::Cancelled));
        match &failure {
            Some(error) => shared.log(LogLevel::Error, || error.to_string()),
            None => shared.log(LogLevel::Info, || "the engine is shut down".to_string()),
        }
    }));
    drop_quietly(stepper);
    shared.leave_loop();
}

/// Steps until there is nothing more to do. An error ends the engine.
fn serve(shared: &Shared, stepper: &mut Stepper) -> Result<()> {
    warn_of_lost_stops(shared);
    loop {
        match shared.absorb(&mut stepper.sequences) {
            Turn::Finish | Turn::Cancel => return Ok(()),
            Turn::Step => {
                stepper.reap();
                stepper.step()?;
            }
        }
    }
}

/// What ends a reply to a prompt in this format, and by the caller's wish.
pub(crate) fn stops(shared: &Shared, format: ChatFormat, params: &GenerationParams) -> Limits {
    let mut stop_token_ids = params.stop_token_ids.clone();
    let mut stop_texts = params.stop.clone();
    if !params.ignore_eos {
        format_stops(shared, format, &mut stop_token_ids, &mut stop_texts);
    }
    Limits { total_tokens: 0, stop_token_ids, stop_texts, react: None }
}

/// End-of-text and chat control tokens; for base models the text with which they begin to play the
/// other speaker. A stop sequence of several tokens is a stop text: held back, it never shows.
fn format_stops(
    shared: &Shared,
    format: ChatFormat,
    token_ids: &mut Vec<u32>,
    texts: &mut Vec<String>,
) {
    let (tokenizer, generation) = (&shared.tokenizer, &shared.generation);
    token_ids.extend(&generation.eos_token_ids);
    token_ids.push(tokenizer.end_of_text());
    match format {
        ChatFormat::ChatMl => token_ids.extend([tokenizer.im_start(), tokenizer.im_end()]),
        ChatFormat::Raw => texts.push("Human:".to_string()),
    }
    for sequence in &generation.stop_words_ids {
        match sequence[..] {
            [] => {}
            [id] => token_ids.push(id),
            _ => texts.extend(stop_text(tokenizer, sequence)),
        }
    }
    texts.retain(|text| !text.is_empty());
}

/// The text that stands for a stop sequence of several tokens; `None` where none can: control
/// tokens are never text, and a stop text is whole characters.
fn stop_text(tokenizer: &Tokenizer, sequence: &[u32]) -> Option<String> {
    if sequence.iter().any(|&id| tokenizer.is_special(id)) {
        return None;
    }
    String::from_utf8(tokenizer.decode_bytes(sequence, false)).ok()
}

fn warn_of_lost_stops(shared: &Shared) {
    for sequence in shared.generation.stop_words_ids.iter().filter(|ids| ids.len() > 1) {
        if stop_text(&shared.tokenizer, sequence).is_none() {
            shared.log(LogLevel::Warn, || {
                format!("stop_words_ids: {sequence:?} is not a text, so it will stop no reply")
            });
        }
    }
}

/// A seed nobody can foresee, from the standard library's own source of random keys.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
