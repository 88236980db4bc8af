//! The model graph: `forward(Batch)`: embed, layers, norm, logits. Knows no concrete backend.

pub mod batch;
pub mod config;
mod fields;
pub mod generation;

use crate::error::Result;
use batch::Batch;

/// One rank of a loaded model, ready to run steps. The engine drives one thread per rank, each
/// with the same `Batch`.
pub trait Rank: Send {
    /// Runs one step. On rank 0, `logits` becomes `[logits_rows, vocab_size]` in f32; other ranks
    /// leave it empty.
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()>;
}
