//! The sharding plan: pure functions from (tensor kind, rank, world) to row and column ranges, and from
//! (rank, world) to layers.
//!
//! Decides which layers and which part of each tensor a rank holds, for any world size. Reads no file
//! and knows no tensor by name; the model says which `Split` each of its tensors has.

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

/// How a model is divided over the ranks of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Division {
    /// Every rank has all layers, and of each tensor the part that its `Split` says.
    Tensors,
    /// Every rank has whole layers, one after the other in rank order: so many each.
    Layers(Vec<usize>),
}

/// What one rank of a world holds, and when it computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its layers.
    pub layers: Range<usize>,
    /// Which part of their tensors, 0-based.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
    /// When its layers are computed, 0-based: ranks with the same layers at the same time.
    pub turn: usize,
    /// Of how many.
    pub turns: usize,
}

impl Division {
    /// Layers for ranks with `rooms` for them, one at least for each, so that the least room for a layer
    /// is as large as can be; where that makes no difference, the first ranks take more. `Error::Option`
    /// if there are more ranks than layers.
    pub fn of_layers(num_layers: usize, rooms: &[u64]) -> Result<Division> {
        let world = rooms.len();
        if world > num_layers {
            return Err(impossible(format!(
                "{num_layers} layers do not divide over {world} ranks: each has one at least"
            )));
        }
        let mut counts = vec![1; world];
        for _ in world..num_layers {
            // The rank that would have most room for each of its layers with one more.
            let mut best = 0;
            for rank in 1..world {
                let [room, most] = [rank, best].map(|rank| u128::from(rooms[rank].max(1)));
                if room * (counts[best] + 1) as u128 > most * (counts[rank] + 1) as u128 {
                    best = rank;
                }
            }
            counts[best] += 1;
        }
        Ok(Division::Layers(counts))
    }

    /// What `rank` of `world` holds of a model of `num_layers`.
    pub fn share(&self, num_layers: usize, rank: usize, world: usize) -> Share {
        match self {
            Division::Tensors => {
                Share { layers: 0..num_layers, part: rank, parts: world, turn: 0, turns: 1 }
            }
            Division::Layers(counts) => {
                let start = counts[..rank].iter().sum();
                let layers = start..start + counts[rank];
                Share { layers, part: 0, parts: 1, turn: rank, turns: world }
            }
        }
    }

    /// Columns of the logits that each of `world` ranks computes of `vocab_size`.
    pub fn logits_cols(&self, vocab_size: usize, world: usize) -> Vec<usize> {
        (0..world).map(|rank| self.share(0, rank, world).logits_cols(vocab_size)).collect()
    }

    /// As the option `split` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Division::Tensors => "tensors",
            Division::Layers(_) => "layers",
        }
    }
}

impl Share {
    /// Does the first layer come with it, and so the embedding?
    pub fn is_first(&self) -> bool {
        self.turn == 0
    }

    /// Does the last layer come with it, and so the final norm and lm_head?
    pub fn is_last(&self) -> bool {
        self.turn + 1 == self.turns
    }

    /// Columns of the logits, rows of lm_head.
    pub fn logits_cols(&self, vocab_size: usize) -> usize {
        if self.is_last() { uneven_part(vocab_size, self.part, self.parts).len() } else { 0 }
    }
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
