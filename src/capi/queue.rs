//! `qwen_queue`: the events of many requests, for one reader or several.

use std::mem::MaybeUninit;
use std::sync::Arc;

use super::arguments::{Handle, Out, free, handle, timeout};
use super::errors::qwen_error;
use super::event::qwen_event;
use super::guard::{guard, guard_value};
use crate::engine::CompletionQueue;
use crate::error::Error;

/// A completion queue: the events of many requests, each with its request's tag. Any thread may
/// use it, and several at once. Free it with qwen_queue_free.
pub struct qwen_queue(Arc<CompletionQueue>);

impl Handle for qwen_queue {
    type Inside = Arc<CompletionQueue>;
    fn inside(&self) -> &Arc<CompletionQueue> {
        &self.0
    }
}

/// Several events at once. Owned by the caller, immutable: any thread may read it. Free it with
/// qwen_events_free.
pub struct qwen_events {
    events: Vec<qwen_event>,
}

/// Makes an empty queue. The caller frees `queue`. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_queue_new(
    queue: Option<&mut MaybeUninit<*mut qwen_queue>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_queue_new", err, || {
        Out::new("queue", queue)?.give(qwen_queue(CompletionQueue::new()));
        Ok(())
    })
}

/// Waits for the first event, at most `timeout_ms` milliseconds, for ever if that is negative, and
/// takes up to `max_events` that are there. Events of one request are in order. The caller frees
/// `events`. Any thread, several at once; each event goes to one of them.
///
/// Errors: QWEN_E_TIMEOUT; QWEN_E_END when no live request uses the queue; QWEN_E_ARG for
/// `max_events` 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_queue_next(
    queue: *mut qwen_queue,
    max_events: u64,
    timeout_ms: i64,
    events: Option<&mut MaybeUninit<*mut qwen_events>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_queue_next", err, || {
        let out = Out::new("events", events)?;
        // SAFETY: the caller gives a live queue or NULL.
        let queue = unsafe { handle("queue", queue) }?;
        if max_events == 0 {
            let reason = "wants at least 1".to_string();
            return Err(Error::Argument { argument: "max_events", reason });
        }
        let max = usize::try_from(max_events).unwrap_or(usize::MAX);
        let events = queue.next(max, timeout(timeout_ms))?;
        out.give(qwen_events { events: events.into_iter().map(qwen_event::new).collect() });
        Ok(())
    })
}

/// The number of events; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_events_len(events: *const qwen_events) -> u64 {
    // SAFETY: the caller gives NULL or a live list.
    let events = unsafe { events.as_ref() };
    guard_value("qwen_events_len", 0, || events.map_or(0, |list| list.events.len() as u64))
}

/// Event `index`, counted from 0; NULL beyond the last. Lives as long as the list: do not free it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_events_at(
    events: *const qwen_events,
    index: u64,
) -> *const qwen_event {
    // SAFETY: the caller gives NULL or a live list.
    let events = unsafe { events.as_ref() };
    guard_value("qwen_events_at", std::ptr::null(), || {
        let event = events.and_then(|list| list.events.get(usize::try_from(index).ok()?));
        event.map_or(std::ptr::null(), std::ptr::from_ref)
    })
}

/// Frees a list and its events. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_events_free(events: *mut qwen_events) {
    // SAFETY: the caller gives NULL or a list it owns, and uses it no more.
    unsafe { free("qwen_events_free", events) }
}

/// Frees a queue. Requests that use it go on, and their events are kept for nobody. NULL is
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_queue_free(queue: *mut qwen_queue) {
    // SAFETY: the caller gives NULL or a queue it owns, and uses it no more.
    unsafe { free("qwen_queue_free", queue) }
}
