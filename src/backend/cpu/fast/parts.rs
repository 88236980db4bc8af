//! The output columns of one product, divided over the threads of a pool.
//!
//! Each thread has a contiguous share, which it takes panel by panel, so that it reads one stream
//! of weights; who is done takes panels off the shares of the others. A thread that is held up (by
//! the system, by a slower core) thus delays nobody. Interleaving the panels of both threads
//! instead costs a quarter of the bandwidth: every panel is then a new stream.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::linear::{STREAM_ROWS, panel_rows};
use super::pool::Pool;
use crate::tensor::HostTensor;

/// Where one thread's share has got to; a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Cursor(AtomicUsize);

/// How the outputs of a matrix may be divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    /// Outputs in all.
    pub(super) len: usize,
    /// A thread's share is a multiple of this.
    pub(super) unit: usize,
    /// Outputs that are taken at a time, a multiple of the unit.
    pub(super) panel: usize,
}

impl Division {
    /// That of a matrix whose rows are its outputs: whole panels.
    pub(super) fn of_rows(weight: &HostTensor) -> Division {
        let panel = panel_rows(weight.cols() * weight.dtype().size_bytes());
        Division { len: weight.rows(), unit: panel, panel }
    }

    /// Outputs that each thread has to itself.
    pub(super) fn share(&self, num_threads: usize) -> usize {
        self.len.div_ceil(self.unit).div_ceil(num_threads) * self.unit
    }
}

/// The columns of one product. Make it before the job starts: it resets the pool's cursors.
pub(super) struct Parts<'a> {
    cursors: &'a [Cursor],
    len: usize,
    share: usize,
    panel: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(pool: &'a Pool, division: Division, rows: usize) -> Parts<'a> {
        let Division { len, unit, panel } = division;
        let share = division.share(pool.num_threads());
        let quarter = (share / 4).next_multiple_of(unit);
        let panel = if rows <= STREAM_ROWS { panel.max(quarter) } else { panel };
        let cursors = pool.cursors();
        for (worker, cursor) in cursors.iter().enumerate() {
            cursor.0.store(worker * share, Ordering::Relaxed);
        }
        Parts { cursors, len, share, panel }
    }

    /// The next panel for `worker`: of its own share, else of another's.
    pub(super) fn take(&self, worker: usize) -> Option<Range<usize>> {
        let count = self.cursors.len();
        (0..count).find_map(|step| self.take_of((worker + step) % count))
    }

    fn take_of(&self, owner: usize) -> Option<Range<usize>> {
        let end = self.len.min((owner + 1) * self.share);
        // Looking first keeps the cursor from running away.
        if self.cursors[owner].0.load(Ordering::Relaxed) >= end {
            return None;
        }
        let start = self.cursors[owner].0.fetch_add(self.panel, Ordering::Relaxed);
        (start < end).then(|| start..end.min(start + self.panel))
    }
}
