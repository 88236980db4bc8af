//! `qwen_engine`: a loaded model that serves many conversations at once.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::time::Duration;

use serde_json::{Value, json};

use super::arguments::{Handle, Out, free, handle, optional, path, text};
use super::buffers::qwen_buf;
use super::codes::{QWEN_CANCEL, QWEN_CONTINUE, QWEN_STOP};
use super::errors::qwen_error;
use super::fields;
use super::guard::guard;
use super::options::{engine_options, qwen_options};
use crate::engine::{Engine, Estimate, LoadProgress, Shutdown};
use crate::error::{Error, Result};

/// For qwen_engine_shutdown: refuse new requests, finish those accepted.
pub const QWEN_SHUTDOWN_DRAIN: i32 = 1;
/// For qwen_engine_shutdown: refuse new requests, cancel those accepted.
pub const QWEN_SHUTDOWN_CANCEL: i32 = 2;

/// How far loading is. Later versions may add fields at the end and grow struct_size.
#[repr(C)]
pub struct qwen_load_progress {
    /// Bytes of this struct that the library filled.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes of weights that are ready.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// Is told how far loading is, on the thread that opens the engine. `progress` lives until it
/// returns. Result: QWEN_CONTINUE, or QWEN_CANCEL to give up.
pub type qwen_progress_fn =
    Option<unsafe extern "C" fn(progress: *const qwen_load_progress, user: *mut c_void) -> i32>;

/// A loaded model. Any thread may use it, and several at once. Sessions and requests made from it
/// may outlive the handle. Free it with qwen_engine_free.
pub struct qwen_engine(Engine);

impl Handle for qwen_engine {
    type Inside = Engine;
    fn inside(&self) -> &Engine {
        &self.0
    }
}

/// Loads the checkpoint in the folder `folder` (config.json, safetensors, qwen.tiktoken).
/// `options`: engine options, or NULL. `on_progress` with `user`: may be NULL. The caller frees
/// `engine`. Any thread; returns when the model can be used. Callbacks must not throw or longjmp.
///
/// With the engine option deterministic a reply's tokens and log-probabilities depend, to the bit, on
/// nothing but its prompt, options and seed: not on what else runs, nor on when it came. On a CPU that
/// is so anyway, and costs nothing. On a GPU it costs what batching and the prefix cache gain: requests run
/// one at a time, in order of priority and arrival, each to its end and from its first token. It is no
/// promise across libraries, drivers or types of GPU or CPU, nor across other values of devices,
/// tensor_parallel, split, num_threads, prefill_chunk_tokens and max_batch_sequences; and where free memory
/// decides, over kv_cache_tokens or how layers are divided, other memory is another value.
///
/// Errors: QWEN_E_NOT_FOUND, QWEN_E_IO, QWEN_E_CORRUPT, QWEN_E_UNSUPPORTED (path, field, tensor and
/// offset in the detail), QWEN_E_OOM_HOST (bytes in the detail), QWEN_E_NO_DEVICE, QWEN_E_OPTION,
/// QWEN_E_CANCELLED and QWEN_E_CALLBACK by `on_progress`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_open(
    folder: *const c_char,
    folder_len: u64,
    options: *const qwen_options,
    on_progress: qwen_progress_fn,
    user: *mut c_void,
    engine: Option<&mut MaybeUninit<*mut qwen_engine>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_open", err, || {
        let engine = Out::new("engine", engine)?;
        // SAFETY: the caller gives a path as the header says.
        let folder = unsafe { path("folder", folder, folder_len) }?;
        // SAFETY: the caller gives live options or NULL.
        let (options, log) = engine_options(unsafe { optional(options) })?;
        let mut watcher = Watcher { on_progress, user, refused: None };
        let opened = Engine::open(&folder, &options, log, &mut |at| watcher.tell(at));
        match watcher.refused {
            Some(returned) => Err(Error::Callback { returned }),
            None => {
                engine.give(qwen_engine(opened?));
                Ok(())
            }
        }
    })
}

/// Tells the caller's callback how far loading is.
struct Watcher {
    on_progress: qwen_progress_fn,
    user: *mut c_void,
    /// What the callback returned, where that means nothing.
    refused: Option<i32>,
}

impl Watcher {
    /// Whether to go on loading.
    fn tell(&mut self, at: LoadProgress) -> bool {
        let Some(on_progress) = self.on_progress else { return true };
        let progress = qwen_load_progress {
            struct_size: size_of::<qwen_load_progress>() as u32,
            reserved: 0,
            done_bytes: at.done_bytes,
            total_bytes: at.total_bytes,
        };
        // SAFETY: `progress` lives through the call; `user` is the caller's own.
        let answer = unsafe { on_progress(&raw const progress, self.user) };
        if ![QWEN_CONTINUE, QWEN_STOP, QWEN_CANCEL].contains(&answer) {
            self.refused = Some(answer);
        }
        answer == QWEN_CONTINUE
    }
}

/// What qwen_engine_open would need, as a JSON object: backend and device (what it was computed
/// for; with a GPU all bytes are the GPU's, with several those of the fullest), no_gpu (why not a
/// GPU), weight_bytes, kv_cache_bytes, kv_cache_tokens, workspace_bytes, available_bytes, fits. Loads
/// no weights. The caller frees `json`. Any thread. Errors as for qwen_engine_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_estimate_json(
    folder: *const c_char,
    folder_len: u64,
    options: *const qwen_options,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_estimate_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives a path as the header says.
        let folder = unsafe { path("folder", folder, folder_len) }?;
        // SAFETY: the caller gives live options or NULL.
        let (options, _) = engine_options(unsafe { optional(options) })?;
        let estimate = estimate_json(&Engine::estimate(&folder, &options)?);
        json.give(qwen_buf::new(estimate.to_string()));
        Ok(())
    })
}

fn estimate_json(estimate: &Estimate) -> Value {
    json!({
        "backend": estimate.backend,
        "device": estimate.device,
        "no_gpu": estimate.no_gpu,
        "weight_bytes": estimate.weight_bytes,
        "kv_cache_bytes": estimate.kv_cache_bytes,
        "kv_cache_tokens": estimate.kv_cache_tokens,
        "workspace_bytes": estimate.workspace_bytes,
        "available_bytes": estimate.available_bytes,
        "fits": estimate.fits,
    })
}

/// Hands out JSON made from an engine.
///
/// # Safety
/// `engine` is NULL or a live handle.
unsafe fn engine_json(
    engine: *const qwen_engine,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    make: impl FnOnce(&Engine) -> Value,
) -> Result<()> {
    let json = Out::new("json", json)?;
    // SAFETY: as this function's caller promises.
    let engine = unsafe { handle("engine", engine) }?;
    json.give(qwen_buf::new(make(&engine).to_string()));
    Ok(())
}

/// The model, the backend (no_gpu: why not a GPU), sizes, and the options in force (rank_layers: how many
/// layers each rank has), as a JSON object. The caller frees `json`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_info_json(
    engine: *const qwen_engine,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_info_json", err, || {
        // SAFETY: the caller gives a live engine or NULL.
        unsafe { engine_json(engine, json, Engine::info) }
    })
}

/// Counters and gauges (requests, tokens, KV pages, steps), as a JSON object of numbers, and `histograms`
/// last: an object for each of those that qwen_engine_metrics_prometheus describes, with `bounds`, `counts`
/// (one more: the last is of what is above all bounds), `count` and `sum`. forward_us is the
/// time that steps took, device_us the part of it from each step's first work on a GPU to its end (0
/// on the CPU): between two readings, 1 - device_us / forward_us is how long the GPU waited between
/// steps. computed_tokens counts every token that went through the model, again after a preemption;
/// prefix_hit_tokens those that did not have to, thanks to the prefix cache. pages_used are held by
/// requests, pages_cached only kept for their contents, and prefix_evictions were given up for their
/// memory. The caller frees `json`. Any thread; never waits for the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_metrics_json(
    engine: *const qwen_engine,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_metrics_json", err, || {
        // SAFETY: the caller gives a live engine or NULL.
        unsafe { engine_json(engine, json, Engine::metrics) }
    })
}

/// The same numbers as text in Prometheus's exposition format (version 0.0.4), for a scrape endpoint. Names
/// begin with qwen_, counters end in _total, times are in seconds. Where `model` is not empty, every
/// sample has it as the label "model". The histograms, each reply of several being a request of its own:
///
/// - qwen_time_to_first_token_seconds: from the call that submits to the moment the first token is told,
///   the encoding of a chat and the queue among it; of a score or an embedding, from its tokens until it was
///   computed.
/// - qwen_time_between_tokens_seconds: from each token told to the next of the same request. A token is told
///   when the engine puts it where its reader takes events; that a slow reader finds several in one event,
///   or that text waits for the rest of a character or stop string, changes nothing here. The token that
///   ends a reply counts as told.
/// - qwen_queue_time_seconds: from the call that submits to the first step.
/// - qwen_request_duration_seconds, qwen_request_prompt_tokens, qwen_request_generated_tokens: of each
///   request that has ended, also of those that were cancelled or failed.
///
/// The caller frees `text`. Any thread; never waits for the model. Errors: QWEN_E_UTF8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_metrics_prometheus(
    engine: *const qwen_engine,
    model: *const c_char,
    model_len: u64,
    text: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_metrics_prometheus", err, || {
        let out = Out::new("text", text)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives a text as the header says.
        let model = unsafe { self::text("model", model, model_len) }?;
        out.give(qwen_buf::new(engine.metrics_prometheus(model)));
        Ok(())
    })
}

/// The values that generation options have where they are not set, as a JSON object that
/// qwen_options_merge_json takes. They come from the checkpoint; there is no seed among them, for an
/// unset seed is random. The caller frees `json`. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_generation_json(
    engine: *const qwen_engine,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_generation_json", err, || {
        let defaults = |engine: &Engine| {
            let mut values = fields::generation_values(&engine.generation_defaults());
            // Drawn anew for every reply: it is nobody's value.
            values.remove("seed");
            Value::Object(values)
        };
        // SAFETY: the caller gives a live engine or NULL.
        unsafe { engine_json(engine, json, defaults) }
    })
}

/// QWEN_OK while the engine can serve; the reason otherwise (QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_FORKED). Any thread; never waits for the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_health(
    engine: *const qwen_engine,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_health", err, || {
        // SAFETY: the caller gives a live engine or NULL.
        unsafe { handle("engine", engine) }?.health()
    })
}

/// Ends the engine's work; `how` is QWEN_SHUTDOWN_DRAIN or QWEN_SHUTDOWN_CANCEL. Waits at most
/// `timeout_ms` milliseconds, for ever if that is negative. Later calls answer QWEN_E_CLOSED; the
/// handle is still to be freed. Any thread, any number of times.
///
/// Errors: QWEN_E_TIMEOUT when it has not ended in that time (the shutdown goes on; an idle engine,
/// too, needs a moment); QWEN_E_ARG.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_shutdown(
    engine: *mut qwen_engine,
    how: i32,
    timeout_ms: i64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_engine_shutdown", err, || {
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        let how = match how {
            QWEN_SHUTDOWN_DRAIN => Shutdown::Drain,
            QWEN_SHUTDOWN_CANCEL => Shutdown::Cancel,
            other => {
                let reason = format!("{other} is neither of QWEN_SHUTDOWN_*");
                return Err(Error::Argument { argument: "how", reason });
            }
        };
        // For ever, in the largest number that can be added to a clock.
        const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);
        let timeout = u64::try_from(timeout_ms).map_or(FOR_EVER, Duration::from_millis);
        engine.shutdown(how, timeout.min(FOR_EVER))
    })
}

/// Frees an engine handle. Requests still running are cancelled unless a session or another handle
/// shares the engine. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_engine_free(engine: *mut qwen_engine) {
    // SAFETY: the caller gives NULL or an engine it owns, and uses it no more.
    unsafe { free("qwen_engine_free", engine) }
}
