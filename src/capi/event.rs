//! `qwen_event`: one piece of news of one request, and how a callback is told of it.

use std::ffi::{c_char, c_void};
use std::mem::{MaybeUninit, offset_of};

use super::arguments::free;
use super::buffers::qwen_buf;
use super::codes::{QWEN_CANCEL, QWEN_CONTINUE, QWEN_STOP};
use super::errors::qwen_error;
use super::guard::{guard, guard_value};
use super::tool_call::ToolCallTexts;
use crate::engine::session::Flow;
use crate::engine::{Event, EventKind, FinishReason};
use crate::error::{Error, Result};

/// Kind of an event: the prompt is being computed.
pub const QWEN_EVENT_STARTED: i32 = 1;
/// Kind of an event: new text.
pub const QWEN_EVENT_DELTA: i32 = 2;
/// Kind of an event: the reply is complete, or with n > 1 all of them; the request's last event. It may
/// bring text, too.
pub const QWEN_EVENT_FINISHED: i32 = 3;
/// Kind of an event: the request ended with an error; its last event.
pub const QWEN_EVENT_FAILED: i32 = 4;
/// Kind of an event, with n > 1 only: one of the replies is complete.
pub const QWEN_EVENT_CHOICE_FINISHED: i32 = 5;
/// Kind of an event, with tools: new text that the model says to itself, and not to the reader.
pub const QWEN_EVENT_THOUGHT: i32 = 6;
/// Kind of an event, with tools: new text of a call's arguments as the model writes them, to show and
/// not to act upon. qwen_event_tool_name and qwen_event_tool_id say of which call.
pub const QWEN_EVENT_TOOL_DELTA: i32 = 7;
/// Kind of an event, with tools: the model calls a tool. qwen_event_tool_name, _tool_arguments,
/// _tool_arguments_form and _tool_id tell how. A reply has one call at most.
pub const QWEN_EVENT_TOOL_CALL: i32 = 8;

/// Reason of an end: the model, or a stop text or id, ended the reply.
pub const QWEN_FINISH_STOP: i32 = 1;
/// Reason of an end: max_tokens is reached, or the context is full.
pub const QWEN_FINISH_LENGTH: i32 = 2;
/// Reason of an end: the caller ended the reply and keeps it.
pub const QWEN_FINISH_CANCELLED: i32 = 3;
/// Reason of an end: the model called a tool, and waits for its result.
pub const QWEN_FINISH_TOOL_CALLS: i32 = 4;

/// Tokens counted. Later versions may add fields at the end and grow struct_size.
#[repr(C)]
pub struct qwen_usage {
    /// Set to sizeof(qwen_usage) by the caller; bytes filled, afterwards.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the reply.
    pub completion_tokens: u64,
    /// Tokens of the prompt that were not computed, because the prefix cache had them.
    pub cached_tokens: u64,
}

/// The sizes that qwen_usage has had, oldest first: what callers may have been compiled with.
const USAGE_BYTES: [usize; 2] = [offset_of!(qwen_usage, cached_tokens), size_of::<qwen_usage>()];

/// News of a request: its beginning, new text, its end. Immutable: any thread may read it. The
/// function that gives an event says who frees it.
pub struct qwen_event {
    event: Event,
    text: qwen_buf,
    tool_call: Option<ToolCallTexts>,
    error: Option<qwen_error>,
}

impl qwen_event {
    /// The C object of `event`.
    pub(super) fn new(event: Event) -> qwen_event {
        let text = qwen_buf::new(event.text.as_bytes());
        let tool_call = event.tool_call.as_ref().map(ToolCallTexts::new);
        let error = event.error.as_ref().map(qwen_error::new);
        qwen_event { event, text, tool_call, error }
    }

    /// The call that the event tells of.
    pub(super) fn tool_call(&self) -> Option<&ToolCallTexts> {
        self.tool_call.as_ref()
    }

    pub(super) fn event(&self) -> &Event {
        &self.event
    }
}

/// Is told of the events of one request, in order, on the thread that made the call. `event` lives
/// until it returns. Result: QWEN_CONTINUE, QWEN_STOP or QWEN_CANCEL; anything else cancels with
/// QWEN_E_CALLBACK. It must not throw or longjmp, and must not use the object that calls it, except
/// to cancel or free it (QWEN_E_REENTRANT otherwise).
pub type qwen_event_fn =
    Option<unsafe extern "C" fn(event: *const qwen_event, user: *mut c_void) -> i32>;

/// Tells a callback, and understands its answers.
pub(super) struct Listener {
    on_event: qwen_event_fn,
    user: *mut c_void,
    /// What the callback returned, where that means nothing.
    refused: Option<i32>,
}

impl Listener {
    /// A listener for `on_event`; without one, every answer is to go on.
    pub(super) fn new(on_event: qwen_event_fn, user: *mut c_void) -> Listener {
        Listener { on_event, user, refused: None }
    }

    /// Tells of `event`; what the callback wants next.
    pub(super) fn tell(&mut self, event: &Event) -> Flow {
        let Some(on_event) = self.on_event else { return Flow::Continue };
        let event = qwen_event::new(event.clone());
        // SAFETY: `event` lives through the call; `user` is the caller's own.
        match unsafe { on_event(&raw const event, self.user) } {
            QWEN_CONTINUE => Flow::Continue,
            QWEN_STOP => Flow::Stop,
            QWEN_CANCEL => Flow::Cancel,
            returned => {
                self.refused = Some(returned);
                Flow::Cancel
            }
        }
    }

    /// `result`, unless the callback gave an answer that means nothing.
    pub(super) fn verdict(self, result: Result<()>) -> Result<()> {
        self.refused.map_or(result, |returned| Err(Error::Callback { returned }))
    }
}

/// Whether ending a reply in the way `how` keeps it.
pub(super) fn keeps(how: i32) -> Result<bool> {
    match how {
        QWEN_STOP => Ok(true),
        QWEN_CANCEL => Ok(false),
        other => {
            let reason = format!("{other} is neither QWEN_STOP nor QWEN_CANCEL");
            Err(Error::Argument { argument: "how", reason })
        }
    }
}

/// The tag given when the request was submitted; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tag(event: *const qwen_event) -> u64 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tag", 0, || event.map_or(0, |event| event.event.tag))
}

/// One of QWEN_EVENT_*; 0 for NULL. Later versions may add kinds: pass over those you do not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_kind(event: *const qwen_event) -> i32 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_kind", 0, || {
        event.map_or(0, |event| match event.event.kind {
            EventKind::Started => QWEN_EVENT_STARTED,
            EventKind::Delta => QWEN_EVENT_DELTA,
            EventKind::Finished => QWEN_EVENT_FINISHED,
            EventKind::Failed => QWEN_EVENT_FAILED,
            EventKind::ChoiceFinished => QWEN_EVENT_CHOICE_FINISHED,
            EventKind::Thought => QWEN_EVENT_THOUGHT,
            EventKind::ToolDelta => QWEN_EVENT_TOOL_DELTA,
            EventKind::ToolCall => QWEN_EVENT_TOOL_CALL,
        })
    })
}

/// Which of the n replies the event is about, from 0; 0 for one about all of them, and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_choice(event: *const qwen_event) -> u32 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_choice", 0, || event.map_or(0, |event| event.event.choice))
}

/// The new text: whole UTF-8 characters always, a NUL behind them; "" where there is none. `len`
/// (or NULL) receives its bytes. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_text(
    event: *const qwen_event,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const c_char {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_text", c"".as_ptr(), || {
        let text = event.map(|event| &event.text);
        put(len, text.map_or(0, |text| text.content().len() as u64));
        text.map_or(c"".as_ptr(), qwen_buf::pointer)
    })
}

/// The bytes the model wrote for this text. They differ from it where the model wrote no UTF-8,
/// which is U+FFFD in the text. `len` (or NULL) receives their number. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_bytes(
    event: *const qwen_event,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const u8 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_bytes", std::ptr::null(), || {
        put(len, event.map_or(0, |event| event.event.bytes.len() as u64));
        event.map_or(std::ptr::null(), |event| event.event.bytes.as_ptr())
    })
}

/// The ids of the tokens generated since the last event. `num_ids` (or NULL) receives their
/// number. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tokens(
    event: *const qwen_event,
    num_ids: Option<&mut MaybeUninit<u64>>,
) -> *const u32 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tokens", std::ptr::null(), || {
        put(num_ids, event.map_or(0, |event| event.event.token_ids.len() as u64));
        event.map_or(std::ptr::null(), |event| event.event.token_ids.as_ptr())
    })
}

/// Tells a length, where it is asked for.
pub(super) fn put(place: Option<&mut MaybeUninit<u64>>, value: u64) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// Why the reply ended: one of QWEN_FINISH_*, on a QWEN_EVENT_CHOICE_FINISHED, and on a
/// QWEN_EVENT_FINISHED (of several replies the one that ended last); 0 otherwise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_finish_reason(event: *const qwen_event) -> i32 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_finish_reason", 0, || {
        event.and_then(|event| event.event.finish).map_or(0, |reason| match reason {
            FinishReason::Stop => QWEN_FINISH_STOP,
            FinishReason::Length => QWEN_FINISH_LENGTH,
            FinishReason::Cancelled => QWEN_FINISH_CANCELLED,
            FinishReason::ToolCalls => QWEN_FINISH_TOOL_CALLS,
        })
    })
}

/// Why the request failed, on a QWEN_EVENT_FAILED; NULL otherwise. Lives as long as the event: do
/// not free it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_error(event: *const qwen_event) -> *const qwen_error {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_error", std::ptr::null(), || {
        let error = event.and_then(|event| event.error.as_ref());
        error.map_or(std::ptr::null(), std::ptr::from_ref)
    })
}

/// Fills `usage` with the tokens counted: of the whole request on a QWEN_EVENT_FINISHED or _FAILED, its
/// prompt once; of one reply on a QWEN_EVENT_CHOICE_FINISHED; 0 otherwise. Set `usage->struct_size` first.
///
/// Errors: QWEN_E_ARG for a struct_size that no version had.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_usage(
    event: *const qwen_event,
    usage: *mut qwen_usage,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_event_usage", err, || {
        // SAFETY: the caller gives NULL or a live event.
        let event = unsafe { event.as_ref() }.ok_or(Error::Null { argument: "event" })?;
        if usage.is_null() {
            return Err(Error::Null { argument: "usage" });
        }
        // SAFETY: every version of the struct begins with this field, which the caller has set.
        let given_bytes = unsafe { (*usage).struct_size };
        let fits = |size: &&usize| **size <= given_bytes as usize;
        let size_bytes = *USAGE_BYTES.iter().rev().find(fits).ok_or_else(|| {
            let reason = format!("struct_size {given_bytes} is too small");
            Error::Argument { argument: "usage", reason }
        })?;
        let filled = qwen_usage {
            struct_size: size_bytes as u32,
            reserved: 0,
            prompt_tokens: event.event.usage.prompt_tokens,
            completion_tokens: event.event.usage.completion_tokens,
            cached_tokens: event.event.usage.cached_tokens,
        };
        // SAFETY: the caller's struct is at least this large, by its own word; `filled` has no gaps.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const filled).cast::<u8>(),
                usage.cast(),
                size_bytes,
            );
        }
        Ok(())
    })
}

/// Frees an event. Not for events that a callback or a list lends. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_free(event: *mut qwen_event) {
    // SAFETY: the caller gives NULL or an event it owns, and uses it no more.
    unsafe { free("qwen_event_free", event) }
}
