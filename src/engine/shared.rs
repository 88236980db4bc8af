//! What callers and the loop thread share: the inbox of new requests, the engine's mode, metrics
//! and everything that never changes.
//!
//! One lock, held for a few instructions at a time and never while anything else is locked.

use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::engine::metrics::Metrics;
use crate::engine::request::Deadline;
use crate::engine::sequence::Sequence;
use crate::engine::{LogHook, LogLevel, Shutdown};
use crate::error::{Error, Result};
use crate::grammar::Grammars;
use crate::model::config::ModelConfig;
use crate::model::generation::{ChatFormat, GenerationConfig};
use crate::text::tokenizer::Tokenizer;

/// One engine, as every thread sees it.
pub(crate) struct Shared {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) generation: GenerationConfig,
    /// Ids that can be drawn: 0..usable_ids. Rows of the model beyond them are padding.
    pub(crate) usable_ids: usize,
    /// Longest sequence: the context, or all pages where those are fewer.
    pub(crate) sequence_tokens: usize,
    pub(crate) max_queue_requests: usize,
    pub(crate) model: ModelConfig,
    /// Pages are shared by those requests that do not refuse it.
    pub(crate) prefix_cache: bool,
    pub(crate) info: Value,
    pub(crate) metrics: Metrics,
    /// Made when a request first asks for a format.
    grammars: OnceLock<Result<Grammars>>,
    log: Option<LogHook>,
    process_id: u32,
    inbox: Mutex<Inbox>,
    /// Something for the loop to look at.
    wake: Condvar,
    /// The loop thread has ended and the model is released.
    stopped: Condvar,
}

struct Inbox {
    arrivals: Vec<Sequence>,
    /// Sequences accepted so far.
    accepted: u64,
    mode: Mode,
    loop_thread: Option<ThreadId>,
}

/// How far an engine's life has come; only ever moves down this list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Serving,
    Draining,
    Cancelling,
    /// The loop has ended; with a reason if it failed.
    Over(Option<Error>),
    /// The same, and the model is released.
    Released(Option<Error>),
}

impl Mode {
    /// Why a request cannot be accepted.
    fn refusal(&self) -> Option<Error> {
        match self {
            Mode::Serving => None,
            Mode::Over(Some(error)) | Mode::Released(Some(error)) => Some(error.clone()),
            _ => Some(Error::Closed { object: "engine" }),
        }
    }
}

/// What the loop does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Step,
    /// Everything is done: nothing runs, nothing will come.
    Finish,
    /// End what runs as cancelled.
    Cancel,
}

/// The parts of `Shared` that come from outside.
pub(crate) struct SharedParts {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) generation: GenerationConfig,
    pub(crate) usable_ids: usize,
    pub(crate) sequence_tokens: usize,
    pub(crate) max_queue_requests: usize,
    pub(crate) model: ModelConfig,
    pub(crate) prefix_cache: bool,
    pub(crate) info: Value,
    pub(crate) log: Option<LogHook>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Shared {
        Shared {
            tokenizer: parts.tokenizer,
            generation: parts.generation,
            usable_ids: parts.usable_ids,
            sequence_tokens: parts.sequence_tokens,
            max_queue_requests: parts.max_queue_requests,
            model: parts.model,
            prefix_cache: parts.prefix_cache,
            info: parts.info,
            metrics: Metrics::default(),
            grammars: OnceLock::new(),
            log: parts.log,
            process_id: std::process::id(),
            inbox: Mutex::new(Inbox {
                arrivals: Vec::new(),
                accepted: 0,
                mode: Mode::Serving,
                loop_thread: None,
            }),
            wake: Condvar::new(),
            stopped: Condvar::new(),
        }
    }

    /// Whole lines for the caller's log; `message` is made only when somebody listens.
    pub(crate) fn log(&self, level: LogLevel, message: impl FnOnce() -> String) {
        if let Some(hook) = &self.log {
            hook(level, "engine", &message());
        }
    }

    /// `Error::Forked` in a child of the process that opened the engine: its loop thread is not
    /// there, and locks may be held for ever. To be asked before any lock is taken.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.process_id == std::process::id() { Ok(()) } else { Err(Error::Forked) }
    }

    /// With what the model ends a reply of its own accord.
    pub(crate) fn end_id(&self) -> u32 {
        match self.generation.chat_format {
            ChatFormat::ChatMl => self.tokenizer.im_end(),
            ChatFormat::Raw => self.tokenizer.end_of_text(),
        }
    }

    /// The vocabulary, ready for formats. The first call takes some tenths of a second.
    pub(crate) fn grammars(&self) -> Result<&Grammars> {
        let make = || Grammars::new(self.tokenizer.ordinary_tokens(), self.end_id());
        self.grammars.get_or_init(make).as_ref().map_err(Error::clone)
    }

    /// `Ok` while requests are accepted.
    pub(crate) fn health(&self) -> Result<()> {
        self.check_process()?;
        self.inbox.lock().mode.refusal().map_or(Ok(()), Err)
    }

    /// Hands the choices of a request to the loop, or says why not.
    pub(crate) fn submit(&self, choices: Vec<Sequence>) -> Result<()> {
        let count = choices.len() as u64;
        let mut inbox = self.inbox.lock();
        if let Some(error) = inbox.mode.refusal() {
            return Err(error);
        }
        if self.metrics.requests_waiting.get() + count > self.max_queue_requests as u64 {
            self.metrics.requests_refused.add(count);
            return Err(Error::QueueFull { limit_requests: self.max_queue_requests as u64 });
        }
        self.metrics.requests_waiting.add(count);
        self.metrics.requests_submitted.add(count);
        if let Some(first) = choices.first() {
            first.mailbox.accepted(choices.len());
        }
        for mut sequence in choices {
            inbox.accepted += 1;
            sequence.number = inbox.accepted;
            inbox.arrivals.push(sequence);
        }
        drop(inbox);
        self.wake.notify_one();
        Ok(())
    }

    /// Lets what was accepted finish, or not. Later calls can only make it stricter.
    pub(crate) fn begin_shutdown(&self, how: Shutdown) {
        let mut inbox = self.inbox.lock();
        match (&inbox.mode, how) {
            (Mode::Serving, Shutdown::Drain) => inbox.mode = Mode::Draining,
            (Mode::Serving | Mode::Draining, Shutdown::Cancel) => inbox.mode = Mode::Cancelling,
            _ => {}
        }
        drop(inbox);
        self.wake.notify_one();
    }

    /// Waits until the model is released.
    pub(crate) fn wait_released(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(Some(timeout));
        let mut inbox = self.inbox.lock();
        while !matches!(inbox.mode, Mode::Released(_)) {
            deadline.wait(&self.stopped, &mut inbox)?;
        }
        Ok(())
    }

    /// Is this the loop's own thread (inside the log hook)? It must not wait for itself.
    pub(crate) fn is_loop_thread(&self) -> bool {
        self.inbox.lock().loop_thread == Some(std::thread::current().id())
    }

    // --- the loop's side ---

    /// The loop's first act.
    pub(crate) fn enter_loop(&self) {
        self.inbox.lock().loop_thread = Some(std::thread::current().id());
    }

    /// Moves new requests to the end of `sequences`; waits while there is nothing to do.
    pub(crate) fn absorb(&self, sequences: &mut Vec<Sequence>) -> Turn {
        let mut inbox = self.inbox.lock();
        loop {
            sequences.append(&mut inbox.arrivals);
            match inbox.mode {
                Mode::Serving if sequences.is_empty() => self.wake.wait(&mut inbox),
                Mode::Serving => return Turn::Step,
                Mode::Draining if sequences.is_empty() => return Turn::Finish,
                Mode::Draining => return Turn::Step,
                _ => return Turn::Cancel,
            }
        }
    }

    /// The loop has ended: nothing is accepted from here on. Requests that came in meanwhile go to
    /// the end of `sequences`.
    pub(crate) fn end_loop(&self, failure: Option<Error>, sequences: &mut Vec<Sequence>) {
        let mut inbox = self.inbox.lock();
        inbox.mode = Mode::Over(failure);
        sequences.append(&mut inbox.arrivals);
    }

    /// The loop's last act.
    pub(crate) fn leave_loop(&self) {
        let mut inbox = self.inbox.lock();
        if let Mode::Over(failure) = &mut inbox.mode {
            inbox.mode = Mode::Released(failure.take());
        }
        drop(inbox);
        self.stopped.notify_all();
    }
}
