//! `qwen_score`: how likely the model finds a continuation of a context.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use serde_json::{Value, json};

use super::arguments::{Out, array, handle, optional, text};
use super::buffers::qwen_buf;
use super::engine::qwen_engine;
use super::errors::qwen_error;
use super::guard::guard;
use super::logprobs::token_json;
use super::options::{Options, generation_params, qwen_options};
use crate::engine::{Engine, Score};
use crate::error::Result;

/// How likely the model finds `continuation` behind `context`, which the model gets as it is, without a
/// chat's form; an empty context stands for <|endoftext|>. Both are encoded as one text, and the
/// continuation is what has more tokens than the context alone. Text that looks like a control token is
/// text. Waits for the result, which goes through the batch with all other requests, a few tokens per
/// step: any thread, several at once. `options`: generation options, or NULL, of which top_logprobs,
/// priority, deadline_ms and queue_timeout_ms count.
///
/// `json`, which the caller frees: `{"logprob", "is_greedy", "tokens": [{"token", "id", "logprob",
/// "bytes", "is_greedy", "top_logprobs": [...]}...]}`: the sum over the tokens of the continuation, whether
/// each of them is the likeliest in its place, and each of them as qwen_event_logprobs_json has it.
///
/// Errors: QWEN_E_ARG for a continuation without a token; QWEN_E_UTF8, QWEN_E_OPTION,
/// QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL, QWEN_E_DEADLINE, QWEN_E_TIMEOUT, QWEN_E_NOT_FINITE,
/// QWEN_E_CANCELLED by a shutdown, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_score(
    engine: *const qwen_engine,
    context: *const c_char,
    context_len: u64,
    continuation: *const c_char,
    continuation_len: u64,
    options: *const qwen_options,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_score", err, || {
        let out = Out::new("json", json)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives a text as the header says.
        let context = unsafe { text("context", context, context_len) }?;
        // SAFETY: the caller gives a text as the header says.
        let continuation = unsafe { text("continuation", continuation, continuation_len) }?;
        let (context, continuation) = engine.encode_to_score(context, continuation)?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        out.give(qwen_buf::new(score(&engine, &context, &continuation, options)?.to_string()));
        Ok(())
    })
}

/// The same of token ids; an empty context is an error then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_score_tokens(
    engine: *const qwen_engine,
    context: *const u32,
    num_context: u64,
    continuation: *const u32,
    num_continuation: u64,
    options: *const qwen_options,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_score_tokens", err, || {
        let out = Out::new("json", json)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives `num_context` ids.
        let context = unsafe { array("context", context, num_context) }?;
        // SAFETY: the caller gives `num_continuation` ids.
        let continuation = unsafe { array("continuation", continuation, num_continuation) }?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        out.give(qwen_buf::new(score(&engine, context, continuation, options)?.to_string()));
        Ok(())
    })
}

fn score(
    engine: &Engine,
    context: &[u32],
    continuation: &[u32],
    options: Option<Arc<Options>>,
) -> Result<Value> {
    let params = generation_params(options, engine.generation_defaults())?;
    let Score { logprob, tokens } = engine.score(context, continuation, &params)?;
    let described = tokens.iter().map(|scored| {
        let mut object = token_json(&scored.logprobs);
        object["is_greedy"] = scored.is_greedy.into();
        object
    });
    let described: Vec<Value> = described.collect();
    let is_greedy = tokens.iter().all(|scored| scored.is_greedy);
    Ok(json!({ "logprob": logprob, "is_greedy": is_greedy, "tokens": described }))
}
