//! Plan and sequences -> `Batch`: the rows of each sequence's part of a step, their pages, and how the
//! next tokens are drawn.

use crate::batch::{Batch, Draw};
use crate::engine::scheduler::Run;
use crate::engine::sequence::Sequence;
use crate::error::Result;
use crate::kv::PagePool;
use crate::sample::uniform;

use super::step::bug;

/// Empties `batch`, keeping its memory.
pub(super) fn clear(batch: &mut Batch) {
    batch.token_ids.clear();
    batch.positions.clear();
    batch.slot_mapping.clear();
    batch.cu_seqlens.clear();
    batch.cu_seqlens.push(0);
    batch.context_lens.clear();
    batch.block_table.clear();
    batch.ntk_lens.clear();
    batch.logits_rows.clear();
    batch.draws.clear();
    batch.hidden_rows.clear();
    batch.seen.clear();
}

/// Appends the tokens that `run` computes of `sequence`, which has the pages for them. Wanted rows are
/// those that measure its prompt, then, if a token is drawn after them, the last: which one that is.
pub(super) fn push_rows(
    batch: &mut Batch,
    sequence: &Sequence,
    run: Run,
    pool: &PagePool,
) -> Result<Option<u32>> {
    let first = sequence.computed_tokens();
    for position in first..first + run.tokens {
        let slot = pool.slot(&sequence.pages, position);
        batch.slot_mapping.push(slot.ok_or_else(|| bug("a token has no page"))?);
        batch.positions.push(position as u32);
    }
    sequence.push_next_tokens(run.tokens, &mut batch.token_ids);
    let end = batch.token_ids.len() as u32;
    batch.cu_seqlens.push(end);
    batch.context_lens.push((first + run.tokens) as u32);
    batch.ntk_lens.push(sequence.prompt_tokens() as u32);
    let row_of = |position: usize| end - (first + run.tokens - position) as u32;
    batch.logits_rows.extend(sequence.wanted_rows(run.tokens).map(row_of));
    if run.tokens < sequence.view().pending_tokens() {
        return Ok(None);
    }
    batch.logits_rows.push(end - 1);
    Ok(Some(batch.logits_rows.len() as u32 - 1))
}

/// Appends how the token after the rows of `sequence` is drawn.
pub(super) fn push_draw(batch: &mut Batch, sequence: &Sequence) {
    let (params, seen) = sequence.sampling();
    let seen_start = batch.seen.len();
    if params.has_penalties() {
        batch.seen.extend(seen.iter());
    }
    batch.draws.push(Draw {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        uniform: uniform(params.seed, sequence.position_to_draw()),
        seen_start: seen_start as u32,
        seen_count: (batch.seen.len() - seen_start) as u32,
    });
}

pub(super) fn write_block_table(batch: &mut Batch, runs: &[Run], sequences: &[Sequence]) {
    let pages = |run: &Run| sequences[run.index].pages.pages();
    batch.max_pages = runs.iter().map(|run| pages(run).len()).max().unwrap_or(0);
    for run in runs {
        batch.block_table.extend_from_slice(pages(run));
        let row_end = batch.block_table.len().next_multiple_of(batch.max_pages.max(1));
        batch.block_table.resize(row_end, 0);
    }
}
