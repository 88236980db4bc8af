//! The sharding plan: pure functions from (tensor kind, rank, world) to row and column ranges.
//!
//! Decides which part of each tensor a rank holds, for any world size. Reads no file and knows no
//! tensor by name; the model says which `Split` each of its tensors has.

use std::ops::Range;

use crate::error::{Error, Result};

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

/// The part of a `[rows, cols]` matrix that one rank holds: these rows, in order, of these
/// columns. Adjacent row ranges are merged, so a single range means contiguous rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Rows, in the order the rank keeps them.
    pub row_ranges: Vec<Range<usize>>,
    /// Columns of each of those rows.
    pub cols: Range<usize>,
}

impl Slice {
    /// Number of rows in all ranges.
    pub fn num_rows(&self) -> usize {
        self.row_ranges.iter().map(Range::len).sum()
    }
}

/// The part of a `[rows, cols]` matrix that `rank` of `world` holds. For a vector (bias), `rows`
/// is its length and `cols` 1. An extent that `world` does not divide is `Error::Option`.
pub fn slice(split: Split, rows: usize, cols: usize, rank: usize, world: usize) -> Result<Slice> {
    if rank >= world {
        let reason = format!("rank {rank} of a world of {world}");
        return Err(Error::Argument { argument: "rank", reason });
    }
    let (row_ranges, cols) = match split {
        Split::Replicated => (one(0..rows), 0..cols),
        Split::Column => (one(even_part(rows, rank, world)?), 0..cols),
        Split::ColumnThirds => (thirds(rows, rank, world)?, 0..cols),
        Split::Row => (one(0..rows), even_part(cols, rank, world)?),
        Split::Vocab => (one(uneven_part(rows, rank, world)), 0..cols),
    };
    Ok(Slice { row_ranges, cols })
}

/// Checks that a model of these sizes can be divided over `world` ranks: whole heads and equal
/// widths on each. The error names the world sizes that would work.
pub fn check_world(
    num_heads: usize,
    num_kv_heads: usize,
    intermediate_size: usize,
    world: usize,
) -> Result<()> {
    check_quantised_world((num_heads, num_kv_heads, 1), intermediate_size, 1, world)
}

/// As `check_world`, for linears whose inputs are divided in units of `unit` (a group of a quantised
/// matrix). `heads` are the query heads, the KV heads, and the elements of each.
pub fn check_quantised_world(
    heads: (usize, usize, usize),
    intermediate_size: usize,
    unit: usize,
    world: usize,
) -> Result<()> {
    let (num_heads, num_kv_heads, head_dim) = heads;
    let fits = |world: &usize| {
        let inputs = [num_heads * head_dim, intermediate_size];
        let is_whole = [num_heads, num_kv_heads].iter().all(|extent| extent % world == 0);
        let is_even = inputs.iter().all(|extent| extent % world == 0);
        is_whole
            && is_even
            && (*world == 1 || inputs.iter().all(|n| (n / world).is_multiple_of(unit)))
    };
    if world > 0 && fits(&world) {
        return Ok(());
    }
    // A rank holds at least one head, so there are no more ranks than heads.
    let working: Vec<usize> = (1..=num_kv_heads.min(num_heads)).filter(fits).collect();
    let groups = if unit > 1 { format!(", in groups of {unit}") } else { String::new() };
    Err(impossible(format!(
        "{num_heads} heads, {num_kv_heads} key/value heads and an MLP width of \
         {intermediate_size}{groups} do not divide over {world} ranks; these work: {working:?}"
    )))
}

/// Part `rank` of `extent` cut into `world` equal parts.
fn even_part(extent: usize, rank: usize, world: usize) -> Result<Range<usize>> {
    if !extent.is_multiple_of(world) {
        return Err(impossible(format!(
            "an extent of {extent} does not divide over {world} ranks"
        )));
    }
    let part = extent / world;
    Ok(rank * part..(rank + 1) * part)
}

/// Part `rank` of `extent` where the first `extent % world` ranks take one more.
fn uneven_part(extent: usize, rank: usize, world: usize) -> Range<usize> {
    let (part, more) = (extent / world, extent % world);
    let start = rank * part + rank.min(more);
    start..start + part + usize::from(rank < more)
}

/// Part `rank` of each of three equal stacked blocks.
fn thirds(rows: usize, rank: usize, world: usize) -> Result<Vec<Range<usize>>> {
    let third = rows / 3;
    if third * 3 != rows {
        return Err(impossible(format!("{rows} stacked rows of Q, K and V are not three blocks")));
    }
    let part = even_part(third, rank, world)?;
    if part == (0..third) {
        return Ok(one(0..rows));
    }
    let block = |index: usize| index * third + part.start..index * third + part.end;
    Ok(vec![block(0), block(1), block(2)])
}

fn one(range: Range<usize>) -> Vec<Range<usize>> {
    vec![range]
}

fn impossible(reason: String) -> Error {
    Error::Option { key: "tensor_parallel".to_string(), reason }
}
