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

/// Rows of `weight` that each thread has to itself: whole panels.
pub(super) fn share_rows(weight: &HostTensor, num_threads: usize) -> usize {
    let panel = panel_rows(weight.cols() * weight.dtype().size_bytes());
    weight.rows().div_ceil(panel).div_ceil(num_threads) * panel
}

/// The columns of one product. Make it before the job starts: it resets the pool's cursors.
pub(super) struct Parts<'a> {
    cursors: &'a [Cursor],
    len: usize,
    share: usize,
    panel: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(pool: &'a Pool, weight: &HostTensor, rows: usize) -> Parts<'a> {
        let len = weight.rows();
        let panel = panel_rows(weight.cols() * weight.dtype().size_bytes());
        let share = share_rows(weight, pool.num_threads());
        let panel = if rows <= STREAM_ROWS { panel.max(share / 4) } else { panel };
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
