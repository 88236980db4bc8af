//! The paged KV cache and causal attention over it.
//!
//! A page of one head holds sixteen tokens, laid out so that both products run along vectors:
//!
//! | part | layout | one vector is |
//! |---|---|---|
//! | keys | `[head_dim, 16 tokens]` | one dimension of sixteen tokens: scores come out as lanes |
//! | values | `[16 tokens, head_dim rounded up to 16]` | sixteen dimensions of one token |
//!
//! Keys and values of a page and head are one block, blocks lie as `[layer, page, kv_head]` in huge
//! pages, so that a short conversation fills few of them. Two pages ahead of the one that is worked
//! on, its block is asked for: the softmax between the products is a long chain of dependent
//! instructions, during which memory would stand still. On two Zen 5 cores (2026-11-24) a block of 4
//! KiB, from memory, then takes a thread 0.20 us instead of 0.22 to 0.27 (0.08 from cache); one page
//! ahead, four, and the second-level cache as the target make no difference.
//!
//! Up to eight queries of one head share each loaded vector. Softmax is online, page by page in
//! order, in f32: a query's result depends only on its own context, to the bit, whichever queries
//! share its tile (a masked page adds exact zeros).

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use super::element::Element;
use super::huge::Huge;
use super::simd::{CACHE_LINE, Kernel, LANES, Simd, exp, prefetch};
use crate::backend::KvSpec;
use crate::batch::PAGE_TOKENS;
use crate::error::Result;

const _: () = assert!(PAGE_TOKENS == LANES, "a page is one vector of tokens");

/// Queries that share a loaded key or value vector.
pub(super) const QUERY_TILE: usize = 8;

/// Sizes of a cache, and where in it a page of one head lies.
#[derive(Clone, Copy)]
struct Layout {
    num_layers: usize,
    num_pages: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    value_cols: usize,
}

impl Layout {
    fn key_len(self) -> usize {
        self.head_dim * PAGE_TOKENS
    }

    fn block_len(self) -> usize {
        (self.head_dim + self.value_cols) * PAGE_TOKENS
    }

    /// First element of the block `[layer, page, head]`.
    fn block(self, layer: usize, page: usize, head: usize) -> usize {
        let inside = layer < self.num_layers && page < self.num_pages && head < self.num_kv_heads;
        assert!(inside, "outside the KV cache");
        ((layer * self.num_pages + page) * self.num_kv_heads + head) * self.block_len()
    }
}

/// Keys and values of all layers, in `E`.
pub(super) struct PagedKv<E: Element> {
    layout: Layout,
    blocks: Huge<E::Bits>,
}

impl<E: Element> PagedKv<E> {
    /// All pages zero.
    pub(super) fn new(spec: KvSpec) -> Result<PagedKv<E>> {
        let layout = Layout {
            num_layers: spec.num_layers,
            num_pages: spec.num_pages,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            value_cols: spec.head_dim.next_multiple_of(LANES),
        };
        let num_blocks = spec.num_layers * spec.num_pages * spec.num_kv_heads;
        let len = num_blocks.saturating_mul(layout.block_len());
        Ok(PagedKv { layout, blocks: Huge::zeroed(len, "KV cache")? })
    }

    /// Where to write layer `layer`; threads may share it while they write different tokens or
    /// heads.
    pub(super) fn writer(&mut self, layer: usize) -> KvWriter<E> {
        KvWriter { layout: self.layout, layer, blocks: self.blocks.as_mut_ptr() }
    }

    /// One page of one head.
    #[inline(always)]
    fn block(&self, layer: usize, page: usize, head: usize) -> Block<'_, E> {
        let start = self.layout.block(layer, page, head);
        let block = &self.blocks.as_slice()[start..][..self.layout.block_len()];
        let (keys, values) = block.split_at(self.layout.key_len());
        Block { keys, values }
    }
}

/// One page of one head: `[head_dim, 16]` keys, `[16, value_cols]` values.
#[derive(Clone, Copy)]
struct Block<'a, E: Element> {
    keys: &'a [E::Bits],
    values: &'a [E::Bits],
}

/// Write access to one layer of the cache.
pub(super) struct KvWriter<E: Element> {
    layout: Layout,
    layer: usize,
    blocks: *mut E::Bits,
}

// SAFETY: `write` is unsafe and leaves it to the caller that no two threads write one place.
unsafe impl<E: Element> Sync for KvWriter<E> {}

impl<E: Element> KvWriter<E> {
    /// Stores one token's key and value of one head (already rounded to `E`).
    ///
    /// # Safety
    /// The cache is not read or moved meanwhile, and no other thread writes this slot and head.
    pub(super) unsafe fn write(&self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let (page, lane) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
        let start = self.layout.block(self.layer, page, head);
        // SAFETY: slot and head are inside the cache, so is every element of their block.
        unsafe {
            let keys = self.blocks.add(start + lane);
            for (d, x) in key.iter().enumerate() {
                *keys.add(d * PAGE_TOKENS) = E::bits(*x);
            }
            let values = start + self.layout.key_len() + lane * self.layout.value_cols;
            let values = self.blocks.add(values);
            for (d, x) in value.iter().enumerate() {
                *values.add(d) = E::bits(*x);
            }
        }
    }
}

/// Attention of up to `QUERY_TILE` consecutive queries of one head over their common pages.
pub(super) struct AttendTile<'a, E: Element> {
    pub(super) kv: &'a PagedKv<E>,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    pub(super) pages: &'a [u32],
    /// Position of the first query; the others follow.
    pub(super) position: usize,
    /// `[queries][head_dim]`: first query's place and the distance to the next.
    pub(super) queries: (*const f32, usize),
    pub(super) num_queries: usize,
    /// Same shape, for the results.
    pub(super) out: (*mut f32, usize),
}

impl<E: Element> Kernel for AttendTile<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on; the tile sizes split `num_queries` exactly.
        unsafe {
            let mut first = 0;
            while first + QUERY_TILE <= self.num_queries {
                self.tile::<S, QUERY_TILE>(first);
                first += QUERY_TILE;
            }
            while first < self.num_queries {
                self.tile::<S, 1>(first);
                first += 1;
            }
        }
    }
}

/// Largest head: 256 elements are 16 vectors.
pub const MAX_HEAD_DIM: usize = 256;

/// Pages to be asked for ahead of the one that is worked on.
const AHEAD: usize = 2;

/// Asks for `len` elements of a block from element `at` on.
#[inline(always)]
fn prefetch_part<T>(block: &[T], at: usize, len: usize) {
    for line in (0..len * size_of::<T>()).step_by(CACHE_LINE) {
        prefetch(block.as_ptr().wrapping_add(at).cast::<u8>().wrapping_add(line));
    }
}

/// Running softmax of `Q` queries: maximum, sum, and the weighted sum of values.
struct Running<const Q: usize> {
    max: [f32; Q],
    sum: [f32; Q],
    values: [[f32; MAX_HEAD_DIM]; Q],
}

impl<E: Element> AttendTile<'_, E> {
    /// Page number `index` of the sequence.
    #[inline(always)]
    fn block(&self, index: usize) -> Block<'_, E> {
        self.kv.block(self.layer, self.pages[index] as usize, self.kv_head)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const Q: usize>(&self, first: usize) {
        let position = self.position + first;
        let cols = self.kv.layout.value_cols;
        let last_page = (position + Q - 1) / PAGE_TOKENS;
        let mut running = Running::<Q> {
            max: [f32::NEG_INFINITY; Q],
            sum: [0.0; Q],
            values: [[0.0; MAX_HEAD_DIM]; Q],
        };
        // SAFETY: lane arithmetic; queries and outputs are valid by the caller's word.
        unsafe {
            let queries = self.queries.0.add(first * self.queries.1);
            for index in 0..=last_page {
                let page = self.block(index);
                let ahead = self.block((index + AHEAD).min(last_page));
                let seen: [usize; Q] = std::array::from_fn(|q| {
                    (position + q + 1).saturating_sub(index * PAGE_TOKENS).min(PAGE_TOKENS)
                });
                let scores = self.scores::<S, Q>(queries, page.keys, ahead.keys);
                let weights = running.weigh::<S>(scores, &seen, cols);
                let values = &page.values[..seen[Q - 1] * cols];
                running.add_values::<S, E>(&weights, values, ahead.values, cols);
            }
            for q in 0..Q {
                let out = self.out.0.add((first + q) * self.out.1);
                for d in 0..self.kv.layout.head_dim {
                    *out.add(d) = running.values[q][d] / running.sum[q];
                }
            }
        }
    }

    /// Scaled scores of sixteen tokens for each query. Even and odd dimensions are two chains.
    #[inline(always)]
    unsafe fn scores<S: Simd, const Q: usize>(
        &self,
        queries: *const f32,
        keys: &[E::Bits],
        ahead: &[E::Bits],
    ) -> [S::V; Q] {
        let dim = self.kv.layout.head_dim;
        // SAFETY: a key block has `head_dim` vectors and each query `head_dim` elements (even).
        unsafe {
            let mut even = [S::splat(0.0); Q];
            let mut odd = [S::splat(0.0); Q];
            for d in (0..dim).step_by(2) {
                prefetch_part(ahead, d * LANES, 2 * LANES);
                let key_even = E::load::<S>(keys.as_ptr().add(d * LANES));
                let key_odd = E::load::<S>(keys.as_ptr().add((d + 1) * LANES));
                for q in 0..Q {
                    let query = queries.add(q * self.queries.1 + d);
                    even[q] = S::fma(S::splat(*query), key_even, even[q]);
                    odd[q] = S::fma(S::splat(*query.add(1)), key_odd, odd[q]);
                }
            }
            let scale = S::splat(1.0 / (dim as f32).sqrt());
            for q in 0..Q {
                even[q] = S::mul(S::add(even[q], odd[q]), scale);
            }
            even
        }
    }
}

impl<const Q: usize> Running<Q> {
    /// Scores -> weights `exp(score - max)`, zero for tokens a query may not see (query q sees the
    /// first `seen[q]` of the page); rescales what was summed before when the maximum moves.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &mut self,
        scores: [S::V; Q],
        seen: &[usize; Q],
        value_cols: usize,
    ) -> [[f32; LANES]; Q] {
        let mut weights = [[0.0; LANES]; Q];
        for q in 0..Q {
            let seen = seen[q];
            // SAFETY: lane arithmetic on arrays.
            unsafe {
                let mut score = scores[q];
                if seen < LANES {
                    S::store(weights[q].as_mut_ptr(), score);
                    weights[q][seen..].fill(f32::NEG_INFINITY);
                    score = S::load(weights[q].as_ptr());
                }
                let max = self.max[q].max(S::max_lane(score));
                S::store(weights[q].as_mut_ptr(), exp::<S>(S::sub(score, S::splat(max))));
                if seen < LANES {
                    weights[q][seen..].fill(0.0);
                }
                let sum = S::sum(S::load(weights[q].as_ptr()));
                if max > self.max[q] {
                    let shrink =
                        if self.max[q].is_finite() { (self.max[q] - max).exp() } else { 0.0 };
                    self.sum[q] *= shrink;
                    self.values[q][..value_cols].iter_mut().for_each(|x| *x *= shrink);
                    self.max[q] = max;
                }
                self.sum[q] += sum;
            }
        }
        weights
    }

    /// Adds the values `[tokens, value_cols]` of the page, weighted. Only tokens that some query of
    /// the tile may see: what an earlier owner left in the rest of the page is never read.
    #[inline(always)]
    unsafe fn add_values<S: Simd, E: Element>(
        &mut self,
        weights: &[[f32; LANES]; Q],
        values: &[E::Bits],
        ahead: &[E::Bits],
        value_cols: usize,
    ) {
        let tokens = values.len() / value_cols;
        let share = ahead.len() / (value_cols / LANES);
        for col in (0..value_cols).step_by(LANES) {
            prefetch_part(ahead, col / LANES * share, share);
            // SAFETY: `values` has whole rows and `self.values` room for every column.
            unsafe {
                let mut acc = [S::splat(0.0); Q];
                for q in 0..Q {
                    acc[q] = S::load(self.values[q].as_ptr().add(col));
                }
                for token in 0..tokens {
                    let value = E::load::<S>(values.as_ptr().add(token * value_cols + col));
                    for q in 0..Q {
                        acc[q] = S::fma(S::splat(weights[q][token]), value, acc[q]);
                    }
                }
                for q in 0..Q {
                    S::store(self.values[q].as_mut_ptr().add(col), acc[q]);
                }
            }
        }
    }
}
