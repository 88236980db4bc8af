//! Drawing tokens on the device: what each row of logits asks for, the ids its sequence has seen,
//! the launch, and the tokens back.

use super::buffer::{DeviceBuffer, Kind};
use super::driver::Stream;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher};
use super::memory::{DeviceMemory, PinnedMemory};
use super::step::{Extents, StepLimits};
use crate::batch::{Batch, Draw, PAGE_TOKENS};
use crate::error::Result;

/// As `sample.cu` has them: a group of eight blocks shares a row, and takes more in turn.
const BLOCKS_PER_ROW: u32 = 8;
const THREADS: u32 = 512;
const SHARED_BYTES: usize = 98_992;
const GROUP_WORKSPACE_BYTES: usize = 135_424;

/// Sums of so many weights are exact.
const MAX_IDS: usize = 1 << 23;

/// 32-bit words of one row's parameters on the device.
const ROW_WORDS: usize = 12;

/// The one argument of the kernel; field by field as in `sample.cu`.
#[repr(C)]
struct SampleArguments {
    logits: u64,
    rows: u64,
    seen: u64,
    tokens: u64,
    workspace: u64,
    num_rows: u32,
    num_ids: u32,
    stride: u32,
}

/// Parameters and results of the draws of a step, at fixed places on the device.
pub(super) struct TokenSampler {
    kernel: Kernel,
    num_ids: usize,
    rows_host: PinnedMemory,
    rows: DeviceMemory,
    seen_host: PinnedMemory,
    seen: DeviceMemory,
    tokens_host: PinnedMemory,
    tokens: DeviceMemory,
    workspace: DeviceMemory,
    /// Rows that this step draws for.
    wanted: usize,
    drawn: Vec<u32>,
}

/// Most distinct ids of all sequences of a step together: each is in the cache, but for the last.
fn seen_capacity(limits: &StepLimits, num_ids: usize) -> usize {
    let longest = limits.max_pages * PAGE_TOKENS + 1;
    let all = limits.cache_pages * PAGE_TOKENS + limits.max_sequences;
    (limits.max_sequences * num_ids.min(longest)).min(all)
}

impl TokenSampler {
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        limits: &StepLimits,
        num_ids: usize,
    ) -> Result<TokenSampler> {
        let context = stream.context();
        let rows_bytes = limits.max_sequences * ROW_WORDS * 4;
        let seen_bytes = seen_capacity(limits, num_ids) * 8;
        let token_bytes = limits.max_sequences * 4;
        let workspace_bytes = workspace_bytes(limits.max_sequences, context.device.num_sms);
        Ok(TokenSampler {
            kernel: kernels.get("sample_tokens", SHARED_BYTES)?,
            num_ids,
            rows_host: PinnedMemory::new(context, rows_bytes, "sampling")?,
            rows: DeviceMemory::new(context, rows_bytes, "sampling")?,
            seen_host: PinnedMemory::new(context, seen_bytes, "sampling")?,
            seen: DeviceMemory::new(context, seen_bytes, "sampling")?,
            tokens_host: PinnedMemory::new(context, token_bytes, "sampling")?,
            tokens: DeviceMemory::new(context, token_bytes, "sampling")?,
            workspace: DeviceMemory::zeroed(stream, workspace_bytes, "sampling")?,
            wanted: 0,
            drawn: Vec::new(),
        })
    }

    /// Bytes of device memory that `new` takes.
    pub(super) fn device_bytes(limits: &StepLimits, num_ids: usize, num_sms: u32) -> usize {
        limits.max_sequences * (ROW_WORDS + 1) * 4
            + seen_capacity(limits, num_ids) * 8
            + workspace_bytes(limits.max_sequences, num_sms)
    }

    /// Queues the copy of what the rows of `batch` ask for; `padded` rows have a place.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        batch: &Batch,
        padded: Option<usize>,
    ) -> Result<()> {
        self.wanted = batch.draws.len();
        self.drawn.clear();
        let rows = padded.unwrap_or(batch.logits_rows.len());
        let words = self.rows_host.words_mut(rows * ROW_WORDS);
        for (index, row) in words.chunks_exact_mut(ROW_WORDS).enumerate() {
            match batch.draws.get(index) {
                Some(draw) => row.copy_from_slice(&row_words(draw)),
                None => row.fill(0),
            }
        }
        self.rows.upload(stream, 0, &self.rows_host, rows * ROW_WORDS * 4)?;
        if batch.seen.is_empty() {
            return Ok(());
        }
        let pairs = self.seen_host.words_mut(batch.seen.len() * 2);
        for (pair, (id, count)) in pairs.chunks_exact_mut(2).zip(&batch.seen) {
            pair.copy_from_slice(&[*id, *count]);
        }
        self.seen.upload(stream, 0, &self.seen_host, batch.seen.len() * 8)
    }

    /// Queues the draws from `logits [rows, vocab]`.
    pub(super) fn draw(
        &self,
        launcher: &Launcher,
        extents: &Extents,
        logits: &DeviceBuffer,
    ) -> Result<()> {
        assert!(logits.kind() == Kind::Stream && self.num_ids <= logits.cols());
        assert!(self.num_ids <= MAX_IDS);
        let arguments = SampleArguments {
            logits: logits.address(),
            rows: self.rows.address(),
            seen: self.seen.address(),
            tokens: self.tokens.address(),
            workspace: self.workspace.address(),
            num_rows: extents.logits_rows as u32,
            num_ids: self.num_ids as u32,
            stride: logits.cols() as u32,
        };
        let is_hopper = launcher.kernels.is_hopper();
        let groups = num_groups(extents.logits_rows, is_hopper, launcher.num_sms());
        let config = Config {
            grid: (BLOCKS_PER_ROW * groups, 1, 1),
            threads: THREADS,
            shared_bytes: SHARED_BYTES as u32,
            // A cluster of Hopper runs at once by itself.
            cooperative: !is_hopper,
        };
        launcher.launch_struct(self.kernel, config, &arguments)
    }

    /// Does this step draw?
    pub(super) fn is_active(&self) -> bool {
        self.wanted > 0
    }

    /// Queues the copy of the tokens to the host.
    pub(super) fn fetch(&mut self, stream: &Stream) -> Result<()> {
        match self.wanted {
            0 => Ok(()),
            rows => self.tokens.download(stream, &mut self.tokens_host, rows * 4),
        }
    }

    /// Takes the tokens, once the stream has passed their copy.
    pub(super) fn take(&mut self) {
        self.drawn.extend_from_slice(self.tokens_host.words(self.wanted));
    }

    pub(super) fn drawn(&self) -> &[u32] {
        &self.drawn
    }
}

/// One row as `sample.cu` reads it.
fn row_words(draw: &Draw) -> [u32; ROW_WORDS] {
    let uniform = draw.uniform.to_bits();
    [
        draw.temperature.to_bits(),
        draw.top_k,
        draw.top_p.to_bits(),
        draw.min_p.to_bits(),
        draw.repetition_penalty.to_bits(),
        draw.presence_penalty.to_bits(),
        draw.frequency_penalty.to_bits(),
        draw.seen_start,
        draw.seen_count,
        1,
        uniform as u32,
        (uniform >> 32) as u32,
    ]
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
