//! The way of weights to the device: a queue of what is to be brought, in order, and how it moves.
//!
//! Bytes of the checkpoint are read by several threads into a ring of pinned blocks, which the device
//! copies from while the next ones are read. What is queued behind the bytes (packing codes) is launched
//! when the last of them has been sent. Copies have a stream of their own, which nothing but copies ever
//! holds up; kernels run on the launcher's, each after the copies that were sent before it. Packing takes
//! turns with two staging memories, and copies into one wait until it has been packed from: that is
//! while the other one is filled.
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
use super::ring::{Ring, send_marked};
use super::staging::Stagings;
use super::weights::WeightMemory;
use crate::error::Result;
use crate::reader::{Filled, PIECE_BYTES};
use crate::tensor::Span;

/// Blocks for what is no weight matrix: seven are used in a layer, and none is waited for that was sent
/// two layers before.
const NUM_SMALL: usize = 16;
const SMALL_BYTES: usize = 256 << 10;
const PURPOSE: &str = "upload of weights";

/// A kernel, or several, that what was queued before is for.
type Work = Box<dyn FnOnce(&Launcher) -> Result<()> + Send>;

/// Host memory that a matrix stays in.
pub(super) type SharedPinned = Arc<Mutex<PinnedMemory>>;

enum Task {
    /// The readers' next span goes to the device.
    Copy { to: Arc<DeviceMemory>, rows: Rows, is_stored: bool },
    /// The readers' next span goes to host memory, from this byte on.
    Keep { to: SharedPinned, offset: usize, len: usize },
    /// A few bytes that are no weights.
    Send { bytes: Vec<u8>, to: Arc<DeviceMemory>, offset: usize },
    /// What is copied from here on goes to this staging memory.
    Enter(usize),
    /// Packs from it.
    Run(Work, usize),
}

impl Task {
    /// Bytes of the readers that it takes; none if it takes no span.
    fn read_bytes(&self) -> Option<usize> {
        match self {
            Task::Copy { rows, .. } => Some(rows.num_bytes()),
            Task::Keep { len, .. } => Some(*len),
            Task::Send { .. } | Task::Enter(_) | Task::Run(..) => None,
        }
    }

    /// How many of these bytes of the checkpoint's.
    fn stored_bytes(&self) -> usize {
        match self {
            Task::Copy { is_stored: false, .. } => 0,
            _ => self.read_bytes().unwrap_or(0),
        }
    }
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
    /// Bytes of the checkpoint brought that `advance` has not told of yet.
    untold_bytes: u64,
    /// Weights are given out before they are in place.
    is_deferred: bool,
    /// Made when the first matrix is read.
    ring: Option<Ring>,
    small: Vec<Small>,
    next_small: usize,
    weights: WeightMemory,
    /// Memory on the device from which weights are packed.
    stagings: Stagings,
    copies: Stream,
    /// Behind copies that kernels wait for.
    copied: Mark,
    /// There are copies that the launcher's stream does not wait for.
    is_ahead: bool,
    context: Arc<Context>,
}

impl Uploader {
    /// Takes `weight_bytes` of the device's memory for weights, and little pinned memory.
    pub(super) fn new(context: &Arc<Context>, weight_bytes: u64) -> Result<Uploader> {
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
            small: (0..NUM_SMALL).map(|_| small()).collect::<Result<_>>()?,
            next_small: 0,
            weights: WeightMemory::new(context, weight_bytes)?,
            stagings: Stagings::new(context)?,
            copies: Stream::new(context)?,
            copied: Mark::new(context)?,
            is_ahead: false,
            context: Arc::clone(context),
        })
    }

    /// What the load waited for so far, in words; empty where nothing was read.
    pub(super) fn report(&self) -> String {
        self.ring.as_ref().map_or_else(String::new, |ring| ring.waits().to_string())
    }

    /// From now on weights are queued and brought by `advance`.
    pub(super) fn begin_load(&mut self) {
        self.is_deferred = true;
    }

    /// Memory for a weight of `len_bytes`.
    pub(super) fn weight_memory(&mut self, len_bytes: usize) -> Result<DeviceMemory> {
        self.weights.take(len_bytes)
    }

    /// Lets staging use `memory` until the load ends.
    pub(super) fn lend(&mut self, memory: &DeviceMemory) {
        self.stagings.lend(memory);
    }

    /// Staging memory of at least `len_bytes`, for what is queued next; and its number, for `run`.
    pub(super) fn staging(&mut self, len_bytes: usize) -> Result<(usize, Arc<DeviceMemory>)> {
        let (index, memory) = self.stagings.next(&self.context, len_bytes)?;
        self.tasks.push_back(Task::Enter(index));
        Ok((index, memory))
    }

    /// Gives it back.
    pub(super) fn free_staging(&mut self) {
        self.stagings.free();
    }

    /// Queues `span`, in rows of `target.width` bytes that go `target.pitch` apart.
    pub(super) fn copy(
        &mut self,
        span: &Span,
        to: &Arc<DeviceMemory>,
        target: Target,
    ) -> Result<()> {
        self.copy_told(span, to, target, true)
    }

    /// The same of bytes that were made of the checkpoint's, and of which `advance` does not tell.
    pub(super) fn copy_made(
        &mut self,
        span: &Span,
        to: &Arc<DeviceMemory>,
        target: Target,
    ) -> Result<()> {
        self.copy_told(span, to, target, false)
    }

    fn copy_told(
        &mut self,
        span: &Span,
        to: &Arc<DeviceMemory>,
        target: Target,
        is_stored: bool,
    ) -> Result<()> {
        for range in pieces(span.num_bytes(), target.width) {
            let rows = target.rows(&range);
            self.read(span.part(range), Task::Copy { to: Arc::clone(to), rows, is_stored })?;
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
        self.ring.insert(ring).ask(span);
        self.tasks.push_back(task);
        Ok(())
    }

    /// Queues a few bytes that are no weights.
    pub(super) fn send(&mut self, bytes: Vec<u8>, to: &Arc<DeviceMemory>, offset: usize) {
        self.tasks.push_back(Task::Send { bytes, to: Arc::clone(to), offset });
    }

    /// Queues `work`, which packs from staging memory `staging`, and keeps the memory that it is about.
    pub(super) fn run(
        &mut self,
        staging: usize,
        work: impl FnOnce(&Launcher) -> Result<()> + Send + 'static,
    ) {
        self.tasks.push_back(Task::Run(Box::new(work), staging));
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

    /// Brings the next piece of the checkpoint, unless at most `ahead_bytes` are still to be read: its
    /// bytes. None: if nothing is left, whatever the launcher launches finds the weights in place.
    pub(super) fn advance(&mut self, launcher: &Launcher, ahead_bytes: u64) -> Result<Option<u64>> {
        self.context.enter()?;
        self.run_ready(launcher)?;
        while self.untold_bytes == 0 && self.pending_bytes > ahead_bytes {
            self.step(launcher)?;
            self.run_ready(launcher)?;
        }
        let told = std::mem::take(&mut self.untold_bytes);
        if told == 0 && self.tasks.is_empty() {
            self.join(launcher)?;
        }
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
        self.pending_bytes -= task.read_bytes().unwrap_or(0) as u64;
        self.untold_bytes += task.stored_bytes() as u64;
        match task {
            Task::Send { bytes, to, offset } => self.send_now(launcher, &bytes, &to, offset),
            Task::Enter(staging) => self.enter(launcher, staging),
            Task::Run(work, staging) => {
                self.join(launcher)?;
                work(launcher)?;
                self.stagings.leave(staging, &launcher.stream)
            }
            Task::Copy { to, rows, .. } => {
                self.is_ahead = true;
                self.ring.as_mut().map_or(Ok(()), |ring| ring.copy(&self.copies, &to, rows))
            }
            Task::Keep { to, offset, len } => self.ring.as_mut().map_or(Ok(()), |ring| {
                let Filled { mut block, range } = ring.next()?;
                let from = &block.bytes_mut()[range];
                to.lock().bytes_mut()[offset..offset + len].copy_from_slice(from);
                ring.give_back(block);
                Ok(())
            }),
        }
    }

    /// The copies after this one wait for whoever uses the staging memory: in a load the packing before,
    /// otherwise perhaps the products that it is lent from.
    fn enter(&self, launcher: &Launcher, staging: usize) -> Result<()> {
        if !self.is_deferred {
            self.stagings.leave(staging, &launcher.stream)?;
        }
        self.stagings.enter(staging, &self.copies)
    }

    /// What is launched from now on comes after all copies so far.
    fn join(&mut self, launcher: &Launcher) -> Result<()> {
        if std::mem::take(&mut self.is_ahead) {
            self.copied.set(&self.copies)?;
            launcher.stream.after(&self.copied)?;
        }
        Ok(())
    }

    /// Sends bytes at once. Whatever is queued here comes later.
    pub(super) fn send_now(
        &mut self,
        launcher: &Launcher,
        bytes: &[u8],
        to: &DeviceMemory,
        offset: usize,
    ) -> Result<()> {
        self.is_ahead = true;
        for (index, part) in bytes.chunks(SMALL_BYTES).enumerate() {
            let Small { block, mark } = &mut self.small[self.next_small];
            mark.wait()?;
            block.bytes_mut()[..part.len()].copy_from_slice(part);
            let rows = Rows::one(offset + index * SMALL_BYTES, part.len());
            send_marked(&self.copies, to, (block, 0), (rows, mark))?;
            self.next_small = (self.next_small + 1) % NUM_SMALL;
        }
        if self.is_deferred { Ok(()) } else { self.join(launcher) }
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // A load that was given up may still copy from the blocks.
        self.context.finish();
    }
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
