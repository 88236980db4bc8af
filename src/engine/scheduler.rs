//! Who runs in the next step: a pure function from sequences, free pages and limits to a plan.
//!
//! Rules, in the order they win:
//! 1. Rank decides: priority, then arrival. Pages and places go to the first in rank; when they run
//!    out, the last admitted one loses its pages and is computed anew later. So the oldest of the
//!    highest priority always advances, and with it every sequence of that priority gets its turn.
//!    Whoever waits takes from lower priorities only, and only if that is enough. Nobody gives way in
//!    vain: pages that others share do not come back. A plan that takes pages away is made again when
//!    they are back: what the prefix cache has for whoever waits is free then.
//! 2. A decoding sequence takes one token in every step, whatever is prefilled beside it.
//! 3. Prompts share `prefill_tokens` per step, the bound on how long a step can take.
//! 4. One whose last token is being drawn computes nothing more.
//! 5. A waiting sequence is admitted only when its whole prompt fits beside what those before it
//!    still need, and never before one that ranks higher. It may be postponed for the sake of what
//!    another one computes; nobody overtakes it.
//! 6. One that wants the logits of many tokens gets those of one, and half of what nobody has yet.
//!
//! Nothing here touches a sequence or a page; the loop carries the plan out.

use crate::engine::sequence::View;
use crate::kv::pages_for;

/// Most rows that one sequence gets beside its own: each costs the host a millisecond.
const MOST_ROWS: usize = 31;

/// What a step must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in one KV page.
    pub page_tokens: usize,
    /// Most sequences in one step.
    pub max_sequences: usize,
    /// Most rows of a step whose logits are wanted; at least `max_sequences`.
    pub max_rows: usize,
    /// Most prompt tokens in one step.
    pub prefill_tokens: usize,
    /// A higher priority takes places and pages from lower ones.
    pub displaces: bool,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index into the views.
    pub index: usize,
    /// Tokens to compute, at least 1.
    pub tokens: usize,
}

/// What to do in one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Indices of the sequences that give their pages back, last in rank first.
    pub preempt: Vec<usize>,
    /// Sequences that compute, in order of rank. One that was not admitted is from now on.
    pub runs: Vec<Run>,
}

/// Plans one step into `plan` (overwritten). `views` are in order of rank (the highest priority first,
/// then the oldest), and of each priority the admitted ones come first; `free_pages` are held by none
/// of them. Of a waiting one, `computed_tokens` says what the prefix cache has, and `pages` how many
/// pages of that others hold: it takes no free ones for them.
///
/// The caller promises that each sequence alone fits the pool (`total_tokens` in all pages); then
/// every plan runs at least one sequence if there is one that is not ending.
pub fn plan(views: &[View], free_pages: usize, limits: &Limits, plan: &mut Plan) {
    plan.preempt.clear();
    plan.runs.clear();
    let num_admitted = views.iter().filter(|view| view.admitted).count();
    let mut step = Step {
        views,
        limits,
        plan,
        free_pages,
        free_places: limits.max_sequences.saturating_sub(num_admitted),
        spare_rows: limits.max_rows.saturating_sub(num_admitted),
        prefill_left: limits.prefill_tokens,
        reserved_pages: 0,
        end: views.len(),
    };
    step.serve_in_order();
}

/// A plan being made: what is left to give.
struct Step<'a> {
    views: &'a [View],
    limits: &'a Limits,
    plan: &'a mut Plan,
    free_pages: usize,
    /// How many more can be admitted.
    free_places: usize,
    /// Rows of logits that a step can give besides one for each admitted.
    spare_rows: usize,
    prefill_left: usize,
    /// Pages that those planned so far are going to need soon: the rest of their prompts, and one
    /// page each to grow into, so that an admission is not undone in the next step.
    reserved_pages: usize,
    /// Where the first preempted sequence is: nobody from there on runs.
    end: usize,
}

impl Step<'_> {
    /// Gives each sequence its tokens, in order of rank; admits until one does not fit.
    fn serve_in_order(&mut self) {
        let mut admits = true;
        let mut index = 0;
        while index < self.end {
            if self.views[index].admitted {
                admits &= self.advance(index);
            } else if admits {
                admits = !self.views[index].postponed && self.admit(index);
            }
            index += 1;
        }
    }

    /// Gives an admitted sequence its tokens, with pages of others if there are no more. `false`: not
    /// all of them, for want of pages.
    fn advance(&mut self, index: usize) -> bool {
        let wanted = self.wanted(index);
        while wanted > 0
            && self.room(index) == 0
            && self.has_pages_behind(index)
            && let Some(last) = self.last_admitted_behind(index)
        {
            self.preempt(last);
        }
        // The last may keep its pages and wait for one: whoever ranks higher and needs them takes
        // them then.
        let tokens = wanted.min(self.room(index));
        self.grant(index, tokens);
        tokens == wanted
    }

    /// Admits a waiting sequence if it fits, or would if lower priorities gave way, who then do.
    fn admit(&mut self, index: usize) -> bool {
        let priority = self.views[index].priority;
        let lower = self.views[index..self.end].iter();
        let displaces = self.limits.displaces;
        let lower = lower.filter(|view| displaces && view.admitted && view.priority < priority);
        let (num_lower, lower_pages) =
            lower.fold((0, 0), |(count, pages), view| (count + 1, pages + view.own_pages));
        let view = &self.views[index];
        let needed = self.pages(view.total_tokens).saturating_sub(view.pages) + self.reserved_pages;
        let fits = needed <= self.free_pages + lower_pages && self.free_places + num_lower > 0;
        // Rows that others took are there again in the next step: nobody gives way for them.
        let has_row = self.spare_rows > 0 || self.free_places == 0;
        if self.prefill_left == 0 || !fits || !has_row {
            return false;
        }
        while (needed > self.free_pages || self.free_places == 0)
            && let Some(last) = self.last_admitted_behind(index)
        {
            self.preempt(last);
        }
        self.free_places -= 1;
        self.spare_rows -= 1;
        self.grant(index, self.wanted(index));
        true
    }

    /// Would pages come back if all behind gave way? Where nobody has run yet, that is tried in any case:
    /// when they are back, there may be more.
    fn has_pages_behind(&self, index: usize) -> bool {
        let mut behind = self.views[index + 1..self.end].iter();
        self.plan.runs.is_empty() || behind.any(|view| view.admitted && view.own_pages > 0)
    }

    fn last_admitted_behind(&self, index: usize) -> Option<usize> {
        (index + 1..self.end).rev().find(|&other| self.views[other].admitted)
    }

    fn preempt(&mut self, index: usize) {
        self.end = index;
        self.free_pages += self.views[index].own_pages;
        self.free_places += 1;
        self.spare_rows += 1;
        self.plan.preempt.push(index);
    }

    /// Tokens the sequence would compute if pages were no matter.
    fn wanted(&self, index: usize) -> usize {
        let view = &self.views[index];
        match (view.ending, view.decoding) {
            (true, _) => 0,
            (_, true) => 1,
            _ => {
                let before = view.wanted_from.saturating_sub(view.computed_tokens);
                let most = before.saturating_add(1 + (self.spare_rows / 2).min(MOST_ROWS));
                view.pending_tokens().min(self.prefill_left).min(most)
            }
        }
    }

    /// Tokens there are pages for.
    fn room(&self, index: usize) -> usize {
        let view = &self.views[index];
        (view.pages + self.free_pages) * self.limits.page_tokens - view.computed_tokens
    }

    /// Takes what `tokens` more tokens of the sequence need out of the step's means.
    fn grant(&mut self, index: usize, tokens: usize) {
        let view = &self.views[index];
        if view.ending {
            return;
        }
        let held = view.pages.max(self.pages(view.computed_tokens + tokens));
        self.free_pages -= held - view.pages;
        self.reserved_pages += self.pages(view.total_tokens).saturating_sub(held) + 1;
        if !view.decoding {
            let wanted_from = view.wanted_from.max(view.computed_tokens);
            let rows = (view.computed_tokens + tokens).saturating_sub(wanted_from);
            self.spare_rows -= rows.saturating_sub(1);
            self.prefill_left -= tokens;
        }
        if tokens > 0 {
            self.plan.runs.push(Run { index, tokens });
        }
    }

    fn pages(&self, tokens: usize) -> usize {
        pages_for(tokens, self.limits.page_tokens)
    }
}
