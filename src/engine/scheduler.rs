//! Who runs in the next step: a pure function from sequences, free pages and limits to a plan.
//!
//! Rules, in the order they win:
//! 1. Arrival decides. Pages go to the oldest first; when they run out, the youngest admitted
//!    sequence loses its pages and is computed anew later. So the oldest always advances, and with
//!    it every sequence gets its turn.
//! 2. A decoding sequence takes one token in every step, whatever is prefilled beside it.
//! 3. Prompts share `prefill_tokens` per step, the bound on how long a step can take.
//! 4. One whose last token is being drawn computes nothing more.
//! 5. A waiting sequence is admitted only when its whole prompt fits beside what the admitted
//!    still need, and never before one that came earlier.
//!
//! Nothing here touches a sequence or a page; the loop carries the plan out.

use crate::engine::sequence::View;
use crate::kv::pages_for;

/// What a step must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in one KV page.
    pub page_tokens: usize,
    /// Most sequences in one step.
    pub max_sequences: usize,
    /// Most prompt tokens in one step.
    pub prefill_tokens: usize,
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
    /// Indices of the sequences that give their pages back, youngest first.
    pub preempt: Vec<usize>,
    /// Sequences that compute, in order of arrival. One that was not admitted is from now on.
    pub runs: Vec<Run>,
}

/// Plans one step into `plan` (overwritten). `views` are in order of arrival and the admitted ones
/// come first; `free_pages` are held by none of them.
///
/// The caller promises that each sequence alone fits the pool (`total_tokens` in all pages); then
/// every plan runs at least one sequence if there is one that is not ending.
pub fn plan(views: &[View], free_pages: usize, limits: &Limits, plan: &mut Plan) {
    plan.preempt.clear();
    plan.runs.clear();
    let prefill_left = limits.prefill_tokens;
    let mut step = Step { views, limits, plan, free_pages, prefill_left, reserved_pages: 0 };
    let num_admitted = views.iter().take_while(|view| view.admitted).count();
    let (kept, stalled) = step.advance_admitted(num_admitted);
    if kept == num_admitted && !stalled {
        step.admit_waiting(num_admitted);
    }
}

/// A plan being made: what is left to give.
struct Step<'a> {
    views: &'a [View],
    limits: &'a Limits,
    plan: &'a mut Plan,
    free_pages: usize,
    prefill_left: usize,
    /// Pages that those planned so far are going to need soon: the rest of their prompts, and one
    /// page each to grow into, so that an admission is not undone in the next step.
    reserved_pages: usize,
}

impl Step<'_> {
    /// Gives every admitted sequence its tokens, oldest first. Returns how many stay admitted, and
    /// whether one of them had to be passed over for want of a page.
    fn advance_admitted(&mut self, num_admitted: usize) -> (usize, bool) {
        let mut kept = num_admitted;
        let mut stalled = false;
        let mut index = 0;
        while index < kept {
            let wanted = self.wanted(index);
            while wanted > 0 && self.room(index) == 0 && kept > index + 1 {
                kept -= 1;
                self.free_pages += self.views[kept].pages;
                self.plan.preempt.push(kept);
            }
            // The youngest may keep its pages and wait for one: whoever is older and needs them
            // takes them then.
            let tokens = wanted.min(self.room(index));
            stalled |= tokens < wanted;
            self.grant(index, tokens);
            index += 1;
        }
        (kept, stalled)
    }

    /// Admits waiting sequences in order of arrival until one does not fit.
    fn admit_waiting(&mut self, num_admitted: usize) {
        for index in num_admitted..self.views.len().min(self.limits.max_sequences) {
            let whole = self.pages(self.views[index].total_tokens);
            if self.prefill_left == 0 || whole + self.reserved_pages > self.free_pages {
                break;
            }
            self.grant(index, self.wanted(index));
        }
    }

    /// Tokens the sequence would compute if pages were no matter.
    fn wanted(&self, index: usize) -> usize {
        let view = &self.views[index];
        match (view.ending, view.decoding) {
            (true, _) => 0,
            (_, true) => 1,
            _ => view.pending_tokens().min(self.prefill_left),
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
