//! Drawing tokens on the device: the launch, and the tokens back. What each row asks for is among the
//! inputs of its step (`step`).

use super::buffer::{DeviceBuffer, Kind};
use super::driver::Stream;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher};
use super::memory::{DeviceMemory, PinnedMemory};
use super::step::{StepInputs, StepLimits};
use crate::error::Result;

/// As `sample.cu` has them: a group of eight blocks shares a row, and takes more in turn.
const BLOCKS_PER_ROW: u32 = 8;
const THREADS: u32 = 512;
const SHARED_BYTES: usize = 98_992;
const GROUP_WORKSPACE_BYTES: usize = 135_424;

/// Sums of so many weights are exact.
const MAX_IDS: usize = 1 << 23;

/// The one argument of the kernel; field by field as in `sample.cu`.
#[repr(C)]
struct SampleArguments {
    logits: u64,
    rows: u64,
    seen: u64,
    tokens: u64,
    workspace: u64,
    token_ids: u64,
    logits_rows: u64,
    num_rows: u32,
    num_ids: u32,
    stride: u32,
}

/// The draws of a step; their results are at a fixed place on the device.
pub(super) struct TokenSampler {
    kernel: Kernel,
    num_ids: usize,
    /// One for each turn.
    tokens_hosts: [PinnedMemory; 2],
    tokens: DeviceMemory,
    workspace: DeviceMemory,
}

impl TokenSampler {
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        limits: &StepLimits,
    ) -> Result<TokenSampler> {
        let context = stream.context();
        let token_bytes = limits.max_sequences * 4;
        let workspace_bytes = workspace_bytes(limits.max_sequences, context.device.num_sms);
        let host = || PinnedMemory::new(context, token_bytes, "sampling");
        Ok(TokenSampler {
            kernel: kernels.get("sample_tokens", SHARED_BYTES)?,
            num_ids: limits.usable_ids,
            tokens_hosts: [host()?, host()?],
            tokens: DeviceMemory::zeroed(stream, token_bytes, "sampling")?,
            workspace: DeviceMemory::zeroed(stream, workspace_bytes, "sampling")?,
        })
    }

    /// Bytes of device memory that `new` takes.
    pub(super) fn device_bytes(limits: &StepLimits, num_sms: u32) -> usize {
        limits.max_sequences * 4 + workspace_bytes(limits.max_sequences, num_sms)
    }

    /// Queues the draws of `step` from its `logits [rows, vocab]`.
    pub(super) fn draw(
        &self,
        launcher: &Launcher,
        step: &StepInputs,
        logits: &DeviceBuffer,
    ) -> Result<()> {
        let (at, rows) = (step.addresses(), step.extents.logits_rows);
        assert!(logits.kind() == Kind::Stream && self.num_ids <= logits.cols());
        assert!(self.num_ids <= MAX_IDS);
        let arguments = SampleArguments {
            logits: logits.address(),
            rows: at.draws,
            seen: at.seen,
            tokens: self.tokens.address(),
            workspace: self.workspace.address(),
            token_ids: at.token_ids,
            logits_rows: at.logits_rows,
            num_rows: rows as u32,
            num_ids: self.num_ids as u32,
            stride: logits.cols() as u32,
        };
        let is_hopper = launcher.kernels.is_hopper();
        let groups = num_groups(rows, is_hopper, launcher.num_sms());
        let config = Config {
            grid: (BLOCKS_PER_ROW * groups, 1, 1),
            threads: THREADS,
            shared_bytes: SHARED_BYTES as u32,
            // A cluster of Hopper runs at once by itself.
            cooperative: !is_hopper,
            cluster: 1,
        };
        launcher.launch_struct(self.kernel, config, &arguments)
    }

    /// Where the tokens of the step before are, by wanted row, until a step's draws.
    pub(super) fn drawn(&self) -> u64 {
        self.tokens.address()
    }

    /// Queues the copy of the first `count` tokens to the host, for a step of this `turn`.
    pub(super) fn fetch(&mut self, stream: &Stream, turn: usize, count: usize) -> Result<()> {
        self.tokens.download(stream, &mut self.tokens_hosts[turn], count * 4)
    }

    /// The tokens fetched in `turn`, once the stream has passed their copy.
    pub(super) fn fetched(&self, turn: usize, count: usize) -> &[u32] {
        self.tokens_hosts[turn].words(count)
    }
}

/// Groups of blocks for `rows`: one a row. Before Hopper the blocks of a group wait for each other in
/// memory, so no more are launched than can run at once.
fn num_groups(rows: usize, is_hopper: bool, num_sms: u32) -> u32 {
    match is_hopper {
        true => rows as u32,
        false => (rows as u32).min(num_sms / BLOCKS_PER_ROW).max(1),
    }
}

/// What the groups exchange before Hopper, whose clusters need no memory for it.
fn workspace_bytes(max_rows: usize, num_sms: u32) -> usize {
    GROUP_WORKSPACE_BYTES * num_groups(max_rows, false, num_sms) as usize
}
