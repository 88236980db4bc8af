//! The completion queue: announces the events of many requests to one or more reading threads.
//!
//! It holds no events, only the mailboxes that have some, each at most once: an entry a request has
//! not been asked about yet coalesces with what comes later, and the queue can never grow beyond
//! the number of its requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::request::{Deadline, Event, Mailbox};
use crate::error::{Error, Result};

/// Announces the events of many requests to one or more reading threads.
///
/// Every request submitted with a queue delivers exactly one last event through it, also when its
/// handle was dropped before (then `Failed(Error::Cancelled)`, unless it had already ended).
pub struct CompletionQueue {
    process_id: u32,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<Mailbox>>,
    /// Requests whose last event nobody has taken yet.
    num_live: usize,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Arc<CompletionQueue> {
        Arc::new(CompletionQueue {
            process_id: std::process::id(),
            state: Mutex::new(State::default()),
            arrived: Condvar::new(),
        })
    }

    /// Up to `max` events, waiting for the first at most `timeout` (`None`: as long as it takes).
    /// Each request's events come in order, and requests take turns. `Error::Timeout` when none
    /// came; `Error::End` when no live request uses the queue (before the first submit, too).
    pub fn next(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<Event>> {
        if max == 0 {
            return Err(Error::Argument { argument: "max", reason: "must be at least 1".into() });
        }
        if self.process_id != std::process::id() {
            return Err(Error::Forked);
        }
        let deadline = Deadline::after(timeout);
        let mut events = Vec::new();
        loop {
            let Some(mailbox) = self.pop(&deadline, events.is_empty())? else { return Ok(events) };
            let (event, more) = mailbox.take_announced();
            // Empty when the owner took the events through the request itself.
            events.extend(event);
            if more {
                self.announce(mailbox);
            }
            if events.len() == max {
                return Ok(events);
            }
        }
    }

    /// A mailbox with events; waits for one if `wait`.
    fn pop(&self, deadline: &Deadline, wait: bool) -> Result<Option<Arc<Mailbox>>> {
        let mut state = self.state.lock();
        loop {
            if let Some(mailbox) = state.ready.pop_front() {
                return Ok(Some(mailbox));
            }
            if !wait {
                return Ok(None);
            }
            if state.num_live == 0 {
                return Err(Error::End);
            }
            deadline.wait(&self.arrived, &mut state)?;
        }
    }

    pub(crate) fn announce(&self, mailbox: Arc<Mailbox>) {
        self.state.lock().ready.push_back(mailbox);
        self.arrived.notify_one();
    }

    /// One more request will deliver its last event here.
    pub(crate) fn attach(&self) {
        self.state.lock().num_live += 1;
    }

    /// A last event was taken.
    pub(crate) fn detach(&self) {
        let mut state = self.state.lock();
        state.num_live -= 1;
        if state.num_live == 0 {
            self.arrived.notify_all();
        }
    }
}
