//! Sums over ranks of many rows: each row has an owner, which adds it up for all, and does the norm after
//! it. `reduce_rows.cu` has how.
//!
//! Ranks write into each other's activations, so each knows where the others have theirs: buffers are
//! made in the same order everywhere. After a norm, only the owner of a row has its residual stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::comm::Peers;
use super::group::MAX_WORLD;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, Norm};
use crate::error::Result;
use crate::tensor::Dtype;

/// As `reduce_rows.cu` has them.
const THREADS: u32 = 512;
const MOST_COLS: usize = 8192;
const GATHER_THREADS: u32 = 256;
/// Blocks of a launch, at most; two run on a multiprocessor at once.
pub(super) const MOST_BLOCKS: usize = 256;
pub(super) const BLOCKS_AN_SM: usize = 2;

/// Field by field as in `reduce_rows.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RowsArguments {
    peers: Peers,
    x: [u64; MAX_WORLD],
    out: [u64; MAX_WORLD],
    residual: u64,
    weight: u64,
    flags: [u64; MAX_WORLD],
    counts: u64,
    staging: [u64; MAX_WORLD],
    rows: u32,
    cols: u32,
    epsilon: f32,
    each: u32,
}

const _: () = assert!(size_of::<RowsArguments>() == 408, "as the kernel has it");

#[repr(C)]
struct GatherArguments {
    to: u64,
    residual: [u64; MAX_WORLD],
    wanted: u64,
    each: u32,
    cols: u32,
}

const _: () = assert!(size_of::<GatherArguments>() == 88, "as the kernel has it");

/// The owners of rows, and where all ranks have their activations.
pub(super) struct Owners {
    reduce: Kernel,
    gather: Kernel,
    peers: Peers,
    flags: [u64; MAX_WORLD],
    staging: [u64; MAX_WORLD],
    counts: u64,
    blocks: u32,
    /// From where this rank has a buffer to where all ranks have it.
    buffers: HashMap<u64, [u64; MAX_WORLD]>,
    /// The residual stream of which each rank has its own rows in this step; 0: of none.
    scattered: AtomicU64,
}

/// Where what signals go through is: words that others write, and this rank's own.
pub(super) struct Signals {
    pub(super) flags: [u64; MAX_WORLD],
    /// Where others send rows that are this rank's.
    pub(super) staging: [u64; MAX_WORLD],
    pub(super) counts: u64,
    pub(super) blocks: usize,
}

impl Owners {
    /// `buffers` are each rank's, in the order in which they were made.
    pub(super) fn new(
        kernels: &Kernels,
        dtype: Dtype,
        (peers, signals): (Peers, Signals),
        buffers: &[Vec<u64>],
    ) -> Result<Owners> {
        let own = &buffers[peers.rank as usize];
        let of_all = |index: usize| {
            let mut addresses = [0; MAX_WORLD];
            for (to, theirs) in addresses.iter_mut().zip(buffers) {
                *to = theirs[index];
            }
            addresses
        };
        Ok(Owners {
            reduce: kernels.get(&format!("reduce_rows_{}", dtype.name()), 0)?,
            gather: kernels.get("gather_owned", 0)?,
            peers,
            flags: signals.flags,
            staging: signals.staging,
            counts: signals.counts,
            blocks: signals.blocks as u32,
            buffers: own.iter().enumerate().map(|(index, own)| (*own, of_all(index))).collect(),
            scattered: AtomicU64::new(0),
        })
    }

    /// The sum of `rows` rows of `cols` at `x`, if it can be had so.
    pub(super) fn sum(self: &Arc<Owners>, x: u64, rows: usize, cols: usize) -> Option<RowSum> {
        let all = self.buffers.get(&x).filter(|_| cols <= MOST_COLS)?;
        let arguments = RowsArguments {
            peers: self.peers,
            x: *all,
            out: [0; MAX_WORLD],
            residual: 0,
            weight: 0,
            flags: self.flags,
            counts: self.counts,
            staging: self.staging,
            rows: rows as u32,
            cols: cols as u32,
            epsilon: 0.0,
            each: self.each(rows) as u32,
        };
        Some(RowSum { owners: Arc::clone(self), arguments })
    }

    /// Rows of each rank, of `rows`.
    fn each(&self, rows: usize) -> usize {
        rows.div_ceil(self.peers.world as usize)
    }

    /// Rows are everybody's again.
    pub(super) fn begin_step(&self) {
        self.scattered.store(0, Ordering::Relaxed);
    }

    /// Has each rank only its own rows of `x`?
    pub(super) fn has_scattered(&self, x: u64) -> bool {
        self.scattered.load(Ordering::Relaxed) == x
    }

    /// `to[i]` = row `wanted[i]`, of `count`, of the scattered stream, which has `rows` rows of `cols`. All
    /// ranks have ended their last change to it: a sum came between.
    pub(super) fn gather(
        &self,
        launcher: &Launcher,
        (to, wanted, count): (u64, u64, usize),
        (rows, cols): (usize, usize),
    ) -> Result<()> {
        let residual = self.buffers[&self.scattered.load(Ordering::Relaxed)];
        let each = self.each(rows) as u32;
        let arguments = GatherArguments { to, residual, wanted, each, cols: cols as u32 };
        launcher.launch_struct(self.gather, config(count as u32, GATHER_THREADS), &arguments)
    }
}

/// A sum that can be launched.
#[derive(Clone)]
pub(super) struct RowSum {
    owners: Arc<Owners>,
    arguments: RowsArguments,
}

impl RowSum {
    /// Is `norm` one of this sum that it can do?
    pub(super) fn yields(&self, norm: &Norm) -> bool {
        let RowsArguments { x, rows, cols, peers, .. } = &self.arguments;
        (x[peers.rank as usize], *rows as usize, *cols as usize)
            == (norm.delta, norm.rows, norm.cols)
            && self.owners.buffers.contains_key(&norm.out)
            && self.owners.buffers.contains_key(&norm.residual)
    }

    /// Launches it, with `norm` if there is one.
    pub(super) fn launch(&self, launcher: &Launcher, norm: Option<&Norm>) -> Result<()> {
        let mut arguments = self.arguments;
        if let Some(norm) = norm {
            arguments.out = self.owners.buffers[&norm.out];
            (arguments.residual, arguments.weight) = (norm.residual, norm.weight);
            arguments.epsilon = norm.epsilon;
            self.owners.scattered.store(norm.residual, Ordering::Relaxed);
        }
        let config = config(self.owners.blocks, THREADS);
        launcher.launch_struct(self.owners.reduce, config, &arguments)
    }
}

fn config(blocks: u32, threads: u32) -> Config {
    Config { grid: (blocks, 1, 1), threads, shared_bytes: 0, cooperative: false, cluster: 1 }
}
