//! The inputs of one step on the device: packed into one pinned block, copied with one call (what was
//! seen, for penalties, with a second).
//!
//! There are two blocks, used in turn: one may still be on its way when the next step is packed.
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
//! | draws         | sequences * 12 u32   | how the tokens of wanted rows are drawn, `SampleRow`|
//! | block_table   | sequences * pages u32| page numbers, rows of `max_pages`                   |
//! | seen          | capacity * 2 u32     | id, and how often the reply has it                  |

use std::sync::Arc;

use super::driver::{Context, Stream};
use super::memory::{DeviceMemory, PinnedMemory};
use crate::backend::RopeStep;
use crate::batch::{Batch, Draw, FED, NO_SLOT, PAGE_TOKENS};
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
    /// Ids that can be drawn: 0..usable_ids.
    pub usable_ids: usize,
}

impl StepLimits {
    /// Most distinct ids of all sequences of a step together: each is in the cache, but for the last. Where
    /// sequences share pages there may be more; the engine draws such steps itself.
    fn seen_capacity(&self) -> usize {
        let longest = self.max_pages * PAGE_TOKENS + 1;
        let all = self.cache_pages * PAGE_TOKENS + self.max_sequences;
        (self.max_sequences * self.usable_ids.min(longest)).min(all)
    }
}

/// 32-bit words of one `SampleRow` of `sample.cu`.
const DRAW_WORDS: usize = 12;
/// Its states.
const ROW_DRAWN: u32 = 1;
const ROW_FED: u32 = 2;

/// Where each part begins, in 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    rows: usize,
    query_scale: usize,
    logits_rows: usize,
    cu_seqlens: usize,
    context_lens: usize,
    inv_freq: usize,
    draws: usize,
    block_table: usize,
    seen: usize,
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
        let draws = inv_freq + words(limits.max_sequences * limits.head_dim / 2);
        let block_table = draws + sequences * DRAW_WORDS;
        let seen = block_table + words(limits.max_sequences * limits.max_pages);
        Layout {
            rows,
            query_scale,
            logits_rows,
            cu_seqlens,
            context_lens,
            inv_freq,
            draws,
            block_table,
            seen,
        }
    }

    fn total_words(&self, limits: &StepLimits) -> usize {
        self.seen + 2 * limits.seen_capacity()
    }
}

/// The inputs of the step that is being queued.
pub(super) struct StepInputs {
    limits: StepLimits,
    hosts: [PinnedMemory; 2],
    /// Which of them has this step.
    pub(super) turn: usize,
    device: DeviceMemory,
    layout: Layout,
    /// What ops see.
    pub(super) extents: Extents,
    /// Room for logits on the host that no step uses at the moment: pinning memory takes longer than a step.
    pub(super) spare_logits: Option<PinnedMemory>,
    /// The same for hidden states.
    pub(super) spare_hidden: Option<PinnedMemory>,
}

/// Shape of the step, padded as it runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extents {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    pub(super) logits_rows: usize,
    /// Rows of logits that somebody wants: without padding.
    pub(super) wanted_rows: usize,
    /// Tokens drawn: all of those, or none.
    pub(super) draws: usize,
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
    pub(super) draws: u64,
    pub(super) block_table: u64,
    pub(super) seen: u64,
}

impl StepInputs {
    pub(super) fn new(context: &Arc<Context>, limits: StepLimits) -> Result<StepInputs> {
        let layout = Layout::new(&limits, limits.max_tokens);
        let bytes = layout.total_words(&limits) * 4;
        let host = || PinnedMemory::new(context, bytes, "step inputs");
        Ok(StepInputs {
            limits,
            hosts: [host()?, host()?],
            turn: 0,
            device: DeviceMemory::new(context, bytes, "step inputs")?,
            layout,
            extents: Extents::default(),
            spare_logits: None,
            spare_hidden: None,
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
    /// copy of the last step but one.
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
        self.turn ^= 1;
        let host = &mut self.hosts[self.turn];
        let words = host.words_mut(self.layout.total_words(&self.limits));
        let sequences = padded.unwrap_or(batch.num_sequences());
        assert!(sequences <= self.limits.max_sequences && batch.num_tokens() <= capacity);
        fill_rows(words, &self.layout, batch, rope, padded);
        fill_sequences(words, &self.layout, batch, rope, padded);
        fill_draws(&mut words[self.layout.draws..], batch, padded);
        fill_pages(&mut words[self.layout.block_table..], self.limits.max_pages, batch);
        let seen_words = fill_seen(&mut words[self.layout.seen..], batch);
        self.extents = Extents {
            rows: padded.unwrap_or(batch.num_tokens()),
            sequences,
            logits_rows: padded.unwrap_or(batch.logits_rows.len()),
            wanted_rows: batch.logits_rows.len(),
            draws: batch.draws.len(),
            longest: (0..batch.num_sequences()).map(|s| batch.rows(s).len()).max().unwrap_or(0),
            has_single: (0..batch.num_sequences()).any(|s| batch.rows(s).len() == 1),
        };
        let used = self.layout.block_table + batch.num_sequences() * self.limits.max_pages;
        self.device.upload(stream, 0, host, 0..used * 4)?;
        if seen_words == 0 {
            return Ok(());
        }
        let seen = self.layout.seen * 4;
        self.device.upload(stream, seen, host, seen..seen + seen_words * 4)
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
            draws: at(l.draws),
            block_table: at(l.block_table),
            seen: at(l.seen),
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

fn fill_draws(words: &mut [u32], batch: &Batch, padded: Option<usize>) {
    let rows = padded.unwrap_or(batch.logits_rows.len());
    let mut draws = batch.draws.iter().zip(&batch.logits_rows);
    for words in words.chunks_exact_mut(DRAW_WORDS).take(rows) {
        match draws.next() {
            Some((draw, row)) => {
                let is_fed = batch.token_ids[*row as usize] & FED != 0;
                let state = if is_fed { ROW_FED } else { ROW_DRAWN };
                words.copy_from_slice(&draw_words(draw, state));
            }
            None => words.fill(0),
        }
    }
}

/// One row as `sample.cu` reads it.
fn draw_words(draw: &Draw, state: u32) -> [u32; DRAW_WORDS] {
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
        state,
        uniform as u32,
        (uniform >> 32) as u32,
    ]
}

/// Returns the number of words written.
fn fill_seen(words: &mut [u32], batch: &Batch) -> usize {
    let len = 2 * batch.seen.len();
    for (pair, (id, count)) in words[..len].chunks_exact_mut(2).zip(&batch.seen) {
        pair.copy_from_slice(&[*id, *count]);
    }
    len
}
