//! The inputs of one step on the device: packed into one pinned block, copied with one call.
//!
//! The block's layout depends on how many rows it has room for, not on how many a step has, so that
//! a recorded step finds its inputs where they were. Small steps (decode) use the layout of
//! `max_sequences` rows, all others that of `max_tokens`.
//!
//! | part          | elements             | meaning                                             |
//! |---------------|----------------------|-----------------------------------------------------|
//! | token_ids     | rows u32             |                                                     |
//! | positions     | rows u32             |                                                     |
//! | row_sequence  | rows u32             | which row of inv_freq                               |
//! | slots         | rows i32             | where keys and values go; -1: nowhere               |
//! | many_slots    | rows i32             | the same, -1 also for rows alone in their sequence  |
//! | query_scale   | rows f32             |                                                     |
//! | logits_rows   | sequences u32        |                                                     |
//! | cu_seqlens    | sequences + 1 u32    |                                                     |
//! | context_lens  | sequences u32        | 0: no sequence                                      |
//! | inv_freq      | sequences * half f32 | rotary frequencies                                  |
//! | block_table   | sequences * pages u32| page numbers, rows of `max_pages`                   |

use std::sync::Arc;

use super::driver::{Context, Stream};
use super::memory::{DeviceMemory, PinnedMemory};
use crate::backend::RopeStep;
use crate::batch::{Batch, NO_SLOT};
use crate::error::Result;

/// Largest extents of any step.
#[derive(Debug, Clone, Copy)]
pub struct StepLimits {
    /// Token rows.
    pub max_tokens: usize,
    /// Sequences.
    pub max_sequences: usize,
    /// Pages of one sequence.
    pub max_pages: usize,
    /// Pages of the whole cache, or more.
    pub cache_pages: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Where each part begins, in 32-bit words; and where the block ends without its page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    rows: usize,
    query_scale: usize,
    logits_rows: usize,
    cu_seqlens: usize,
    context_lens: usize,
    inv_freq: usize,
    block_table: usize,
}

impl Layout {
    fn new(limits: &StepLimits, rows: usize) -> Layout {
        // Each part starts on 16 bytes.
        let words = |len: usize| len.next_multiple_of(4);
        let rows = words(rows);
        let sequences = words(limits.max_sequences);
        let query_scale = 5 * rows;
        let logits_rows = query_scale + rows;
        let cu_seqlens = logits_rows + sequences;
        let context_lens = cu_seqlens + words(limits.max_sequences + 1);
        let inv_freq = context_lens + sequences;
        let block_table = inv_freq + words(limits.max_sequences * limits.head_dim / 2);
        Layout { rows, query_scale, logits_rows, cu_seqlens, context_lens, inv_freq, block_table }
    }

    fn total_words(&self, limits: &StepLimits) -> usize {
        self.block_table + limits.max_sequences * limits.max_pages
    }
}

/// The inputs of the step that is being queued.
pub(super) struct StepInputs {
    limits: StepLimits,
    host: PinnedMemory,
    device: DeviceMemory,
    layout: Layout,
    /// What ops see.
    pub(super) extents: Extents,
}

/// Shape of the step, padded as it runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extents {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    pub(super) logits_rows: usize,
    /// Rows of logits that somebody wants: without padding.
    pub(super) wanted_rows: usize,
    /// Most rows of one sequence.
    pub(super) longest: usize,
    /// Some sequence has one row.
    pub(super) has_single: bool,
}

/// Device addresses of the parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) token_ids: u64,
    pub(super) positions: u64,
    pub(super) row_sequence: u64,
    pub(super) slots: u64,
    pub(super) many_slots: u64,
    pub(super) query_scale: u64,
    pub(super) logits_rows: u64,
    pub(super) cu_seqlens: u64,
    pub(super) context_lens: u64,
    pub(super) inv_freq: u64,
    pub(super) block_table: u64,
}

impl StepInputs {
    pub(super) fn new(context: &Arc<Context>, limits: StepLimits) -> Result<StepInputs> {
        let layout = Layout::new(&limits, limits.max_tokens);
        let bytes = layout.total_words(&limits) * 4;
        Ok(StepInputs {
            limits,
            host: PinnedMemory::new(context, bytes, "step inputs")?,
            device: DeviceMemory::new(context, bytes, "step inputs")?,
            layout,
            extents: Extents::default(),
        })
    }

    /// Bytes of device memory that `new` takes.
    pub(super) fn device_bytes(limits: &StepLimits) -> usize {
        Layout::new(limits, limits.max_tokens).total_words(limits) * 4
    }

    pub(super) fn limits(&self) -> &StepLimits {
        &self.limits
    }

    /// Queues the copy of a step's inputs. `padded` is the number of rows to run, at least the
    /// batch's own; a padded step has one row in each sequence. The stream must have passed the
    /// copy of the step before.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        batch: &Batch,
        rope: &RopeStep,
        padded: Option<usize>,
    ) -> Result<()> {
        let capacity = match padded {
            Some(_) => self.limits.max_sequences,
            None => self.limits.max_tokens,
        };
        self.layout = Layout::new(&self.limits, capacity);
        let words = self.host.words_mut(self.layout.total_words(&self.limits));
        let sequences = padded.unwrap_or(batch.num_sequences());
        assert!(sequences <= self.limits.max_sequences && batch.num_tokens() <= capacity);
        fill_rows(words, &self.layout, batch, rope, padded);
        fill_sequences(words, &self.layout, batch, rope, padded);
        fill_pages(&mut words[self.layout.block_table..], self.limits.max_pages, batch);
        self.extents = Extents {
            rows: padded.unwrap_or(batch.num_tokens()),
            sequences,
            logits_rows: padded.unwrap_or(batch.logits_rows.len()),
            wanted_rows: batch.logits_rows.len(),
            longest: (0..batch.num_sequences()).map(|s| batch.rows(s).len()).max().unwrap_or(0),
            has_single: (0..batch.num_sequences()).any(|s| batch.rows(s).len() == 1),
        };
        let used = self.layout.block_table + batch.num_sequences() * self.limits.max_pages;
        self.device.upload(stream, 0, &self.host, used * 4)
    }

    /// Where the parts of this step are.
    pub(super) fn addresses(&self) -> Addresses {
        let at = |word: usize| self.device.address() + 4 * word as u64;
        let l = &self.layout;
        Addresses {
            token_ids: at(0),
            positions: at(l.rows),
            row_sequence: at(2 * l.rows),
            slots: at(3 * l.rows),
            many_slots: at(4 * l.rows),
            query_scale: at(l.query_scale),
            logits_rows: at(l.logits_rows),
            cu_seqlens: at(l.cu_seqlens),
            context_lens: at(l.context_lens),
            inv_freq: at(l.inv_freq),
            block_table: at(l.block_table),
        }
    }
}

fn fill_rows(
    words: &mut [u32],
    layout: &Layout,
    batch: &Batch,
    rope: &RopeStep,
    padded: Option<usize>,
) {
    let rows = layout.rows;
    let tokens = batch.num_tokens();
    words[..tokens].copy_from_slice(&batch.token_ids);
    words[rows..rows + tokens].copy_from_slice(&batch.positions);
    words[3 * rows..3 * rows + tokens].copy_from_slice(&batch.slot_mapping);
    for sequence in 0..batch.num_sequences() {
        let range = batch.rows(sequence);
        words[2 * rows..][range.clone()].fill(sequence as u32);
        let many = range.len() > 1;
        for row in range {
            words[4 * rows + row] = if many { batch.slot_mapping[row] } else { NO_SLOT };
        }
    }
    for (row, scale) in rope.query_scale.iter().enumerate() {
        words[layout.query_scale + row] = scale.to_bits();
    }
    for row in tokens..padded.unwrap_or(tokens) {
        for (part, value) in [(0, 0), (1, 0), (2, 0), (3, NO_SLOT), (4, NO_SLOT), (5, 0)] {
            words[part * rows + row] = value;
        }
    }
}

fn fill_sequences(
    words: &mut [u32],
    layout: &Layout,
    batch: &Batch,
    rope: &RopeStep,
    padded: Option<usize>,
) {
    let count = batch.num_sequences();
    let wanted = batch.logits_rows.len();
    words[layout.logits_rows..][..wanted].copy_from_slice(&batch.logits_rows);
    words[layout.cu_seqlens..][..=count].copy_from_slice(&batch.cu_seqlens);
    words[layout.context_lens..][..count].copy_from_slice(&batch.context_lens);
    for (index, frequency) in rope.inv_freq.iter().enumerate() {
        words[layout.inv_freq + index] = frequency.to_bits();
    }
    for sequence in count..padded.unwrap_or(count) {
        words[layout.logits_rows + sequence] = sequence as u32;
        words[layout.cu_seqlens + sequence + 1] = sequence as u32 + 1;
        words[layout.context_lens + sequence] = 0;
    }
}

fn fill_pages(table: &mut [u32], max_pages: usize, batch: &Batch) {
    for sequence in 0..batch.num_sequences() {
        let used = batch.max_pages;
        assert!(used <= max_pages, "a sequence has more pages than the step has room for");
        let row = &mut table[sequence * max_pages..][..used];
        row.copy_from_slice(&batch.pages(sequence)[..used]);
    }
}
