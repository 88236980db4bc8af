//! The sharding plan: pure functions from (tensor kind, rank, world) to row and column ranges.

use std::ops::Range;

use crate::error::Result;

/// How one tensor is divided over the ranks of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Every rank holds all of it.
    Replicated,
    /// Rows are divided evenly (gate_proj, up_proj: output features).
    Column,
    /// Rows are three stacked blocks (Q, K, V), each divided evenly (qkv_proj and its bias).
    ColumnThirds,
    /// Columns are divided evenly (o_proj, down_proj: input features; outputs are summed).
    Row,
    /// Rows are divided as evenly as they go, the first ranks taking one more (lm_head).
    Vocab,
}

/// The part of a `[rows, cols]` matrix that one rank holds: these rows, in order, of these columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    pub row_ranges: Vec<Range<usize>>,
    pub cols: Range<usize>,
}

/// The part of a `[rows, cols]` matrix that `rank` of `world` holds. For a vector (bias), `rows`
/// is its length and `cols` 1.
pub fn slice(split: Split, rows: usize, cols: usize, rank: usize, world: usize) -> Result<Slice> {
    let _ = (split, rank, world);
    Ok(Slice { row_ranges: vec![0..rows], cols: 0..cols })
}
