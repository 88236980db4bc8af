//! What the prefix cache is to sequences that wait: what each would find there, and whether it had
//! better wait until another one has computed what both begin with. And what it is to those that may
//! have to give way: which of their pages would come back.
//!
//! The scheduler decides, the loop shares the pages, `kv` keeps them.

use crate::engine::scheduler::{Limits, Run};
use crate::engine::sequence::{Phase, Sequence, View};
use crate::kv::{PagePool, pages_for};

/// Appends the views that the next plan is made of. A waiting sequence is seen as it would start over the
/// cache. The first that had better wait is postponed: a prompt is computed once, and nobody overtakes it.
/// So is the first that cannot be admitted whatever the others do: looking for prefixes costs time.
pub(super) fn push_views(
    sequences: &[Sequence],
    pool: &mut PagePool,
    limits: &Limits,
    views: &mut Vec<View>,
) {
    // Nobody behind so many is admitted now, but some of a lower priority may be already.
    let last = sequences.iter().rposition(|sequence| sequence.view().admitted);
    let num_visible = limits.max_sequences.max(last.map_or(0, |last| last + 1));
    views.extend(sequences.iter().take(num_visible).map(Sequence::view));
    let held: usize = views.iter().filter(|view| view.admitted).map(|view| view.pages).sum();
    // At most what those before one leave to it: of prompt tokens, places and pages. Pages that several
    // hold count for each, so there may be less.
    let (mut tokens, mut places) = (limits.prefill_tokens, limits.max_sequences);
    let mut pages = pool.num_free() + held;
    let mut admits = true;
    for (index, view) in views.iter_mut().enumerate() {
        let mut needed = view.pages;
        admits &= view.admitted || (tokens > 0 && places > 0);
        if !view.admitted && admits {
            let found = sequences[index].find_prefix(pool);
            (view.computed_tokens, view.pages) = (found.tokens, found.held_pages);
            needed = pages_for(view.total_tokens, limits.page_tokens) - found.held_pages;
            view.postponed = waits_for_another(sequences, index, found.tokens, limits);
            admits = !view.postponed && needed <= pages;
            tokens = tokens.saturating_sub(view.pending_tokens());
        } else if !view.admitted {
            view.postponed = true;
            continue;
        }
        places = places.saturating_sub(1);
        pages = pages.saturating_sub(needed);
    }
    count_own(sequences, pool, limits, views);
}

/// Had the waiting sequence `index`, of which `found` tokens are cached, better wait until one before it
/// has computed more of them? Less than half of what is missing is not worth a place in the next batch.
fn waits_for_another(sequences: &[Sequence], index: usize, found: usize, limits: &Limits) -> bool {
    let sequence = &sequences[index];
    let gain = |earlier| common_pages(sequence, earlier, found, limits.page_tokens);
    let most = sequences[..index].iter().map(gain).max().unwrap_or(0);
    2 * most > sequence.view().total_tokens - found
}

/// Sets of each admitted one how many pages come back with it, where one may have to give way: when pages
/// could run out, or one waits that ranks higher. What that one has found stays where it is.
fn count_own(sequences: &[Sequence], pool: &mut PagePool, limits: &Limits, views: &mut [View]) {
    let last = views.iter().rposition(|view| view.admitted).map_or(0, |last| last + 1);
    let is_before = |view: &View| !view.admitted && !view.postponed;
    let has_higher = views[..last].iter().any(is_before);
    // A page for each, and one more where a prompt goes on.
    let most_taken = 2 * last + pages_for(limits.prefill_tokens, limits.page_tokens);
    if !has_higher && pool.num_free() >= most_taken {
        return;
    }
    pool.begin_returns();
    for (sequence, view) in sequences.iter().zip(&views[..last]) {
        if let Some(root) = sequence.prefix_root.filter(|_| is_before(view)) {
            pool.leave_out(root, sequence.prefix());
        }
    }
    for (sequence, view) in sequences.iter().zip(&mut views[..last]).rev() {
        if view.admitted {
            view.own_pages = pool.returns(&sequence.pages);
        }
    }
}

/// Leaves in the cache what a complete step computes of prompts whose end it does not reach: who loses its
/// pages goes on from there, and others may follow. Where a token is drawn, that is done when its logits
/// are known to be numbers.
pub(super) fn publish_chunks(runs: &[Run], sequences: &mut [Sequence], pool: &mut PagePool) {
    for run in runs {
        let sequence = &mut sequences[run.index];
        if sequence.phase() == Phase::Prefilling {
            sequence.publish(pool);
        }
    }
}

/// Tokens after the first `found` that `earlier` has or will have computed for `sequence`, in whole
/// pages: it publishes them with each chunk of its prompt, and with the tokens it draws. They are not
/// published yet, or they would have been found.
fn common_pages(
    sequence: &Sequence,
    earlier: &Sequence,
    found: usize,
    page_tokens: usize,
) -> usize {
    // Who draws tokens has published its prompt; what is not found nevertheless was withdrawn, and will
    // not be there again. (With prompts to plan, all that was drawn has been collected.)
    if earlier.phase() == Phase::Running {
        return 0;
    }
    let (own, other) = (sequence.prefix(), earlier.tokens());
    let next = found..found + page_tokens;
    // Most differ in the next page already.
    if sequence.prefix_root.is_none()
        || sequence.prefix_root != earlier.prefix_root
        || own.get(next.clone()).is_none_or(|tokens| other.get(next) != Some(tokens))
    {
        return 0;
    }
    let common = own.iter().zip(other).take_while(|(own, other)| own == other).count();
    (common / page_tokens * page_tokens).saturating_sub(found)
}
