//! How likely the model found the tokens of an event: by index and rank, and as JSON.

use std::mem::MaybeUninit;

use serde_json::{Value, json};

use super::arguments::{Out, check_struct_size};
use super::buffers::qwen_buf;
use super::errors::qwen_error;
use super::event::qwen_event;
use super::guard::{guard, guard_value};
use crate::engine::{Logprob, TokenLogprobs};
use crate::error::{Error, Result};

/// A token and how likely the model found it. Later versions may add fields at the end and grow
/// struct_size.
#[repr(C)]
pub struct qwen_logprob {
    /// Set to sizeof(qwen_logprob) by the caller; bytes filled, afterwards.
    pub struct_size: u32,
    /// The token's id.
    pub id: u32,
    /// Natural logarithm of its probability: the log-softmax of the model's own logits over the
    /// vocabulary, before logit_bias, penalties, temperature and everything after it. NaN of the first
    /// token of an echo, which nothing comes before.
    pub logprob: f64,
    /// The token's bytes, of a control token those of its name. Not always whole characters. They live
    /// as long as the event.
    pub bytes: *const u8,
    /// Their number.
    pub bytes_len: u64,
}

/// The number of tokens that the event has log-probabilities of: with the option logprobs all of
/// qwen_event_tokens, in their order; 0 without, and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_num_logprobs(event: *const qwen_event) -> u64 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_num_logprobs", 0, || {
        event.map_or(0, |event| event.event().logprobs.len() as u64)
    })
}

/// The number of likeliest tokens that are known in place of token `index`, as the option top_logprobs
/// says; 0 beyond the last token, and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_num_top_logprobs(event: *const qwen_event, index: u64) -> u64 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_num_top_logprobs", 0, || {
        event.and_then(|event| token_at(event, index)).map_or(0, |token| token.top.len() as u64)
    })
}

/// Fills `logprob`: of token `index` of the event where `rank` is 0, of the likeliest token in its
/// place where it is 1, of the next where it is 2. Set `logprob->struct_size` first. An event is
/// immutable: any thread.
///
/// Errors: QWEN_E_ARG for an index or rank that is not there, or a struct_size that no version had.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_logprob(
    event: *const qwen_event,
    index: u64,
    rank: u64,
    logprob: *mut qwen_logprob,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_event_logprob", err, || {
        // SAFETY: the caller gives NULL or a live event.
        let event = unsafe { event.as_ref() }.ok_or(Error::Null { argument: "event" })?;
        if logprob.is_null() {
            return Err(Error::Null { argument: "logprob" });
        }
        // SAFETY: every version of the struct begins with this field, which the caller has set.
        let given_bytes = unsafe { (*logprob).struct_size };
        check_struct_size("logprob", given_bytes, size_of::<qwen_logprob>())?;
        let found = ranked(event, index, rank)?;
        let filled = qwen_logprob {
            struct_size: size_of::<qwen_logprob>() as u32,
            id: found.id,
            logprob: found.logprob,
            bytes: found.bytes.as_ptr(),
            bytes_len: found.bytes.len() as u64,
        };
        // SAFETY: the caller's struct is at least this large, by its own word.
        unsafe { logprob.write(filled) };
        Ok(())
    })
}

/// All log-probabilities of the event, as JSON in the form of OpenAI's chat API:
/// `[{"token", "id", "logprob", "bytes", "top_logprobs": [{"token", "id", "logprob", "bytes"}...]}...]`;
/// "token" is text, with U+FFFD for what is no UTF-8; "logprob" is null where there is none. The caller frees `json`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_logprobs_json(
    event: *const qwen_event,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_event_logprobs_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives NULL or a live event.
        let event = unsafe { event.as_ref() }.ok_or(Error::Null { argument: "event" })?;
        let tokens = event.event().logprobs.iter().map(token_json).collect();
        json.give(qwen_buf::new(Value::Array(tokens).to_string()));
        Ok(())
    })
}

fn token_at(event: &qwen_event, index: u64) -> Option<&TokenLogprobs> {
    event.event().logprobs.get(usize::try_from(index).ok()?)
}

fn ranked(event: &qwen_event, index: u64, rank: u64) -> Result<&Logprob> {
    let missing = |argument, number: u64| Error::Argument {
        argument,
        reason: format!("{number} is beyond what the event has"),
    };
    let token = token_at(event, index).ok_or_else(|| missing("index", index))?;
    match rank.checked_sub(1) {
        None => Ok(&token.token),
        Some(at) => usize::try_from(at)
            .ok()
            .and_then(|at| token.top.get(at))
            .ok_or_else(|| missing("rank", rank)),
    }
}

/// One token with its likeliest, as JSON.
pub(super) fn token_json(token: &TokenLogprobs) -> Value {
    let mut object = entry_json(&token.token);
    object["top_logprobs"] = token.top.iter().map(entry_json).collect();
    object
}

fn entry_json(entry: &Logprob) -> Value {
    json!({
        "token": String::from_utf8_lossy(&entry.bytes),
        "id": entry.id,
        "logprob": entry.logprob,
        "bytes": entry.bytes,
    })
}
