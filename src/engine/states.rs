//! The final hidden states of a prompt, as an embedding wants them: taken row by row from the steps that
//! compute the prompt, until all are there. Knows no model.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::batch::Batch;
use crate::engine::sequence::{Order, Sequence};
use crate::error::{Error, Result};

/// What is made of the states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, which has seen all others.
    Last,
    /// The mean over all tokens.
    Mean,
    /// All of them, one after the other.
    None,
}

/// What is taken of one prompt.
pub(crate) struct States {
    pooling: Pooling,
    /// Index of the token whose state is taken next.
    next: usize,
    /// Tokens of the prompt.
    end: usize,
    /// Of the mean; one for each dimension.
    sums: Vec<f64>,
    /// `[rows, hidden]`, with room for all.
    rows: Vec<f32>,
    result: Arc<Mutex<Vec<f32>>>,
}

impl States {
    /// Of a prompt of `num_tokens`. `Error::OutOfHostMemory` where there is no room for the result, which
    /// is given to `result` once it is there.
    pub(crate) fn new(
        pooling: Pooling,
        (num_tokens, hidden_size): (usize, usize),
        result: &Arc<Mutex<Vec<f32>>>,
    ) -> Result<States> {
        let (next, num_rows) = match pooling {
            Pooling::Last => (num_tokens - 1, 1),
            Pooling::Mean => (0, 0),
            Pooling::None => (0, num_tokens),
        };
        let mut rows = Vec::new();
        rows.try_reserve_exact(num_rows * hidden_size).map_err(|_| Error::OutOfHostMemory {
            purpose: "hidden states",
            needed_bytes: (num_rows * hidden_size * 4) as u64,
            available_bytes: None,
        })?;
        let sums = vec![0.0; if pooling == Pooling::Mean { hidden_size } else { 0 }];
        Ok(States { pooling, next, end: num_tokens, sums, rows, result: Arc::clone(result) })
    }

    /// Positions among `computed` whose states are wanted; none that has been taken, which is computed
    /// again after a preemption.
    fn wanted_rows(&self, computed: Range<usize>) -> Range<usize> {
        let end = computed.end.min(self.end);
        computed.start.max(self.next).min(end)..end
    }

    /// Takes the next state, `[hidden]`.
    fn take(&mut self, state: &[f32]) {
        match self.pooling {
            Pooling::Last | Pooling::None => self.rows.extend_from_slice(state),
            Pooling::Mean => {
                self.sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        self.next += 1;
        if self.next == self.end {
            let mean = self.sums.iter().map(|sum| (sum / self.end as f64) as f32);
            self.rows.extend(mean);
            *self.result.lock() = std::mem::take(&mut self.rows);
        }
    }
}

/// Appends the rows of the next `count` tokens of `sequence`, which are the last of `batch`, whose states
/// are wanted; how many those are.
pub(super) fn push_wanted(batch: &mut Batch, sequence: &Sequence, count: usize) -> usize {
    let Some(states) = &sequence.states else { return 0 };
    let first = sequence.computed_tokens();
    let wanted = states.wanted_rows(first..first + count);
    let first_row = batch.num_tokens() - count;
    batch.hidden_rows.extend(wanted.clone().map(|at| (first_row + at - first) as u32));
    wanted.len()
}

/// Gives each sequence that is still there its rows of `hidden`, of `hidden_size` elements: so many,
/// in the order of `wanted`.
pub(super) fn deliver(
    sequences: &mut [Sequence],
    wanted: &[(Order, usize)],
    hidden: &[f32],
    hidden_size: usize,
) {
    let mut rows = hidden;
    for (order, count) in wanted {
        let (own, rest) = rows.split_at(count * hidden_size);
        rows = rest;
        if let Ok(index) = sequences.binary_search_by_key(order, Sequence::order)
            && let Some(states) = &mut sequences[index].states
        {
            own.chunks_exact(hidden_size).for_each(|state| states.take(state));
        }
    }
}
