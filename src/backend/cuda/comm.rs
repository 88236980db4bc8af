//! What one rank does with the others on the device: sums of what linears yield, with the norm after
//! them where a linear follows, the residual stream handed over, and logits side by side.
//! `all_reduce.cu` has how.

use std::sync::Arc;

use super::buffer::{DeviceBuffer, Kind};
use super::driver::Stream;
use super::group::{Group, GroupShape, MAX_WORLD};
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, Norm};
use super::memory::{DeviceMemory, PinnedMemory};
use super::owners::{BLOCKS_AN_SM, MOST_BLOCKS, Owners, Signals};
use super::pending::{Epilogue, Linear};
use super::step::StepLimits;
use crate::error::Result;
use crate::tensor::Dtype;

/// As `exchange.cuh` has them.
const BLOCKS: u32 = 64;
const THREADS: u32 = 256;
/// What kernels of a rank keep from call to call: counts of calls, whether one has waited in vain, and
/// counts of signals; and a copy of its `Peers`.
const FAILED_OFFSET: u64 = 8 * BLOCKS as u64;
const COUNTS_OFFSET: u64 = FAILED_OFFSET + 8;
const PEERS_OFFSET: u64 = COUNTS_OFFSET + 4 * MOST_BLOCKS as u64;
const STATE_BYTES: usize = PEERS_OFFSET as usize + size_of::<Peers>();
/// Rows of the largest sum that may do its part of a norm: as many as linears of few rows take. Of
/// more rows each has an owner.
const MOST_NORM_ROWS: usize = 128;

/// Field by field as in `exchange.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Peers {
    memory: [u64; MAX_WORLD],
    calls: u64,
    has_failed: u64,
    shared: u64,
    timeout_ns: u64,
    pub(super) rank: u32,
    pub(super) world: u32,
    slot_floats: u32,
    unused: u32,
}

const _: () = assert!(size_of::<Peers>() == 112, "as the kernels have it");

impl Peers {
    /// Puts a copy where linears find it.
    fn store(&self, stream: &Stream, state: &mut DeviceMemory) -> Result<()> {
        let mut host = PinnedMemory::new(stream.context(), size_of::<Peers>(), "ranks")?;
        let longs = self.memory.into_iter().chain([
            self.calls,
            self.has_failed,
            self.shared,
            self.timeout_ns,
            u64::from(self.rank) | u64::from(self.world) << 32,
            u64::from(self.slot_floats),
        ]);
        let words = host.words_mut(size_of::<Peers>() / 4);
        for (two, long) in words.chunks_exact_mut(2).zip(longs) {
            two.copy_from_slice(&[long as u32, (long >> 32) as u32]);
        }
        state.upload(stream, PEERS_OFFSET as usize, &host, 0..size_of::<Peers>())?;
        stream.wait()
    }
}

/// Field by field as in `all_reduce.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ReduceArguments {
    peers: Peers,
    x: u64,
    residual: u64,
    gain: u64,
    weighted: u64,
    squares: u64,
    rows: u32,
    cols: u32,
    then: u32,
    is_sent: u32,
}

const _: () = assert!(size_of::<ReduceArguments>() == 168, "as the kernel has it");

/// What follows a sum: nothing, or the residual stream and half of a norm.
const STORE: u32 = 0;
const ADD_NORM: u32 = 1;

#[repr(C)]
struct GatherArguments {
    peers: Peers,
    part: u64,
    full: u64,
    starts: [u32; MAX_WORLD + 1],
    rows: u32,
}

const _: () = assert!(size_of::<GatherArguments>() == 168, "as the kernel has it");

#[repr(C)]
struct HandArguments {
    peers: Peers,
    x: u64,
    delta: u64,
    count: u32,
    from: u32,
    to: u32,
    unused: u32,
}

const _: () = assert!(size_of::<HandArguments>() == 144, "as the kernel has it");

/// A sum that can be launched.
#[derive(Clone, Copy)]
pub(super) struct Reduce {
    kernel: Kernel,
    arguments: ReduceArguments,
    /// Where `arguments.peers` are on the device.
    peers: u64,
}

impl Reduce {
    /// Has `linear`, which comes just before, send what is summed, if that is all it yields.
    pub(super) fn sent_by(&mut self, linear: &mut Linear) {
        let ReduceArguments { x, rows, cols, .. } = self.arguments;
        let of = linear.arguments;
        if (of.out, of.rows, of.n) == (x, rows, cols) && of.epilogue == Epilogue::Stream as u32 {
            linear.arguments.epilogue = Epilogue::Send as u32;
            linear.arguments.weighted = self.peers;
            self.arguments.is_sent = 1;
        }
    }

    /// Is `norm` one of this sum that it can do its part of?
    pub(super) fn yields(&self, norm: &Norm) -> bool {
        let ReduceArguments { x, rows, cols, .. } = self.arguments;
        (x, rows as usize, cols as usize) == (norm.delta, norm.rows, norm.cols)
            && norm.rows <= MOST_NORM_ROWS
    }

    /// This sum, which does its part of `norm`; and where that leaves the weighted stream, which is
    /// where the norm's output would be, and the sums of its squares.
    pub(super) fn before(self, norm: &Norm) -> (Reduce, u64, u64) {
        let arguments = ReduceArguments {
            residual: norm.residual,
            gain: norm.weight,
            weighted: norm.out,
            then: ADD_NORM,
            ..self.arguments
        };
        (Reduce { arguments, ..self }, norm.out, arguments.squares)
    }

    pub(super) fn launch(&self, launcher: &Launcher) -> Result<()> {
        launcher.launch_struct(self.kernel, CONFIG, &self.arguments)
    }
}

const CONFIG: Config = Config {
    grid: (BLOCKS, 1, 1),
    threads: THREADS,
    shared_bytes: 0,
    cooperative: false,
    cluster: 1,
};

/// One rank among the devices of its group.
pub(super) struct Communicator {
    pub(super) group: Arc<Group>,
    pub(super) rank: usize,
    all_reduce: Kernel,
    gather_logits: Kernel,
    hand_over: Kernel,
    peers: Peers,
    squares: DeviceMemory,
    /// Logits of all ranks `[rows, vocab]`.
    pub(super) logits: DeviceBuffer,
    /// See `STATE_BYTES`.
    state: DeviceMemory,
    /// Where this rank has its activations, in the order in which they were made.
    buffers: Vec<DeviceMemory>,
    /// None before the ranks have met, or where they do not reach each other's memory.
    owners: Option<Arc<Owners>>,
}

impl Communicator {
    pub(super) fn new(
        (group, rank): (&Arc<Group>, usize),
        (stream, kernels): (&Stream, &Kernels),
        dtype: Dtype,
        limits: &StepLimits,
    ) -> Result<Communicator> {
        let shape = group.shape();
        let mut state = DeviceMemory::zeroed(stream, STATE_BYTES, "exchange between devices")?;
        let (max_rows, cols) = (limits.max_sequences, shape.logits_cols.iter().sum());
        let logits = DeviceBuffer {
            memory: DeviceMemory::zeroed(stream, max_rows * cols * 4, "logits of all ranks")?,
            kind: Kind::Stream,
            max_rows,
            cols,
            rows: 0,
        };
        let peers = Peers {
            memory: group.addresses(),
            calls: state.address(),
            has_failed: state.address() + FAILED_OFFSET,
            shared: group.shared_address(),
            timeout_ns: group.timeout_ns(),
            rank: rank as u32,
            world: group.world() as u32,
            slot_floats: shape.slot_floats() as u32,
            unused: 0,
        };
        peers.store(stream, &mut state)?;
        Ok(Communicator {
            group: Arc::clone(group),
            rank,
            all_reduce: kernels.get(&format!("all_reduce_{}", dtype.name()), 0)?,
            gather_logits: kernels.get("gather_logits", 0)?,
            hand_over: kernels.get("hand_over", 0)?,
            peers,
            squares: DeviceMemory::zeroed(stream, squares_bytes(shape), "sums of squares")?,
            logits,
            state,
            buffers: Vec::new(),
            owners: None,
        })
    }

    /// Bytes of the allocations on each device that a group and `new` make.
    pub(super) fn device_bytes(shape: &GroupShape, limits: &StepLimits) -> [usize; 4] {
        let logits = limits.max_sequences * shape.logits_cols.iter().sum::<usize>() * 4;
        [shape.exchange_bytes(), STATE_BYTES, logits, squares_bytes(shape)]
    }

    /// A buffer of activations was made.
    pub(super) fn add_buffer(&mut self, memory: &DeviceMemory) {
        self.buffers.push(memory.part(0..memory.len_bytes()));
    }

    /// All ranks have their weights and buffers: they may wait for each other from now on.
    pub(super) fn meet(&mut self, kernels: &Kernels, dtype: Dtype) -> Result<()> {
        let buffers =
            self.group.exchange_activations(self.rank, std::mem::take(&mut self.buffers))?;
        let Some([flags, staging]) = self.group.flags_and_staging() else { return Ok(()) };
        let blocks = MOST_BLOCKS.min(BLOCKS_AN_SM * self.group.fewest_sms());
        let counts = self.state.address() + COUNTS_OFFSET;
        let signals = Signals { flags, staging, counts, blocks };
        let owners = Owners::new(kernels, dtype, (self.peers, signals), &buffers)?;
        self.owners = Some(Arc::new(owners));
        Ok(())
    }

    pub(super) fn begin_step(&self) {
        self.owners.iter().for_each(|owners| owners.begin_step());
    }

    /// The owners of rows of `x`, if it is scattered over the ranks.
    pub(super) fn owners_of(&self, x: &DeviceBuffer) -> Option<&Owners> {
        self.owners.as_deref().filter(|owners| owners.has_scattered(x.address()))
    }

    /// `x = sum over ranks of x`, queued; it waits for the op after it, unless it takes several pieces.
    pub(super) fn all_reduce(&self, launcher: &Launcher, x: &DeviceBuffer) -> Result<()> {
        assert!(x.kind() == Kind::Stream && x.cols().is_multiple_of(8));
        let (rows, cols) = (x.rows(), x.cols());
        if rows > MOST_NORM_ROWS
            && let Some(owners) = &self.owners
            && let Some(sum) = owners.sum(x.address(), rows, cols)
        {
            return launcher.pending.queue_rows(launcher, sum);
        }
        let most = self.peers.slot_floats as usize / cols;
        let part = |first: usize| Reduce {
            kernel: self.all_reduce,
            peers: self.state.address() + PEERS_OFFSET,
            arguments: ReduceArguments {
                peers: self.peers,
                x: x.address() + (first * cols * 4) as u64,
                residual: 0,
                gain: 0,
                weighted: 0,
                squares: self.squares.address(),
                rows: (rows - first).min(most) as u32,
                cols: cols as u32,
                then: STORE,
                is_sent: 0,
            },
        };
        if (1..=most).contains(&rows) {
            return launcher.pending.queue_reduce(launcher, part(0));
        }
        (0..rows).step_by(most).try_for_each(|first| part(first).launch(launcher))
    }

    /// Queues `x` of rank `to` = `x + delta` of rank `from`, of `x`'s rows.
    pub(super) fn hand_over(
        &self,
        launcher: &Launcher,
        (from, to): (usize, usize),
        (x, delta): (&DeviceBuffer, &DeviceBuffer),
    ) -> Result<()> {
        assert!(x.kind() == Kind::Stream && delta.kind() == Kind::Stream);
        assert!(x.cols() == delta.cols() && x.cols().is_multiple_of(4));
        assert!(self.rank != from || x.rows() == delta.rows());
        let (count, most) = (x.rows() * x.cols(), self.peers.slot_floats as usize);
        for first in (0..count).step_by(most) {
            let arguments = HandArguments {
                peers: self.peers,
                x: x.address() + first as u64 * 4,
                delta: delta.address() + first as u64 * 4,
                count: (count - first).min(most) as u32,
                from: from as u32,
                to: to as u32,
                unused: 0,
            };
            launcher.launch_struct(self.hand_over, CONFIG, &arguments)?;
        }
        Ok(())
    }

    /// Queues the gathering of `rows` rows of all ranks' logits, of which `part` are this one's: it may
    /// have none.
    pub(super) fn gather(
        &mut self,
        launcher: &Launcher,
        part: &DeviceBuffer,
        rows: usize,
    ) -> Result<()> {
        let cols = part.cols();
        let shares = &self.group.shape().logits_cols;
        assert!(part.kind() == Kind::Stream && cols == shares[self.rank]);
        self.logits.set_rows(rows);
        let mut starts = [0; MAX_WORLD + 1];
        for (rank, share) in shares.iter().enumerate() {
            starts[rank + 1] = starts[rank] + *share as u32;
        }
        let widest = shares.iter().copied().max().unwrap_or(1);
        let most = self.peers.slot_floats as usize / widest;
        for first in (0..rows).step_by(most) {
            let arguments = GatherArguments {
                peers: self.peers,
                part: part.address() + (first * cols * 4) as u64,
                full: self.logits.address() + (first * self.logits.cols() * 4) as u64,
                starts,
                rows: (rows - first).min(most) as u32,
            };
            launcher.launch_struct(self.gather_logits, CONFIG, &arguments)?;
        }
        Ok(())
    }
}

/// Two sums of eight for each sixteen columns of a row.
fn squares_bytes(shape: &GroupShape) -> usize {
    MOST_NORM_ROWS * 2 * shape.hidden_size.div_ceil(16) * 4
}
