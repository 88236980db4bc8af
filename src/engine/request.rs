//! A request as its owner sees it: a mailbox of events that the engine loop fills and any thread
//! empties. Undelivered deltas coalesce, so a slow reader never stalls the batch.
//!
//! Order of events: `Started` (absent when the request ended before its first step), any number of
//! `Delta` (with tools also `Thought` and `ToolDelta`, and one `ToolCall` at most, last), then exactly
//! one `Finished` or `Failed`. Where several replies were asked for, each has its own news and one
//! `ChoiceFinished` behind it, unless it failed.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::engine::calls::{Part, ToolCallNews};
use crate::engine::completion::CompletionQueue;
use crate::engine::logits::{Drawn, TokenLogprobs};
use crate::engine::mail::Mail;
use crate::error::{Error, Result};
use crate::text::TextDelta;

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The first chunk of the prompt is being computed.
    Started,
    /// New text (possibly several tokens' worth).
    Delta,
    /// New text that the model says to itself before it answers or calls a tool.
    Thought,
    /// New text of a call's arguments, as the model writes them: to show, not to act upon.
    ToolDelta,
    /// The model calls a tool: name and arguments are complete.
    ToolCall,
    /// One of several replies is complete; more will come.
    ChoiceFinished,
    /// The reply is complete, or all of several are; the last event.
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
    /// The model called a tool and waits for its result.
    ToolCalls,
}

/// Tokens counted for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, control tokens included.
    pub prompt_tokens: u64,
    /// Tokens of the reply; a stop token is not part of it.
    pub completion_tokens: u64,
    /// Tokens of the prompt that were not computed, because the prefix cache had them.
    pub cached_tokens: u64,
}

/// One event of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The caller's tag, given at submit (0 without a queue).
    pub tag: u64,
    /// What the event says.
    pub kind: EventKind,
    /// Which of several replies it is about, from 0; 0 where it is about all.
    pub choice: u32,
    /// Whole UTF-8 characters; U+FFFD for bytes that can never become one.
    pub text: String,
    /// The same bytes, verbatim.
    pub bytes: Vec<u8>,
    /// Ids drawn since the last delta; their text may still be held back.
    pub token_ids: Vec<u32>,
    /// Of each of these ids, or empty where nobody asked.
    pub logprobs: Vec<TokenLogprobs>,
    /// On `ToolDelta` and `ToolCall`.
    pub tool_call: Option<ToolCallNews>,
    /// On `Finished`, of several replies the one that ended last; on `ChoiceFinished`.
    pub finish: Option<FinishReason>,
    /// On `Finished` and `Failed`, of all replies; on `ChoiceFinished` of that one.
    pub usage: Usage,
    /// On `Failed`.
    pub error: Option<Error>,
}

impl Event {
    pub(super) fn new(tag: u64, kind: EventKind) -> Event {
        Event {
            tag,
            kind,
            choice: 0,
            text: String::new(),
            bytes: Vec::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            tool_call: None,
            finish: None,
            usage: Usage::default(),
            error: None,
        }
    }
}

/// Handle of a submitted request. Cheap to clone; dropping the last handle cancels it. It does not
/// keep the engine alive: requests outstanding when an engine goes end as cancelled.
#[derive(Clone)]
pub struct Request {
    handle: Arc<Handle>,
}

/// What the clones of a `Request` share; its drop is the drop of the last of them.
struct Handle {
    mailbox: Arc<Mailbox>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mailbox.cancel(false);
    }
}

impl Request {
    /// A request that no engine has yet; `queue` will learn of its events. Its owner can let others
    /// cancel it before it is submitted (once): it then ends before its first step. A wish that is
    /// kept elsewhere and passed on after the submit comes too late for a short reply.
    pub(crate) fn prepared(queue: Option<(Arc<CompletionQueue>, u64)>) -> Request {
        Request { handle: Arc::new(Handle { mailbox: Mailbox::new(queue) }) }
    }

    /// Where the loop posts.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.handle.mailbox
    }

    /// What `cancel` was told first, if it was called.
    pub(crate) fn cancelled(&self) -> Option<bool> {
        self.handle.mailbox.cancel_wish().map(|wish| wish == Cancel::Keep)
    }

    /// The next event; waits at most `timeout` (`None`: as long as it takes). `Error::Timeout` when
    /// none came in time, `Error::End` after the last.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Event> {
        self.handle.mailbox.next(timeout)
    }

    /// Ends the request within one engine step. The last event is `Finished(Cancelled)` when
    /// `keep` (what was generated counts), `Failed(Error::Cancelled)` otherwise. Of several calls
    /// the first decides; a request that has ended stays as it is.
    pub fn cancel(&self, keep: bool) {
        self.handle.mailbox.cancel(keep);
    }
}

/// How a caller wants a request to end before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    Keep,
    Drop,
}

const CANCEL_NONE: u8 = 0;
const CANCEL_KEEP: u8 = 1;
const CANCEL_DROP: u8 = 2;

/// Between the loop, which posts, and the owner, who takes.
pub(crate) struct Mailbox {
    tag: u64,
    /// After a fork the loop thread is gone and the lock may be held for ever.
    process_id: u32,
    /// When its owner called.
    submitted: Instant,
    cancel: AtomicU8,
    has_started: AtomicBool,
    /// Weak: a queue its owner has dropped must not live on in the requests it announced.
    queue: Weak<CompletionQueue>,
    mail: Mutex<Mail>,
    arrived: Condvar,
}

impl Mailbox {
    /// An empty mailbox; `queue` learns of its events.
    fn new(queue: Option<(Arc<CompletionQueue>, u64)>) -> Arc<Mailbox> {
        let tag = queue.as_ref().map_or(0, |(_, tag)| *tag);
        let queue = queue.map_or_else(Weak::new, |(queue, _)| Arc::downgrade(&queue));
        Arc::new(Mailbox {
            tag,
            process_id: std::process::id(),
            submitted: Instant::now(),
            cancel: AtomicU8::new(CANCEL_NONE),
            has_started: AtomicBool::new(false),
            queue,
            mail: Mutex::new(Mail::default()),
            arrived: Condvar::new(),
        })
    }

    /// The request was accepted, with so many choices: from now on its queue waits for its last event.
    pub(crate) fn accepted(&self, num_choices: usize) {
        self.mail.lock().open(num_choices);
        if let Some(queue) = self.queue.upgrade() {
            queue.attach();
        }
    }

    fn cancel(&self, keep: bool) {
        let wish = if keep { CANCEL_KEEP } else { CANCEL_DROP };
        // Fails when somebody was first, whose wish stands.
        let _ =
            self.cancel.compare_exchange(CANCEL_NONE, wish, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What the owner wants, as the loop asks in every step. No lock: a step looks at all requests.
    pub(crate) fn cancel_wish(&self) -> Option<Cancel> {
        match self.cancel.load(Ordering::Relaxed) {
            CANCEL_NONE => None,
            CANCEL_KEEP => Some(Cancel::Keep),
            _ => Some(Cancel::Drop),
        }
    }

    /// One of the choices has begun; only the first is news.
    pub(crate) fn post_started(self: &Arc<Self>) {
        if !self.has_started.swap(true, Ordering::Relaxed) {
            self.post(Mail::start);
        }
    }

    /// When its owner called, before the prompt was encoded.
    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    pub(crate) fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Relaxed)
    }

    /// Adds text (which may be empty while the stream holds it back) and the tokens it came from.
    pub(crate) fn post_delta(
        self: &Arc<Self>,
        choice: usize,
        delta: TextDelta,
        drawn: impl IntoIterator<Item = Drawn>,
    ) {
        let part = Part::text(EventKind::Delta, delta.text, delta.bytes);
        self.post_parts(choice, vec![part], drawn);
    }

    /// Adds parts of a reply, in order, and the tokens they came from.
    pub(crate) fn post_parts(
        self: &Arc<Self>,
        choice: usize,
        parts: Vec<Part>,
        drawn: impl IntoIterator<Item = Drawn>,
    ) {
        self.post(|mail| mail.add(choice, parts, drawn));
    }

    /// Ends one choice. If it failed, the others shall end, too.
    pub(crate) fn post_end(
        self: &Arc<Self>,
        choice: usize,
        outcome: Result<FinishReason>,
        usage: Usage,
    ) {
        if outcome.is_err() {
            self.cancel(false);
        }
        self.post(|mail| mail.end(self.tag, choice, outcome, usage));
    }

    /// Changes the mail and wakes whoever waits for it. The queue is told after the mail's lock is
    /// released, so no thread ever holds both.
    fn post(self: &Arc<Self>, change: impl FnOnce(&mut Mail)) {
        let mut mail = self.mail.lock();
        if mail.is_over() {
            return;
        }
        change(&mut mail);
        if !mail.is_ready() {
            return;
        }
        self.arrived.notify_all();
        let announced = std::mem::replace(&mut mail.announced, true);
        drop(mail);
        if !announced && let Some(queue) = self.queue.upgrade() {
            queue.announce(Arc::clone(self));
        }
    }

    fn next(&self, timeout: Option<Duration>) -> Result<Event> {
        if self.process_id != std::process::id() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(timeout);
        let mut mail = self.mail.lock();
        loop {
            if let Some(event) = self.take(&mut mail) {
                return Ok(event);
            }
            if mail.is_over() {
                return Err(Error::End);
            }
            deadline.wait(&self.arrived, &mut mail)?;
        }
    }

    /// For the completion queue: the oldest event, and whether more are ready (then the entry goes
    /// back into the queue).
    pub(crate) fn take_announced(&self) -> (Option<Event>, bool) {
        let mut mail = self.mail.lock();
        let event = self.take(&mut mail);
        mail.announced = mail.is_ready();
        (event, mail.announced)
    }

    fn take(&self, mail: &mut Mail) -> Option<Event> {
        let event = mail.take(self.tag)?;
        let last = matches!(event.kind, EventKind::Finished | EventKind::Failed);
        if last && let Some(queue) = self.queue.upgrade() {
            queue.detach();
        }
        Some(event)
    }
}

/// The end of a caller's patience.
pub(crate) struct Deadline {
    timeout: Duration,
    /// `None`: for ever (also where the sum would overflow the clock).
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(timeout: Option<Duration>) -> Deadline {
        let at = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Deadline { timeout: timeout.unwrap_or_default(), at }
    }

    pub(crate) fn has_passed(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| now >= at)
    }

    pub(crate) fn timeout_ms(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits for a signal. `Error::Timeout` when the deadline has passed.
    pub(crate) fn wait<T>(&self, signal: &Condvar, guard: &mut MutexGuard<'_, T>) -> Result<()> {
        let Some(at) = self.at else {
            signal.wait(guard);
            return Ok(());
        };
        if Instant::now() >= at {
            return Err(Error::Timeout { timeout_ms: self.timeout_ms() });
        }
        signal.wait_until(guard, at);
        Ok(())
    }
}
