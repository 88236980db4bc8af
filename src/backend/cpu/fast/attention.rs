//! The paged KV cache and causal attention over it.
//!
//! A page of one head holds sixteen tokens, laid out so that both products run along vectors:
//!
//! | part | layout | one vector is |
//! |---|---|---|
//! | keys | `[head_dim, 16 tokens]` | one dimension of sixteen tokens: scores come out as lanes |
//! | values | `[16 tokens, head_dim rounded up to 16]` | sixteen dimensions of one token |
//!
//! Pages of one head lie side by side (`[kv_head, page]`), so that neighbouring pages of a sequence
//! are one stream to read.
//!
//! Up to eight queries of one head share each loaded vector. Softmax is online, page by page in
//! order, in f32: a query's result depends only on its own context, to the bit, whichever queries
//! share its tile (a masked page adds exact zeros).

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use super::element::Element;
use super::simd::{Kernel, LANES, Simd, exp};
use crate::backend::KvSpec;
use crate::backend::cpu::zeroed;
use crate::batch::PAGE_TOKENS;
use crate::error::Result;

const _: () = assert!(PAGE_TOKENS == LANES, "a page is one vector of tokens");

/// Queries that share a loaded key or value vector.
pub(super) const QUERY_TILE: usize = 8;

/// Keys and values of all layers, in `E`.
pub(super) struct PagedKv<E: Element> {
    num_pages: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    value_cols: usize,
    keys: Vec<Vec<E::Bits>>,
    values: Vec<Vec<E::Bits>>,
}

impl<E: Element> PagedKv<E> {
    /// All pages zero.
    pub(super) fn new(spec: KvSpec) -> Result<PagedKv<E>> {
        let value_cols = spec.head_dim.next_multiple_of(LANES);
        let blocks = spec.num_pages * spec.num_kv_heads;
        let layers = |len: usize| -> Result<Vec<Vec<E::Bits>>> {
            (0..spec.num_layers).map(|_| zeroed(len, "KV cache")).collect()
        };
        Ok(PagedKv {
            num_pages: spec.num_pages,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            value_cols,
            keys: layers(blocks * spec.head_dim * PAGE_TOKENS)?,
            values: layers(blocks * value_cols * PAGE_TOKENS)?,
        })
    }

    /// Where to write layer `layer`; threads may share it while they write different tokens or
    /// heads.
    pub(super) fn writer(&mut self, layer: usize) -> KvWriter<E> {
        KvWriter {
            num_pages: self.num_pages,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            value_cols: self.value_cols,
            keys: self.keys[layer].as_mut_ptr(),
            values: self.values[layer].as_mut_ptr(),
        }
    }

    fn key_block(&self, layer: usize, page: usize, head: usize) -> &[E::Bits] {
        let len = self.head_dim * PAGE_TOKENS;
        &self.keys[layer][(head * self.num_pages + page) * len..][..len]
    }

    fn value_block(&self, layer: usize, page: usize, head: usize) -> &[E::Bits] {
        let len = self.value_cols * PAGE_TOKENS;
        &self.values[layer][(head * self.num_pages + page) * len..][..len]
    }
}

/// Write access to one layer of the cache.
pub(super) struct KvWriter<E: Element> {
    num_pages: usize,
    num_kv_heads: usize,
    head_dim: usize,
    value_cols: usize,
    keys: *mut E::Bits,
    values: *mut E::Bits,
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
        assert!(page < self.num_pages && head < self.num_kv_heads, "slot outside the KV cache");
        let block = head * self.num_pages + page;
        // SAFETY: slot and head are inside the cache, so is every element of their block.
        unsafe {
            let keys = self.keys.add(block * self.head_dim * PAGE_TOKENS + lane);
            for (d, x) in key.iter().enumerate() {
                *keys.add(d * PAGE_TOKENS) = E::bits(*x);
            }
            let values = self.values.add((block * PAGE_TOKENS + lane) * self.value_cols);
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

/// Running softmax of `Q` queries: maximum, sum, and the weighted sum of values.
struct Running<const Q: usize> {
    max: [f32; Q],
    sum: [f32; Q],
    values: [[f32; MAX_HEAD_DIM]; Q],
}

impl<E: Element> AttendTile<'_, E> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const Q: usize>(&self, first: usize) {
        let position = self.position + first;
        let cols = self.kv.value_cols;
        let last_page = (position + Q - 1) / PAGE_TOKENS;
        let mut running = Running::<Q> {
            max: [f32::NEG_INFINITY; Q],
            sum: [0.0; Q],
            values: [[0.0; MAX_HEAD_DIM]; Q],
        };
        // SAFETY: lane arithmetic; queries and outputs are valid by the caller's word.
        unsafe {
            let queries = self.queries.0.add(first * self.queries.1);
            for (index, &page) in self.pages[..=last_page].iter().enumerate() {
                let keys = self.kv.key_block(self.layer, page as usize, self.kv_head);
                let values = self.kv.value_block(self.layer, page as usize, self.kv_head);
                let seen: [usize; Q] = std::array::from_fn(|q| {
                    (position + q + 1).saturating_sub(index * PAGE_TOKENS).min(PAGE_TOKENS)
                });
                let scores = self.scores::<S, Q>(queries, keys);
                let weights = running.weigh::<S>(scores, &seen, cols);
                let tokens = seen[Q - 1];
                running.add_values::<S, E>(&weights, &values[..tokens * cols], cols);
            }
            for q in 0..Q {
                let out = self.out.0.add((first + q) * self.out.1);
                for d in 0..self.kv.head_dim {
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
    ) -> [S::V; Q] {
        let dim = self.kv.head_dim;
        // SAFETY: a key block has `head_dim` vectors and each query `head_dim` elements (even).
        unsafe {
            let mut even = [S::splat(0.0); Q];
            let mut odd = [S::splat(0.0); Q];
            for d in (0..dim).step_by(2) {
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
        value_cols: usize,
    ) {
        let tokens = values.len() / value_cols;
        for col in (0..value_cols).step_by(LANES) {
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
