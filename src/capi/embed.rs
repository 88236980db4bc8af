//! `qwen_embed`: a text's final hidden states.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::arguments::{Out, array, handle, optional, text};
use super::buffers::qwen_floats;
use super::engine::qwen_engine;
use super::errors::qwen_error;
use super::guard::guard;
use super::options::{Options, generation_params, qwen_options};
use crate::engine::{Engine, Pooling};
use crate::error::{Error, Result};

/// For qwen_embed: the state of the last token, which has seen all others.
pub const QWEN_POOL_LAST: i32 = 1;
/// For qwen_embed: the mean over all tokens.
pub const QWEN_POOL_MEAN: i32 = 2;
/// For qwen_embed: the states of all tokens, in order.
pub const QWEN_POOL_NONE: i32 = 3;

/// The model's hidden states of `text` behind its last norm, hidden_size of qwen_engine_info_json numbers
/// for each; `pooling` (QWEN_POOL_*) says of which tokens. With `normalize` other than 0 each is scaled to
/// length 1. They are a chat model's states, from which it draws the next token; nothing has trained them
/// as embeddings: compare them with those of the same model and pooling only, and measure before you rely
/// on it. The model gets the text as it is, without a chat's form; what looks like a control token is text.
/// Waits for the result, which goes through the batch with all other requests: any thread, several at
/// once. `options`: generation options, or NULL, of which priority, deadline_ms, queue_timeout_ms and, with
/// QWEN_POOL_LAST, cache count. The caller frees `states`. With QWEN_POOL_NONE they take 4 * hidden_size bytes
/// a token.
///
/// Errors: QWEN_E_ARG for a text without a token or another `pooling`; QWEN_E_UTF8, QWEN_E_OPTION,
/// QWEN_E_CONTEXT_FULL, QWEN_E_OOM_HOST, QWEN_E_QUEUE_FULL, QWEN_E_DEADLINE, QWEN_E_TIMEOUT,
/// QWEN_E_NOT_FINITE, QWEN_E_CANCELLED by a shutdown, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_embed(
    engine: *const qwen_engine,
    text: *const c_char,
    text_len: u64,
    pooling: i32,
    normalize: u8,
    options: *const qwen_options,
    states: Option<&mut MaybeUninit<*mut qwen_floats>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_embed", err, || {
        let out = Out::new("states", states)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives a text as the header says.
        let text = unsafe { self::text("text", text, text_len) }?;
        let tokens = engine.encode_to_embed(text)?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        out.give(embed(&engine, &tokens, (pooling, normalize), options)?);
        Ok(())
    })
}

/// The same of token ids.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_embed_tokens(
    engine: *const qwen_engine,
    ids: *const u32,
    num_ids: u64,
    pooling: i32,
    normalize: u8,
    options: *const qwen_options,
    states: Option<&mut MaybeUninit<*mut qwen_floats>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_embed_tokens", err, || {
        let out = Out::new("states", states)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives `num_ids` ids.
        let ids = unsafe { array("ids", ids, num_ids) }?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        out.give(embed(&engine, ids, (pooling, normalize), options)?);
        Ok(())
    })
}

fn embed(
    engine: &Engine,
    tokens: &[u32],
    (pooling, normalize): (i32, u8),
    options: Option<Arc<Options>>,
) -> Result<qwen_floats> {
    let pooling = match pooling {
        QWEN_POOL_LAST => Pooling::Last,
        QWEN_POOL_MEAN => Pooling::Mean,
        QWEN_POOL_NONE => Pooling::None,
        other => {
            let reason = format!("{other} is none of QWEN_POOL_*");
            return Err(Error::Argument { argument: "pooling", reason });
        }
    };
    let params = generation_params(options, engine.generation_defaults())?;
    engine.embed(tokens, (pooling, normalize != 0), &params).map(qwen_floats::new)
}
