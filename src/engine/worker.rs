//! Runs steps on every rank: rank 0 on the loop's own thread, each other on a thread that lives
//! as long as the engine.
//!
//! A rank that fails or panics is dropped at once, before anybody waits for the others: its half of
//! a communicator goes with it, which is how ranks waiting inside a collective learn of it. After
//! one failure the ranks are not usable again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::backend::comm::STOPPED;
use crate::batch::{Batch, Output};
use crate::error::{Error, Result};
use crate::model::Rank;

/// The ranks of a loaded model.
pub(crate) struct Workers {
    /// `None` once it has failed.
    first: Option<Box<dyn Rank>>,
    others: Vec<Worker>,
}

/// What every rank does next.
#[derive(Clone)]
enum Command {
    Submit(Arc<Batch>),
    Collect,
}

/// A rank on its own thread.
struct Worker {
    /// `None` only while being dropped: closing the channel ends the thread.
    commands: Option<Sender<Command>>,
    /// With hidden states, from whoever has them.
    outcomes: Receiver<Result<Vec<f32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads. `ranks` is not empty; rank 0 comes first.
    pub(crate) fn start(ranks: Vec<Box<dyn Rank>>) -> Result<Workers> {
        let mut ranks = ranks.into_iter();
        let first = ranks.next();
        let others = ranks.enumerate().map(|(index, rank)| Worker::start(index + 1, rank));
        Ok(Workers { first, others: others.collect::<Result<Vec<Worker>>>()? })
    }

    /// Do the ranks draw tokens themselves where a batch says how, each the same ones?
    pub(crate) fn draws_tokens(&self) -> bool {
        self.first.as_ref().is_some_and(|rank| rank.draws_tokens())
    }

    /// Begins a step on all ranks. Of their failures the cause is reported.
    pub(crate) fn submit(&mut self, batch: &Arc<Batch>) -> Result<()> {
        self.run(&Command::Submit(Arc::clone(batch)), &mut Output::default())
    }

    /// Ends the oldest step on all ranks; `output` is rank 0's.
    pub(crate) fn collect(&mut self, output: &mut Output) -> Result<()> {
        self.run(&Command::Collect, output)
    }

    fn run(&mut self, command: &Command, output: &mut Output) -> Result<()> {
        let sent = self.others.iter().map(|worker| worker.send(command)).collect::<Vec<_>>();
        let first = run_rank(&mut self.first, command, output);
        let received = self.others.iter().zip(sent).map(|(worker, sent)| -> Result<()> {
            sent?;
            let hidden = worker.outcomes.recv().unwrap_or_else(|_| Err(gone()))?;
            output.hidden.extend(hidden);
            Ok(())
        });
        let errors: Vec<Error> =
            received.chain([first]).filter_map(std::result::Result::err).collect();
        cause(&errors).map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl Worker {
    fn start(index: usize, rank: Box<dyn Rank>) -> Result<Worker> {
        let (commands, inbox) = channel();
        let (outbox, outcomes) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("qwen-rank-{index}"))
            .spawn(move || serve(rank, &inbox, &outbox))
            .map_err(|error| Error::EngineFailed { reason: format!("no rank thread: {error}") })?;
        Ok(Worker { commands: Some(commands), outcomes, thread: Some(thread) })
    }

    fn send(&self, command: &Command) -> Result<()> {
        let sender = self.commands.as_ref().ok_or_else(gone)?;
        sender.send(command.clone()).map_err(|_| gone())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // A panic was already turned into an outcome; there is nothing left to report.
            let _ = thread.join();
        }
    }
}

/// The life of a rank's thread: commands in, outcomes out, until the channel closes or it fails.
fn serve(rank: Box<dyn Rank>, commands: &Receiver<Command>, outcomes: &Sender<Result<Vec<f32>>>) {
    let mut rank = Some(rank);
    let mut output = Output::default();
    while let Ok(command) = commands.recv() {
        let outcome = run_rank(&mut rank, &command, &mut output);
        let outcome = outcome.map(|()| std::mem::take(&mut output.hidden));
        // The loop reuses the batch once every rank has answered.
        drop(command);
        let failed = outcome.is_err();
        if outcomes.send(outcome).is_err() || failed {
            return;
        }
    }
}

/// One command to one rank; a failed rank is dropped. A panic is an error like any other.
fn run_rank(
    slot: &mut Option<Box<dyn Rank>>,
    command: &Command,
    output: &mut Output,
) -> Result<()> {
    let rank = slot.as_mut().ok_or_else(gone)?;
    let run = || match command {
        Command::Submit(batch) => rank.submit(batch),
        Command::Collect => rank.collect(output),
    };
    let outcome = caught(run);
    if outcome.is_err() {
        drop_quietly(slot.take());
    }
    outcome
}

/// What `run` yields; a panic is an error like any other.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Error::EngineFailed { reason: panic_reason(&*panic) }))
}

/// Of several ranks' errors the one that says most: the first that does not only follow from another
/// rank's.
pub(crate) fn cause(errors: &[Error]) -> Option<&Error> {
    let follows =
        |error: &&Error| matches!(error, Error::EngineFailed { reason } if reason == STOPPED);
    errors.iter().find(|error| !follows(error)).or(errors.first())
}

/// Drops a value whose own drop may panic.
pub(crate) fn drop_quietly<T>(value: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

/// The message of a caught panic.
pub(crate) fn panic_reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a bug in the library: panic: {}", text.unwrap_or("no message"))
}

fn gone() -> Error {
    Error::EngineFailed { reason: "a rank has failed before".to_string() }
}
