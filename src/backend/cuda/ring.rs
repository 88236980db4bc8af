//! Pinned blocks that reading threads fill and the device copies from, round and round: a block is filled
//! again once an event says that its copy is done.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::{Context, Mark, Stream};
use super::memory::{DeviceMemory, PinnedMemory, Rows};
use crate::error::Result;
use crate::reader::{BLOCK_BYTES, Filled, Readers, default_threads};
use crate::tensor::Span;

/// Blocks of the ring. Each thread fills one, and some travel; the rest keep both busy while the thread
/// that hands them on looks at the next tensor: 256 MiB, 5 ms of the fastest link.
const NUM_BLOCKS: usize = 32;
const PURPOSE: &str = "upload of weights";

/// Readers and their pinned blocks.
pub(super) struct Ring {
    readers: Readers<PinnedMemory>,
    /// Blocks on their way, oldest first.
    sent: VecDeque<(Mark, PinnedMemory)>,
    idle_marks: Vec<Mark>,
    waits: Waits,
}

/// How long the loading thread took to make the ring, and waited in it: for readers, while they had
/// blocks; for copies, while these had them all.
#[derive(Default, Clone, Copy)]
pub(super) struct Waits {
    made: Duration,
    for_readers: Duration,
    for_copies: Duration,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [made, readers, copies] =
            [self.made, self.for_readers, self.for_copies].map(|time| time.as_secs_f64());
        write!(f, "pinned blocks {made:.3}, waits for readers {readers:.3}, for copies {copies:.3}")
    }
}

impl Ring {
    /// Starts the threads.
    pub(super) fn new(context: &Arc<Context>) -> Result<Ring> {
        let start = Instant::now();
        let blocks = (0..NUM_BLOCKS).map(|_| PinnedMemory::new(context, BLOCK_BYTES, PURPOSE));
        let readers = Readers::start(blocks.collect::<Result<_>>()?, default_threads())?;
        let waits = Waits { made: start.elapsed(), ..Waits::default() };
        Ok(Ring { readers, sent: VecDeque::new(), idle_marks: Vec::new(), waits })
    }

    /// So far.
    pub(super) fn waits(&self) -> Waits {
        self.waits
    }

    /// Asks for a span, after all before it.
    pub(super) fn ask(&self, span: Span) {
        self.readers.ask(span);
    }

    /// A block that `next` gave, for another span.
    pub(super) fn give_back(&self, block: PinnedMemory) {
        self.readers.give_back(block);
    }

    /// Queues the copy of the next span.
    pub(super) fn copy(&mut self, stream: &Stream, to: &DeviceMemory, rows: Rows) -> Result<()> {
        let Filled { block, range } = self.next()?;
        assert_eq!(range.len(), rows.num_bytes(), "another span than was asked for");
        let mark = match self.idle_marks.pop() {
            Some(mark) => mark,
            None => Mark::new(stream.context())?,
        };
        send_marked(stream, to, (&block, range.start), (rows, &mark))?;
        self.sent.push_back((mark, block));
        Ok(())
    }

    /// The next span, when it has been read. Blocks whose copies are done go back to the readers first;
    /// where none is left for them, or the span is not there yet, the oldest copy is waited for.
    pub(super) fn next(&mut self) -> Result<Filled<PinnedMemory>> {
        while let Some((mark, _)) = self.sent.front()
            && mark.is_reached()?
        {
            self.take_back();
        }
        loop {
            if let Some(filled) = self.readers.try_take() {
                return filled;
            }
            let start = Instant::now();
            let waited = match self.sent.len() {
                NUM_BLOCKS => &mut self.waits.for_copies,
                _ => &mut self.waits.for_readers,
            };
            let Some((mark, _)) = self.sent.front() else {
                let filled = self.readers.take();
                *waited += start.elapsed();
                return filled;
            };
            mark.wait()?;
            *waited += start.elapsed();
            self.take_back();
        }
    }

    /// The oldest block, whose copy is done, can be filled again.
    fn take_back(&mut self) {
        if let Some((mark, block)) = self.sent.pop_front() {
            self.idle_marks.push(mark);
            self.readers.give_back(block);
        }
    }
}

/// Queues a copy out of `block`, and `mark` behind it. After an error no copy is under way.
pub(super) fn send_marked(
    stream: &Stream,
    to: &DeviceMemory,
    (block, start): (&PinnedMemory, usize),
    (rows, mark): (Rows, &Mark),
) -> Result<()> {
    let sent = to.upload_rows(stream, rows, block, start).and_then(|()| mark.set(stream));
    if sent.is_err() {
        let _ = stream.wait();
    }
    sent
}
