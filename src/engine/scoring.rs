//! How likely the model found the tokens of a prompt: measured while the prompt is computed, row by row
//! of its steps, and kept until all are. Knows no batch and no model.

use std::ops::Range;

use crate::engine::logits::{TokenLogprobs, measure};
use crate::text::tokenizer::Tokenizer;

/// What is measured of one prompt.
pub(crate) struct PromptScores {
    /// Index of the token to be measured next; the row before it says how likely it is.
    next: usize,
    /// Tokens of the prompt.
    end: usize,
    num_top: usize,
    measured: Vec<TokenLogprobs>,
}

impl PromptScores {
    /// Measures tokens `first..end` of a prompt of `end`; nothing comes before the first of all, so
    /// `first` is at least 1.
    pub(crate) fn new(first: usize, end: usize, num_top: usize) -> PromptScores {
        PromptScores { next: first, end, num_top, measured: Vec::new() }
    }

    /// The position from which on logits are wanted; none is, once all are measured.
    pub(crate) fn wanted_from(&self) -> usize {
        if self.next < self.end { self.next - 1 } else { usize::MAX }
    }

    /// Positions among `computed` whose logits measure a token of the prompt.
    pub(crate) fn wanted_rows(&self, computed: Range<usize>) -> Range<usize> {
        let last = computed.end.min(self.end - 1);
        computed.start.max(self.wanted_from()).min(last)..last
    }

    /// Measures the next of `tokens` by the logits before it (`[ids in use]`). `false`: they are no
    /// finite numbers.
    pub(crate) fn push(&mut self, tokens: &[u32], logits: &[f32], tokenizer: &Tokenizer) -> bool {
        let Some(&id) = tokens.get(self.next) else { return false };
        let measured = measure(logits, id, self.num_top, tokenizer);
        self.next += 1;
        let is_sound = measured.is_some();
        self.measured.extend(measured);
        is_sound
    }

    /// All that was measured, in order.
    pub(crate) fn into_measured(self) -> Vec<TokenLogprobs> {
        self.measured
    }
}
