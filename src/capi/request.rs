//! `qwen_request`: one reply to one prompt, made while the caller does other things.
//!
//! A request is made, then submitted; so a full queue costs a second submit and not a second
//! request. Its events go to a completion queue, or wait here until they are read.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::arguments::{Handle, Out, array, free, handle, optional, text, timeout};
use super::engine::qwen_engine;
use super::errors::qwen_error;
use super::event::{Listener, keeps, qwen_event, qwen_event_fn};
use super::guard::guard;
use super::options::{generation_params, qwen_options};
use super::queue::qwen_queue;
use crate::engine::session::Flow;
use crate::engine::{CompletionQueue, Engine, EventKind, GenerationParams, Request};
use crate::error::{Error, Result};
use crate::text::chat::{Message, parse_messages};

/// A request for one reply. Any thread may submit, cancel and free it; one at a time may read it.
/// It holds its engine open, also when qwen_engine_free was called. Free it with
/// qwen_request_free.
pub struct qwen_request(Arc<Ticket>);

/// Whoever reads the request at this moment holds the inside, too: the end of that must not be waited for.
impl Drop for qwen_request {
    fn drop(&mut self) {
        // Not submitted, or of another process: then nothing runs here.
        let _ = self.0.cancel(false);
    }
}

/// The inside of `qwen_request`.
pub(super) struct Ticket {
    /// Held open until the request is freed: the caller may free its engine right after submitting,
    /// and an engine that nobody holds cancels its requests.
    engine: Engine,
    prompt: Prompt,
    params: GenerationParams,
    /// Never locked for longer than a look or a change.
    state: Mutex<State>,
    /// The thread that is reading events, if one is.
    reader: Mutex<Option<ThreadId>>,
}

enum State {
    /// `wish` is a `cancel(keep)` that came during a submit that failed.
    Made {
        wish: Option<bool>,
    },
    /// The prompt is being rendered; no call waits for that.
    Submitting {
        request: Request,
    },
    Submitted {
        request: Request,
        queued: bool,
    },
}

enum Prompt {
    Chat(Vec<Message>),
    Tokens(Vec<u32>),
}

impl Handle for qwen_request {
    type Inside = Arc<Ticket>;
    fn inside(&self) -> &Arc<Ticket> {
        &self.0
    }
}

impl Ticket {
    fn made(engine: Engine, prompt: Prompt, params: GenerationParams) -> qwen_request {
        let state = Mutex::new(State::Made { wish: None });
        let reader = Mutex::new(None);
        qwen_request(Arc::new(Ticket { engine, prompt, params, state, reader }))
    }

    fn submit(&self, queue: Option<(Arc<CompletionQueue>, u64)>) -> Result<()> {
        self.engine.check_process()?;
        let queued = queue.is_some();
        let submission = self.begin(queue)?;
        let (engine, params, request) = (&self.engine, &self.params, &submission.request);
        match &self.prompt {
            Prompt::Chat(messages) => engine.begin_chat(request, messages, params),
            Prompt::Tokens(ids) => engine.begin_tokens(request, ids.clone(), params),
        }?;
        submission.succeed(queued);
        Ok(())
    }

    /// Makes this call the one that submits, until the result is dropped.
    fn begin(&self, queue: Option<(Arc<CompletionQueue>, u64)>) -> Result<Submission<'_>> {
        let mut state = self.state.lock();
        let State::Made { wish } = *state else {
            return Err(Error::State { reason: "the request is submitted already".to_string() });
        };
        let request = Request::prepared(queue);
        if let Some(keep) = wish {
            request.cancel(keep);
        }
        *state = State::Submitting { request: request.clone() };
        Ok(Submission { ticket: self, request })
    }

    fn cancel(&self, keep: bool) -> Result<()> {
        self.engine.check_process()?;
        match &*self.state.lock() {
            State::Submitting { request } | State::Submitted { request, .. } => {
                request.cancel(keep);
            }
            State::Made { .. } => return Err(not_submitted()),
        }
        Ok(())
    }

    /// The running request, whose events are read here and nowhere else.
    fn readable(&self) -> Result<Request> {
        match &*self.state.lock() {
            State::Made { .. } | State::Submitting { .. } => Err(not_submitted()),
            State::Submitted { queued: true, .. } => {
                Err(Error::State { reason: "the request's events go to its queue".to_string() })
            }
            State::Submitted { request, .. } => Ok(request.clone()),
        }
    }

    /// Makes this thread the one that reads, until the result is dropped.
    fn read(&self) -> Result<Reading<'_>> {
        self.engine.check_process()?;
        let me = std::thread::current().id();
        let mut reader = self.reader.lock();
        match *reader {
            None => *reader = Some(me),
            Some(other) if other == me => return Err(Error::Reentrant { object: "request" }),
            Some(_) => return Err(Error::Busy { object: "request" }),
        }
        Ok(Reading { ticket: self })
    }
}

fn not_submitted() -> Error {
    Error::State { reason: "the request is not submitted yet".to_string() }
}

/// Proof that this call is the one that submits. Its drop makes the request as it was, unless it
/// succeeded; a cancel stays, so that it also ends a second submit.
struct Submission<'a> {
    ticket: &'a Ticket,
    request: Request,
}

impl Submission<'_> {
    fn succeed(self, queued: bool) {
        let request = self.request.clone();
        *self.ticket.state.lock() = State::Submitted { request, queued };
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        let mut state = self.ticket.state.lock();
        if let State::Submitting { request } = &*state {
            *state = State::Made { wish: request.cancelled() };
        }
    }
}

/// Proof that this thread is the reader.
struct Reading<'a> {
    ticket: &'a Ticket,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        *self.ticket.reader.lock() = None;
    }
}

/// Makes a request for the reply to a conversation, `[{"role", "content"}...]` ending with a user
/// message, or with a tool's result behind an assistant's call: `{"role": "assistant", "content",
/// "tool_calls": [{"id", "type": "function", "function": {"name", "arguments"}}]}, {"role": "tool",
/// "content", "tool_call_id"}`. The options tools and tool_choice offer tools. `options`: generation options, or NULL. Nothing runs before qwen_request_submit. The
/// caller frees `request`. Any thread.
///
/// Errors: QWEN_E_ARG for JSON of another form; QWEN_E_UTF8; QWEN_E_OPTION.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_new_chat(
    engine: *const qwen_engine,
    messages: *const c_char,
    messages_len: u64,
    options: *const qwen_options,
    request: Option<&mut MaybeUninit<*mut qwen_request>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_new_chat", err, || {
        let request = Out::new("request", request)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives a text as the header says.
        let messages = parse_messages(unsafe { text("messages", messages, messages_len) }?)?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        let params = generation_params(options, engine.generation_defaults())?;
        request.give(Ticket::made(engine, Prompt::Chat(messages), params));
        Ok(())
    })
}

/// Makes a request for the continuation of token ids, which the model gets as they are; otherwise
/// as qwen_request_new_chat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_new_tokens(
    engine: *const qwen_engine,
    ids: *const u32,
    num_ids: u64,
    options: *const qwen_options,
    request: Option<&mut MaybeUninit<*mut qwen_request>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_new_tokens", err, || {
        let request = Out::new("request", request)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives `num_ids` ids.
        let ids = unsafe { array("ids", ids, num_ids) }?.to_vec();
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        let params = generation_params(options, engine.generation_defaults())?;
        request.give(Ticket::made(engine, Prompt::Tokens(ids), params));
        Ok(())
    })
}

/// Hands a request to the engine. With `queue`, its events go there and carry `tag`; with NULL, they
/// wait for qwen_request_next or qwen_request_run. After a failure it may be submitted again. Any
/// thread; does not wait for the model.
///
/// Errors: QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL (numbers in the detail), QWEN_E_ARG,
/// QWEN_E_OPTION, QWEN_E_STATE for a second time, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_submit(
    request: *mut qwen_request,
    queue: *mut qwen_queue,
    tag: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_submit", err, || {
        // SAFETY: the caller gives a live request or NULL.
        let ticket = unsafe { handle("request", request) }?;
        // SAFETY: the caller gives a live queue or NULL.
        let queue = unsafe { optional(queue) };
        ticket.submit(queue.map(|queue| (queue, tag)))
    })
}

/// Waits for the next event, at most `timeout_ms` milliseconds, for ever if that is negative. Text
/// that nobody read in time comes as one event. The caller frees `event`. One thread at a time.
///
/// Errors: QWEN_E_TIMEOUT; QWEN_E_END after the last event; QWEN_E_BUSY, QWEN_E_REENTRANT;
/// QWEN_E_STATE for a request that is not submitted or has a queue; QWEN_E_FORKED. A failed request
/// is no error here but a QWEN_EVENT_FAILED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_next(
    request: *mut qwen_request,
    timeout_ms: i64,
    event: Option<&mut MaybeUninit<*mut qwen_event>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_next", err, || {
        let event = Out::new("event", event)?;
        // SAFETY: the caller gives a live request or NULL.
        let ticket = unsafe { handle("request", request) }?;
        let _reading = ticket.read()?;
        event.give(qwen_event::new(ticket.readable()?.next(timeout(timeout_ms))?));
        Ok(())
    })
}

/// Tells `on_event` of every event until the last, on this thread, and returns how the request
/// ended. One thread at a time.
///
/// Errors: the request's own (QWEN_E_CANCELLED, QWEN_E_DEADLINE, QWEN_E_TIMEOUT for one that waited too
/// long, QWEN_E_NOT_FINITE, QWEN_E_ENGINE_FAILED); QWEN_E_CALLBACK; otherwise as for qwen_request_next.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_run(
    request: *mut qwen_request,
    on_event: qwen_event_fn,
    user: *mut c_void,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_run", err, || {
        // SAFETY: the caller gives a live request or NULL.
        let ticket = unsafe { handle("request", request) }?;
        let _reading = ticket.read()?;
        let mut listener = Listener::new(on_event, user);
        let result = run(&ticket.readable()?, &mut listener);
        listener.verdict(result)
    })
}

fn run(request: &Request, listener: &mut Listener) -> Result<()> {
    loop {
        let event = request.next(None)?;
        match listener.tell(&event) {
            Flow::Continue => {}
            Flow::Stop => request.cancel(true),
            Flow::Cancel => request.cancel(false),
        }
        match event.kind {
            EventKind::Finished => return Ok(()),
            EventKind::Failed => {
                return Err(event.error.unwrap_or(Error::Cancelled));
            }
            _ => {}
        }
    }
}

/// Ends a request within one step of the engine; `how` is QWEN_STOP (its last event is a
/// QWEN_EVENT_FINISHED) or QWEN_CANCEL (a QWEN_EVENT_FAILED with QWEN_E_CANCELLED). Nothing happens
/// to one that has ended. One that another thread is submitting ends as soon as it is submitted.
/// Any thread, also from its own callback; does not wait.
///
/// Errors: QWEN_E_STATE for a request that is not submitted; QWEN_E_ARG; QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_cancel(
    request: *mut qwen_request,
    how: i32,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_request_cancel", err, || {
        // SAFETY: the caller gives a live request or NULL.
        let ticket = unsafe { handle("request", request) }?;
        ticket.cancel(keeps(how)?)
    })
}

/// Frees a request; one that runs is cancelled, and a call that reads it at the time ends as after
/// qwen_request_cancel. Any thread, also from its own callback. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_request_free(request: *mut qwen_request) {
    // SAFETY: the caller gives NULL or a request it owns, and uses it no more.
    unsafe { free("qwen_request_free", request) }
}
