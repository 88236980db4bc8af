//! The way of weights to the device: a queue of what is to be brought, in order, and how it moves.
//!
//! Bytes of the checkpoint are read by several threads into a ring of pinned blocks, which the device
//! copies from while the next ones are read; a block is filled again once an event says that its copy
//! is done. What is queued behind the bytes (packing codes) is launched when the
//! last of them has been sent: copies and kernels run in the order of one stream, so that the staging
//! memory can be used again by whatever comes after.
//!
//! In a load, weights are given out before they are in place (`begin_load`), and readers run ahead over
//! tensors. Memory that a queued task writes or reads is kept by it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::driver::{Context, Mark, Stream};
use super::launch::Launcher;
use super::memory::{DeviceMemory, PinnedMemory, Rows};
use crate::error::Result;
use crate::reader::{BLOCK_BYTES, Filled, PIECE_BYTES, Readers, default_threads};
use crate::tensor::Span;

/// Blocks of the ring. Each thread fills one; as many again wait for their copy, or travel.
const NUM_BLOCKS: usize = 16;
/// Of each of the two blocks for what is no weight matrix.
const SMALL_BYTES: usize = 1 << 20;
const PURPOSE: &str = "upload of weights";

/// A kernel, or several, that what was queued before is for.
type Work = Box<dyn FnOnce(&Launcher) -> Result<()> + Send>;

/// Host memory that a matrix stays in.
pub(super) type SharedPinned = Arc<Mutex<PinnedMemory>>;

enum Task {
    /// The readers' next span goes to the device.
    Copy {
        to: Arc<DeviceMemory>,
        rows: Rows,
    },
    /// The readers' next span goes to host memory, from this byte on.
    Keep {
        to: SharedPinned,
        offset: usize,
        len: usize,
    },
    /// A few bytes that are no weights.
    Send {
        bytes: Vec<u8>,
        to: Arc<DeviceMemory>,
        offset: usize,
    },
    Run(Work),
}

impl Task {
    /// Bytes of the readers that it takes; none if it takes no span.
    fn read_bytes(&self) -> Option<usize> {
        match self {
            Task::Copy { rows, .. } => Some(rows.num_bytes()),
            Task::Keep { len, .. } => Some(*len),
            Task::Send { .. } | Task::Run(_) => None,
        }
    }
}

/// Readers and their pinned blocks.
struct Ring {
    readers: Readers<PinnedMemory>,
    /// Blocks on their way, oldest first.
    sent: VecDeque<(Mark, PinnedMemory)>,
    idle_marks: Vec<Mark>,
}

/// A block for small things, and the mark behind its last copy.
struct Small {
    block: PinnedMemory,
    mark: Mark,
}

/// Brings weights to the device.
pub(super) struct Uploader {
    tasks: VecDeque<Task>,
    /// Bytes that the tasks still read.
    pending_bytes: u64,
    /// Bytes brought that `advance` has not told of yet.
    untold_bytes: u64,
    /// Weights are given out before they are in place.
    is_deferred: bool,
    /// Made when the first matrix is read.
    ring: Option<Ring>,
    small: [Small; 2],
    next_small: usize,
    /// Memory on the device from which weights are packed.
    staging: Option<Arc<DeviceMemory>>,
    context: Arc<Context>,
}

impl Uploader {
    /// Takes little pinned memory, and none of the device's.
    pub(super) fn new(context: &Arc<Context>) -> Result<Uploader> {
        let small = || -> Result<Small> {
            let block = PinnedMemory::new(context, SMALL_BYTES, PURPOSE)?;
            Ok(Small { block, mark: Mark::new(context)? })
        };
        Ok(Uploader {
            tasks: VecDeque::new(),
            pending_bytes: 0,
            untold_bytes: 0,
            is_deferred: false,
            ring: None,
            small: [small()?, small()?],
            next_small: 0,
            staging: None,
            context: Arc::clone(context),
        })
    }

    /// From now on weights are queued and brought by `advance`.
    pub(super) fn begin_load(&mut self) {
        self.is_deferred = true;
    }

    /// Staging memory of at least `len_bytes`, for what is queued next; it belongs to one matrix after
    /// the other.
    pub(super) fn staging(&mut self, len_bytes: usize) -> Result<Arc<DeviceMemory>> {
        if let Some(memory) = self.staging.take_if(|memory| memory.len_bytes() >= len_bytes) {
            self.staging = Some(Arc::clone(&memory));
            return Ok(memory);
        }
        // Tasks that still need the one before have it.
        self.staging = None;
        let memory = Arc::new(DeviceMemory::new(&self.context, len_bytes, PURPOSE)?);
        self.staging = Some(Arc::clone(&memory));
        Ok(memory)
    }

    /// Gives it back, so that there is never more than weights beside it.
    pub(super) fn free_staging(&mut self) {
        self.staging = None;
    }

    /// Queues `span`, in rows of `to_rows.width` bytes that go `to_rows.pitch` apart.
    pub(super) fn copy(
        &mut self,
        span: &Span,
        to: &Arc<DeviceMemory>,
        target: Target,
    ) -> Result<()> {
        for range in pieces(span.num_bytes(), target.width) {
            let rows = target.rows(&range);
            self.read(span.part(range), Task::Copy { to: Arc::clone(to), rows })?;
        }
        Ok(())
    }

    /// Queues `span` for host memory.
    pub(super) fn keep(&mut self, span: &Span, to: &SharedPinned) -> Result<()> {
        for range in pieces(span.num_bytes(), span.num_bytes()) {
            let (offset, len) = (range.start, range.len());
            self.read(span.part(range), Task::Keep { to: Arc::clone(to), offset, len })?;
        }
        Ok(())
    }

    fn read(&mut self, span: Span, task: Task) -> Result<()> {
        let ring = match self.ring.take() {
            Some(ring) => ring,
            None => Ring::new(&self.context)?,
        };
        self.pending_bytes += span.num_bytes() as u64;
        self.ring.insert(ring).readers.ask(span);
        self.tasks.push_back(task);
        Ok(())
    }

    /// Queues a few bytes that are no weights.
    pub(super) fn send(&mut self, bytes: Vec<u8>, to: &Arc<DeviceMemory>, offset: usize) {
        self.tasks.push_back(Task::Send { bytes, to: Arc::clone(to), offset });
    }

    /// Queues `work`, which keeps the memory that it is about.
    pub(super) fn run(&mut self, work: impl FnOnce(&Launcher) -> Result<()> + Send + 'static) {
        self.tasks.push_back(Task::Run(Box::new(work)));
    }

    /// Brings what was queued, unless `advance` will.
    pub(super) fn settle(&mut self, launcher: &Launcher) -> Result<()> {
        if self.is_deferred { self.run_ready(launcher) } else { self.finish(launcher) }
    }

    /// Brings all that was queued.
    pub(super) fn finish(&mut self, launcher: &Launcher) -> Result<()> {
        while self.advance(launcher, 0)?.is_some() {}
        Ok(())
    }

    /// Brings the next piece, unless at most `ahead_bytes` are still to be read: the bytes brought since
    /// it was asked last.
    pub(super) fn advance(&mut self, launcher: &Launcher, ahead_bytes: u64) -> Result<Option<u64>> {
        self.context.enter()?;
        self.run_ready(launcher)?;
        if self.untold_bytes == 0 && self.pending_bytes > ahead_bytes {
            self.step(launcher)?;
            self.run_ready(launcher)?;
        }
        let told = std::mem::take(&mut self.untold_bytes);
        Ok((told > 0).then_some(told))
    }

    /// Does what waits for no reader.
    fn run_ready(&mut self, launcher: &Launcher) -> Result<()> {
        while self.tasks.front().is_some_and(|task| task.read_bytes().is_none()) {
            self.step(launcher)?;
        }
        Ok(())
    }

    /// The first task.
    fn step(&mut self, launcher: &Launcher) -> Result<()> {
        let Some(task) = self.tasks.pop_front() else { return Ok(()) };
        let read_bytes = task.read_bytes().unwrap_or(0) as u64;
        self.pending_bytes -= read_bytes;
        self.untold_bytes += read_bytes;
        match task {
            Task::Send { bytes, to, offset } => {
                self.send_now(&launcher.stream, &bytes, &to, offset)
            }
            Task::Run(work) => work(launcher),
            Task::Copy { to, rows } => {
                self.ring.as_mut().map_or(Ok(()), |ring| ring.copy(&launcher.stream, &to, rows))
            }
            Task::Keep { to, offset, len } => self.ring.as_mut().map_or(Ok(()), |ring| {
                let Filled { mut block, range } = ring.next()?;
                let from = &block.bytes_mut()[range];
                to.lock().bytes_mut()[offset..offset + len].copy_from_slice(from);
                ring.readers.give_back(block);
                Ok(())
            }),
        }
    }

    /// Sends bytes at once. Whatever is queued here comes later.
    pub(super) fn send_now(
        &mut self,
        stream: &Stream,
        bytes: &[u8],
        to: &DeviceMemory,
        offset: usize,
    ) -> Result<()> {
        for (index, part) in bytes.chunks(SMALL_BYTES).enumerate() {
            let Small { block, mark } = &mut self.small[self.next_small];
            mark.wait()?;
            block.bytes_mut()[..part.len()].copy_from_slice(part);
            let rows = Rows::one(offset + index * SMALL_BYTES, part.len());
            send_marked(stream, to, (block, 0), (rows, mark))?;
            self.next_small = 1 - self.next_small;
        }
        Ok(())
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // A load that was given up may still copy from the blocks.
        self.context.finish();
    }
}

impl Ring {
    fn new(context: &Arc<Context>) -> Result<Ring> {
        let blocks = (0..NUM_BLOCKS).map(|_| PinnedMemory::new(context, BLOCK_BYTES, PURPOSE));
        let readers = Readers::start(blocks.collect::<Result<_>>()?, default_threads())?;
        Ok(Ring { readers, sent: VecDeque::new(), idle_marks: Vec::new() })
    }

    /// Queues the copy of the next span.
    fn copy(&mut self, stream: &Stream, to: &DeviceMemory, rows: Rows) -> Result<()> {
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
    fn next(&mut self) -> Result<Filled<PinnedMemory>> {
        while let Some((mark, _)) = self.sent.front()
            && mark.is_reached()?
        {
            self.take_back();
        }
        loop {
            if let Some(filled) = self.readers.try_take() {
                return filled;
            }
            let Some((mark, _)) = self.sent.front() else { return self.readers.take() };
            mark.wait()?;
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
fn send_marked(
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

/// Where a span goes: rows of `width` bytes, `pitch` apart, from `offset` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) offset: usize,
    pub(super) width: usize,
    pub(super) pitch: usize,
}

impl Target {
    /// All `len` bytes together.
    pub(super) fn one(offset: usize, len: usize) -> Target {
        Target { offset, width: len.max(1), pitch: len.max(1) }
    }

    /// Where bytes `range` of the span go: whole rows, or a part of one.
    fn rows(&self, range: &Range<usize>) -> Rows {
        let (row, within) = (range.start / self.width, range.start % self.width);
        let width = range.len().min(self.width);
        assert!(range.len() == width || within == 0, "whole rows, or a part of one");
        let height = range.len() / width.max(1);
        Rows { offset: self.offset + row * self.pitch + within, width, height, pitch: self.pitch }
    }
}

/// A span of `len` bytes in pieces that fit a block: whole rows of `width` where these fit.
fn pieces(len: usize, width: usize) -> Vec<Range<usize>> {
    let width = width.max(1);
    let whole = PIECE_BYTES / width * width;
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < len {
        let limit = match whole {
            0 => PIECE_BYTES.min(width - start % width),
            whole => whole,
        };
        let end = (start + limit).min(len);
        pieces.push(start..end);
        start = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each byte of a span goes, one by one.
    fn slow(len: usize, target: Target) -> Vec<usize> {
        let place = |i| target.offset + i / target.width * target.pitch + i % target.width;
        (0..len).map(place).collect()
    }

    #[test]
    fn pieces_put_every_byte_where_it_goes() {
        let row = PIECE_BYTES / 4 + 16;
        for (len, width, pitch) in [
            (0, 1, 1),
            (1, 1, 1),
            (PIECE_BYTES + 1, PIECE_BYTES + 1, PIECE_BYTES + 1),
            (2 * PIECE_BYTES, 2 * PIECE_BYTES, 2 * PIECE_BYTES),
            (7 * row, row, 2 * row),
            (3 * PIECE_BYTES, PIECE_BYTES, 2 * PIECE_BYTES),
            // Rows that no block holds.
            (2 * (PIECE_BYTES + 64), PIECE_BYTES + 64, 2 * (PIECE_BYTES + 64)),
            (4096 * 48, 48, 96),
        ] {
            let target = Target { offset: 160, width, pitch };
            let mut found = Vec::with_capacity(len);
            for range in pieces(len, width) {
                assert!(range.start == found.len() && range.len() <= PIECE_BYTES);
                let rows = target.rows(&range);
                assert_eq!(rows.num_bytes(), range.len());
                for row in 0..rows.height {
                    let first = rows.offset + row * rows.pitch;
                    found.extend(first..first + rows.width);
                }
                assert!(found.last().is_none_or(|last| *last < rows.end()));
            }
            assert!(found == slow(len, target), "{len} bytes in rows of {width}");
        }
    }
}
