//! Checkpoint folder -> a running engine: the one place that chooses a backend, plans memory, and
//! reads the environment.
//!
//! Environment variables, read once at open and only where the option is not set:
//!
//! | variable | option |
//! |---|---|
//! | `QWEN_NUM_THREADS` | `num_threads` |
//!
//! The vocabulary is read on a thread of its own beside all else that comes before the weights. Its errors
//! are told after those of options, configuration, files, device and memory, whichever is found first.

mod devices;
#[cfg(feature = "cuda")]
mod gpu;
mod ranks;
mod stages;
mod target;
mod weights;

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::batch::PAGE_TOKENS;
use crate::checkpoint::Source;
use crate::checkpoint::shard::Division;
use crate::engine::options::{MAX_THREADS, wrong};
use crate::engine::{
    Engine, EngineOptions, EngineParts, Estimate, LoadProgress, LogHook, LogLevel,
};
use crate::error::{Error, Result};
use crate::model::Limits;
use crate::model::config::ModelConfig;
use crate::model::generation::GenerationConfig;
use crate::text::tokenizer::Tokenizer;
use stages::Stages;
use target::{CallerContext, Needs, Target};
use weights::ModelWeights;

/// Sequences of full length that the KV cache holds when nothing else is said (and memory allows).
const DEFAULT_FULL_SEQUENCES: usize = 4;

/// Fewest pages worth opening an engine for: a question and a short answer.
const FEWEST_PAGES: usize = 16;

/// Rows beyond the vocabulary that a model may have for the sake of round sizes; the published ones
/// have 85 to 213.
const MOST_PADDING_ROWS: usize = 1024;

/// Everything known about a checkpoint before its weights are touched.
struct Plan {
    weights: ModelWeights,
    config: ModelConfig,
    generation: GenerationConfig,
    source: Source,
    target: Target,
    division: Division,
    /// Why a GPU was not taken, where one could have been.
    no_gpu: String,
    num_threads: usize,
    /// Ids that can be drawn; all rows of the model until the vocabulary is known.
    usable_ids: usize,
    /// Of all ranks together.
    kv_token_bytes: u64,
    num_pages: usize,
    estimate: Estimate,
}

/// See `Engine::open`.
pub(crate) fn open(
    folder: &Path,
    options: &EngineOptions,
    log: Option<LogHook>,
    progress: &mut dyn FnMut(LoadProgress) -> bool,
) -> Result<Engine> {
    // This is a thread of the host program: its own use of CUDA must not notice ours.
    let caller = CallerContext::save();
    options.validate()?;
    let mut stages = Stages::begin();
    let (planned, tokenizer) = beside(
        || Tokenizer::open(folder),
        || {
            let planned = plan(folder, options);
            stages.end("files and device");
            planned
        },
    );
    let (mut plan, options) = planned?;
    if !plan.estimate.fits {
        let needed = needed_bytes(&plan.estimate);
        return Err(plan.target.too_small(needed, plan.estimate.available_bytes));
    }
    let tokenizer = Arc::new(tokenizer?);
    stages.end("vocabulary, beside them until now");
    check_vocabulary(folder, &tokenizer, &plan)?;
    plan.usable_ids = tokenizer.num_tokens().min(plan.config.vocab_size);
    if let Some(log) = &log {
        caller.during(|| log(LogLevel::Info, "engine", &summary(folder, &plan)));
        if options.weights == "random" {
            let what = "the weights are random numbers: good for measuring, for nothing else";
            caller.during(|| log(LogLevel::Warn, "engine", what));
        }
    }
    let ranks = ranks::load(&mut plan, &options, (&caller, progress), &mut stages)?;
    if let Some(log) = &log {
        let inner = plan.target.stages();
        let waits = ranks.first().map_or("", |rank| rank.load_report());
        let parts = [inner.as_str(), waits].map(|part| match part {
            "" => String::new(),
            part => format!("; of these {part}"),
        });
        let total_s = stages.total_s();
        let line = format!("opened in {total_s:.3} s: {stages}{}", parts.concat());
        caller.during(|| log(LogLevel::Info, "engine", &line));
    }
    Engine::start(EngineParts {
        info: info(folder, &plan, &options),
        tokenizer,
        config: plan.config,
        generation: plan.generation,
        ranks,
        num_pages: plan.num_pages,
        options,
        log,
    })
}

/// Does `first` on a thread of its own while this one does `second`; the results of both.
fn beside<A: Send, B>(first: impl Fn() -> A + Sync, second: impl FnOnce() -> B) -> (B, A) {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("qwen-vocabulary".to_string());
        let thread = builder.spawn_scoped(scope, &first);
        let second = second();
        let first = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread to be had: one after the other.
            Err(_) => first(),
        };
        (second, first)
    })
}

/// See `Engine::estimate`.
pub(crate) fn estimate(folder: &Path, options: &EngineOptions) -> Result<Estimate> {
    let _caller = CallerContext::save();
    options.validate()?;
    Ok(plan(folder, options)?.0.estimate)
}

/// Reads headers and configuration, no weights. Also the options, which are valid, with what they left open.
fn plan(folder: &Path, options: &EngineOptions) -> Result<(Plan, EngineOptions)> {
    let mut options = options.clone();
    // What is timed is not the same in each process.
    options.autotune &= !options.deterministic;
    options.tensor_parallel = devices::num_ranks(&options)?;
    let config = ModelConfig::open(folder)?;
    let generation = GenerationConfig::open(folder)?;
    let division = devices::division(&options, &config)?;
    let weights = ModelWeights::open(folder, &options, &config)?;
    let needs = Needs {
        folder,
        config: &config,
        #[cfg(feature = "cuda")]
        dtype: weights.dtype,
        division: &division,
        stored_bytes: weights.total_bytes,
    };
    let (target, no_gpu) = Target::choose(&options, &needs)?;
    if options.prefill_chunk_tokens == 0 {
        options.prefill_chunk_tokens = target.default_chunk_tokens(&config);
    }
    // Where an estimate's memory is: on the host all of the cache, on devices a share on each.
    let element_bytes = target.kv_element_bytes(weights.dtype);
    let kv_token_bytes = target.kv_token_bytes(&config, element_bytes);
    let (available_bytes, kv_share) = target.available();
    let info = target.info();
    let text = |key: &str| info[key].as_str().unwrap_or_default().to_string();
    let mut estimate = Estimate {
        backend: text("name"),
        device: target.device_names(),
        no_gpu: no_gpu.clone(),
        weight_bytes: target.weight_bytes(&needs, &options),
        kv_cache_bytes: 0,
        kv_cache_tokens: 0,
        workspace_bytes: target.workspace_bytes(&config, &options),
        available_bytes,
        fits: false,
    };
    let num_pages = num_pages(&config, &options, &estimate, (kv_token_bytes, kv_share));
    estimate.kv_cache_tokens = (num_pages as u64).saturating_mul(PAGE_TOKENS as u64);
    estimate.kv_cache_bytes = estimate.kv_cache_tokens.saturating_mul(kv_token_bytes);
    estimate.fits = needed_bytes(&estimate) <= estimate.available_bytes;
    let division = target.division(&needs).clone();
    let num_threads = num_threads(&options, &division)?;
    let source = weights::source(&options, &target, &estimate)?;
    let plan = Plan {
        usable_ids: config.vocab_size,
        weights,
        kv_token_bytes: self::kv_token_bytes(&config, element_bytes),
        config,
        generation,
        source,
        target,
        division,
        no_gpu,
        num_threads,
        num_pages,
        estimate,
    };
    Ok((plan, options))
}

/// Keys and values of one token in all layers.
fn kv_token_bytes(config: &ModelConfig, element_bytes: usize) -> u64 {
    let factors = [config.num_layers, config.num_kv_heads, config.head_dim, element_bytes];
    factors.iter().fold(2_u64, |bytes, factor| bytes.saturating_mul(*factor as u64))
}

fn needed_bytes(estimate: &Estimate) -> u64 {
    let parts = [estimate.weight_bytes, estimate.kv_cache_bytes, estimate.workspace_bytes];
    parts.into_iter().fold(0, u64::saturating_add)
}

fn num_threads(options: &EngineOptions, division: &Division) -> Result<usize> {
    let given = match options.num_threads {
        0 => std::env::var("QWEN_NUM_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        chosen => chosen,
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = match division {
        Division::Tensors => options.tensor_parallel,
        Division::Layers(_) => 1,
    };
    match given {
        0 => Ok((cores() / at_once).max(1)),
        1..=MAX_THREADS => Ok(given),
        _ => Err(wrong("num_threads", format!("must be at most {MAX_THREADS}, is {given}"))),
    }
}

/// Pages of the KV cache: as asked, else a few full sequences within a share of the free memory, but
/// always enough for a short exchange (where even that does not fit, opening is refused).
fn num_pages(
    config: &ModelConfig,
    options: &EngineOptions,
    estimate: &Estimate,
    (kv_token_bytes, kv_share): (u64, f64),
) -> usize {
    if options.kv_cache_tokens > 0 {
        return options.kv_cache_tokens.div_ceil(PAGE_TOKENS);
    }
    let wanted = options.context_tokens(config).saturating_mul(DEFAULT_FULL_SEQUENCES);
    let weights = estimate.weight_bytes.saturating_add(estimate.workspace_bytes);
    let free = (estimate.available_bytes.saturating_sub(weights) as f64 * kv_share) as u64;
    let affordable = usize::try_from(free / kv_token_bytes.max(1)).unwrap_or(usize::MAX);
    (wanted.min(affordable) / PAGE_TOKENS).max(FEWEST_PAGES)
}

fn limits(plan_pages: usize, options: &EngineOptions) -> Limits {
    Limits {
        max_tokens: options.prefill_chunk_tokens + options.max_batch_sequences,
        max_logits_rows: options.max_batch_sequences,
        num_pages: plan_pages,
    }
}

/// The tokenizer must speak of rows that the model has, and mean the ids that the checkpoint means.
fn check_vocabulary(folder: &Path, tokenizer: &Tokenizer, plan: &Plan) -> Result<()> {
    let rows = plan.config.vocab_size;
    if tokenizer.im_end() as usize >= rows {
        let reason = format!(
            "the vocabulary has {} ids with <|im_end|> at {}, the model has {rows} rows",
            tokenizer.num_tokens(),
            tokenizer.im_end()
        );
        return Err(Error::corrupt(&folder.join("config.json"), reason));
    }
    if rows > tokenizer.num_tokens() + MOST_PADDING_ROWS {
        let reason = format!(
            "the model has {rows} rows, the vocabulary only {} ids: it is cut short, or another \
             model's",
            tokenizer.num_tokens()
        );
        return Err(Error::corrupt(&folder.join("config.json"), reason));
    }
    let end_of_text = tokenizer.end_of_text();
    let eos = &plan.generation.eos_token_ids;
    // Fine-tunes name <|im_end|>; the published files name <|endoftext|>.
    if eos.is_empty() || eos.contains(&end_of_text) || eos.contains(&tokenizer.im_end()) {
        return Ok(());
    }
    let reason = format!(
        "eos_token_id is {eos:?}, but <|endoftext|> of the vocabulary is {end_of_text}: the \
         vocabulary is not this model's, or is cut short"
    );
    Err(Error::corrupt(&folder.join("generation_config.json"), reason))
}

/// What the engine opens, in a line.
fn summary(folder: &Path, plan: &Plan) -> String {
    let estimate = &plan.estimate;
    let gpu = if plan.no_gpu.is_empty() { "" } else { "; no GPU: " };
    format!(
        "opening {} on {}: weights {} MiB, KV cache {} MiB for {} tokens, workspace {} MiB{gpu}{}",
        folder.display(),
        plan.target.info()["name"].as_str().unwrap_or_default(),
        estimate.weight_bytes >> 20,
        estimate.kv_cache_bytes >> 20,
        estimate.kv_cache_tokens,
        estimate.workspace_bytes >> 20,
        plan.no_gpu
    )
}

/// How many layers each rank has.
fn rank_layers(plan: &Plan, world: usize) -> Vec<usize> {
    let share = |rank| plan.division.share(plan.config.num_layers, rank, world);
    (0..world).map(|rank| share(rank).layers.len()).collect()
}

fn info(folder: &Path, plan: &Plan, options: &EngineOptions) -> serde_json::Value {
    let config = &plan.config;
    json!({
        "model": {
            "path": folder.to_string_lossy(),
            "num_layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "num_heads": config.num_heads,
            "head_dim": config.head_dim,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "train_context_tokens": config.train_context_tokens,
            "weight_bytes": plan.weights.total_bytes,
            "weight_format": config.quantisation.map_or(plan.weights.dtype.name(), |q| q.name()),
        },
        "backend": plan.target.info(),
        "no_gpu": plan.no_gpu,
        "num_threads": plan.num_threads,
        "tensor_parallel": options.tensor_parallel,
        "split": plan.division.name(),
        "rank_layers": rank_layers(plan, options.tensor_parallel),
        "weights": plan.weights.name(plan.source),
        "kv_token_bytes": plan.kv_token_bytes,
    })
}
