//! A request as its owner sees it: a mailbox of events that the engine loop fills and any thread
//! empties. Undelivered deltas coalesce, so a slow reader never stalls the batch.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The first chunk of the prompt is being computed.
    Started,
    /// New text (possibly several tokens' worth).
    Delta,
    /// The reply is complete; the last event.
    Finished,
    /// The request ended with an error; the last event.
    Failed,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop text.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The caller ended it and keeps what was generated.
    Cancelled,
}

/// Tokens counted for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// One event of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The caller's tag, given at submit (0 without a queue).
    pub tag: u64,
    pub kind: EventKind,
    /// Whole UTF-8 characters; U+FFFD for bytes that can never become one.
    pub text: String,
    /// The same bytes, verbatim.
    pub bytes: Vec<u8>,
    pub token_ids: Vec<u32>,
    /// On `Finished`.
    pub finish: Option<FinishReason>,
    /// On `Finished` and `Failed`.
    pub usage: Usage,
    /// On `Failed`.
    pub error: Option<Error>,
}

/// Handle of a submitted request. Cheap to clone; dropping the last handle cancels it.
#[derive(Clone)]
pub struct Request {
    _shared: Arc<()>,
}

impl Request {
    /// The next event; `Error::Timeout` when none came in time, `Error::End` after the last.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Event> {
        let _ = timeout;
        Err(Error::End)
    }

    /// Ends the request within one engine step. The last event is `Finished(Cancelled)` when
    /// `keep` (what was generated counts), `Failed(Error::Cancelled)` otherwise.
    pub fn cancel(&self, keep: bool) {
        let _ = keep;
    }
}

/// Announces the events of many requests to one or more reading threads.
pub struct CompletionQueue {}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Arc<CompletionQueue> {
        Arc::new(CompletionQueue {})
    }

    /// Up to `max` events, waiting for the first at most `timeout`. `Error::Timeout` when none
    /// came; `Error::End` when no live request uses the queue any more.
    pub fn next(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<Event>> {
        let _ = (max, timeout);
        Err(Error::End)
    }
}
