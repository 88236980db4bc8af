//! `y = x W^T` straight from the checkpoint's row-major weights: no repacking, so a memory map is
//! enough.
//!
//! Every output is one chain of vector multiply-adds along the input dimension followed by one
//! lane sum, whatever the number of rows: decode and prefill give the same bits. What differs is
//! the tile, MR rows of x by NR rows of W held in registers:
//!
//! ```text
//!            W panel (NR-row tiles; the panel stays in L2)
//!          +----+----+----+
//!   x tile |acc |    |    |   MR x NR accumulators, one load of each x and w vector a step
//!   (L1)   +----+----+----+
//! ```
//!
//! Up to four rows of x (decode) are bound by reading the weights: one weight row at a time then,
//! a single stream with software prefetch, which reads nearly twice as fast from memory as six
//! interleaved rows do (AMD EPYC Zen 4, 2026-11-23: 36 against 20 GB/s on two cores).
//!
//! Traffic per panel of P weight rows: P*K weights once, all of x once, so x costs
//! 1/P of a load per multiply-add. With bf16 weights on AVX-512 BF16 a step is one vdpbf16ps of 32
//! products; elsewhere weights are widened to f32 in registers.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use std::marker::PhantomData;
use std::ops::Range;

use super::element::Element;
use super::simd::{Kernel, LANES, Simd, prefetch};

/// Weights of one panel should fit the second-level cache beside the x tile.
const PANEL_BYTES: usize = 384 * 1024;
/// Panel rows: a multiple of every tile's NR.
const PANEL_STEP: usize = 12;
/// Largest panel: beyond it the gain in x traffic is nothing, and the parts for threads get few.
const PANEL_MAX: usize = 48;

/// Rows of a weight matrix that one panel takes.
pub(super) fn panel_rows(row_bytes: usize) -> usize {
    let fit = PANEL_BYTES / row_bytes.max(1);
    (fit / PANEL_STEP * PANEL_STEP).clamp(PANEL_STEP, PANEL_MAX)
}

/// Rows of x up to which weights are read as a single stream.
pub(super) const STREAM_ROWS: usize = 4;
/// How far ahead of that stream to prefetch.
const PREFETCH_BYTES: usize = 4096;

/// How products of one input type with one weight type are accumulated.
pub(super) trait Dot: Copy {
    type X: Copy;
    type W: Copy + Default;
    type Acc: Copy;
    type XVec: Copy;
    type WVec: Copy;
    /// Products of one step.
    const STEP: usize;
    const MANY_REGISTERS: bool;

    unsafe fn zero() -> Self::Acc;
    unsafe fn load_x(from: *const Self::X) -> Self::XVec;
    unsafe fn load_w(from: *const Self::W) -> Self::WVec;
    unsafe fn step(acc: Self::Acc, x: Self::XVec, w: Self::WVec) -> Self::Acc;
    unsafe fn sum(acc: Self::Acc) -> f32;
}

/// f32 inputs, weights widened to f32.
#[derive(Clone, Copy)]
pub(super) struct Widen<S, E>(PhantomData<(S, E)>);

impl<S: Simd, E: Element> Dot for Widen<S, E> {
    type X = f32;
    type W = E::Bits;
    type Acc = S::V;
    type XVec = S::V;
    type WVec = S::V;
    const STEP: usize = LANES;
    const MANY_REGISTERS: bool = S::MANY_REGISTERS;

    #[inline(always)]
    unsafe fn zero() -> S::V {
        // SAFETY: lane arithmetic; the caller has the instruction set.
        unsafe { S::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn load_x(from: *const f32) -> S::V {
        // SAFETY: the caller's pointer is valid for one step.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn load_w(from: *const E::Bits) -> S::V {
        // SAFETY: the caller's pointer is valid for one step.
        unsafe { E::load::<S>(from) }
    }
    #[inline(always)]
    unsafe fn step(acc: S::V, x: S::V, w: S::V) -> S::V {
        // SAFETY: lane arithmetic; the caller has the instruction set.
        unsafe { S::fma(x, w, acc) }
    }
    #[inline(always)]
    unsafe fn sum(acc: S::V) -> f32 {
        // SAFETY: lane arithmetic; the caller has the instruction set.
        unsafe { S::sum(acc) }
    }
}

/// A product of staged inputs with one weight matrix. Pointers, because threads write disjoint
/// columns of the same output rows.
#[derive(Clone, Copy)]
pub(super) struct Product<X, W> {
    /// `[rows, x_stride]`, zero from column `k` to the next multiple of 32.
    pub(super) x: *const X,
    pub(super) x_stride: usize,
    pub(super) rows: usize,
    /// `[n, k]`, any alignment.
    pub(super) w: *const W,
    pub(super) k: usize,
    /// `[n]` or null.
    pub(super) bias: *const f32,
    /// `[rows, n]`.
    pub(super) out: *mut f32,
    pub(super) n: usize,
}

/// Computes the output columns `cols` of `product`, all rows, panel by panel.
///
/// # Safety
/// The product's pointers are valid for its shapes, no other thread touches these columns, and the
/// instruction set of `D` is present.
#[inline(always)]
pub(super) unsafe fn columns<D: Dot>(product: &Product<D::X, D::W>, cols: Range<usize>) {
    if product.rows <= STREAM_ROWS {
        // SAFETY: passed on.
        return unsafe { stream::<D>(product, cols) };
    }
    let panel = panel_rows(product.k * size_of::<D::W>());
    let mut start = cols.start;
    while start < cols.end {
        let end = cols.end.min(start + panel);
        // SAFETY: passed on.
        unsafe {
            if D::MANY_REGISTERS {
                panel_columns::<D, 4, 6>(product, start..end);
            } else {
                panel_columns::<D, 2, 2>(product, start..end);
            }
        }
        start = end;
    }
}

/// All rows (at most four) against one weight row after another.
#[inline(always)]
unsafe fn stream<D: Dot>(product: &Product<D::X, D::W>, cols: Range<usize>) {
    for col in cols {
        // SAFETY: passed on.
        unsafe {
            match product.rows {
                1 => tile::<D, 1, 1, true>(product, 0, col),
                2 => tile::<D, 2, 1, true>(product, 0, col),
                3 => tile::<D, 3, 1, true>(product, 0, col),
                4 => tile::<D, 4, 1, true>(product, 0, col),
                _ => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn panel_columns<D: Dot, const MR: usize, const NR: usize>(
    product: &Product<D::X, D::W>,
    cols: Range<usize>,
) {
    let mut row = 0;
    // SAFETY: rows stay below `product.rows`; the rest is passed on.
    unsafe {
        while row + MR <= product.rows {
            tiles::<D, MR, NR>(product, row, cols.clone());
            row += MR;
        }
        match product.rows - row {
            1 => tiles::<D, 1, NR>(product, row, cols),
            2 => tiles::<D, 2, NR>(product, row, cols),
            3 => tiles::<D, 3, NR>(product, row, cols),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn tiles<D: Dot, const MR: usize, const NR: usize>(
    product: &Product<D::X, D::W>,
    row: usize,
    cols: Range<usize>,
) {
    let mut col = cols.start;
    // SAFETY: columns stay below `cols.end`; the rest is passed on.
    unsafe {
        while col + NR <= cols.end {
            tile::<D, MR, NR, false>(product, row, col);
            col += NR;
        }
        while col < cols.end {
            tile::<D, MR, 1, false>(product, row, col);
            col += 1;
        }
    }
}

/// One register tile: rows `row..row + MR` times weight rows `col..col + NR`. `STREAM`: prefetch.
#[inline(always)]
unsafe fn tile<D: Dot, const MR: usize, const NR: usize, const STREAM: bool>(
    product: &Product<D::X, D::W>,
    row: usize,
    col: usize,
) {
    // SAFETY: offsets stay inside `rows * x_stride`, `n * k` and `rows * n`; the tail of a weight
    // row is copied out before it is loaded as a whole vector.
    unsafe {
        let x = product.x.add(row * product.x_stride);
        let w = product.w.add(col * product.k);
        let mut acc = [[D::zero(); NR]; MR];
        let whole = product.k / D::STEP * D::STEP;
        let mut k = 0;
        while k < whole {
            if STREAM {
                prefetch(w.add(k).cast::<u8>().wrapping_add(PREFETCH_BYTES));
            }
            let mut wv = [D::load_w(w.add(k)); NR];
            for n in 1..NR {
                wv[n] = D::load_w(w.add(n * product.k + k));
            }
            for m in 0..MR {
                let xv = D::load_x(x.add(m * product.x_stride + k));
                for n in 0..NR {
                    acc[m][n] = D::step(acc[m][n], xv, wv[n]);
                }
            }
            k += D::STEP;
        }
        if whole < product.k {
            tail::<D, MR, NR>(product, (x.add(whole), w.add(whole)), product.k - whole, &mut acc);
        }
        for m in 0..MR {
            for n in 0..NR {
                let bias = if product.bias.is_null() { 0.0 } else { *product.bias.add(col + n) };
                *product.out.add((row + m) * product.n + col + n) = D::sum(acc[m][n]) + bias;
            }
        }
    }
}

/// The last, partial step: weights past the row's end count as zero.
#[inline(always)]
unsafe fn tail<D: Dot, const MR: usize, const NR: usize>(
    product: &Product<D::X, D::W>,
    (x, w): (*const D::X, *const D::W),
    len: usize,
    acc: &mut [[D::Acc; NR]; MR],
) {
    for n in 0..NR {
        let mut padded = [D::W::default(); 2 * LANES];
        // SAFETY: `len` elements are left in the row and `padded` has room for a whole step; x is
        // zero-padded by its owner.
        unsafe {
            let from = w.add(n * product.k).cast::<u8>();
            let bytes = len * size_of::<D::W>();
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr().cast::<u8>(), bytes);
            let wv = D::load_w(padded.as_ptr());
            for (m, row) in acc.iter_mut().enumerate() {
                row[n] = D::step(row[n], D::load_x(x.add(m * product.x_stride)), wv);
            }
        }
    }
}

/// `columns` for inputs in f32, as a kernel for any instruction set.
pub(super) struct WidenColumns<'a, E: Element> {
    pub(super) product: &'a Product<f32, E::Bits>,
    pub(super) cols: Range<usize>,
}

impl<E: Element> Kernel for WidenColumns<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on.
        unsafe { columns::<Widen<S, E>>(self.product, self.cols) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod bf16 {
    //! bf16 inputs and weights through vdpbf16ps: 32 products an instruction, accumulated in f32
    //! (pairs rounded to nearest even, subnormal inputs and sums taken as zero).

    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{Dot, Product, Simd};
    use crate::backend::cpu::fast::simd::x86::Avx512;

    #[derive(Clone, Copy)]
    struct Pairs;

    impl Dot for Pairs {
        type X = u16;
        type W = u16;
        type Acc = __m512;
        type XVec = __m512i;
        type WVec = __m512i;
        const STEP: usize = 32;
        const MANY_REGISTERS: bool = true;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load_x(from: *const u16) -> __m512i {
            // SAFETY: the caller's pointer is valid for 32 elements.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn load_w(from: *const u16) -> __m512i {
            // SAFETY: the caller's pointer is valid for 32 elements.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn step(acc: __m512, x: __m512i, w: __m512i) -> __m512 {
            // SAFETY: the caller has AVX-512 BF16; the types are the same 512 bits.
            unsafe {
                let x = std::mem::transmute::<__m512i, __m512bh>(x);
                let w = std::mem::transmute::<__m512i, __m512bh>(w);
                _mm512_dpbf16_ps(acc, x, w)
            }
        }
        #[inline(always)]
        unsafe fn sum(acc: __m512) -> f32 {
            // SAFETY: the caller has AVX-512.
            unsafe { Avx512::sum(acc) }
        }
    }

    /// `columns` through vdpbf16ps.
    ///
    /// # Safety
    /// As `columns`; AVX-512 F, BW, VL, DQ and BF16 are present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    pub(in crate::backend::cpu::fast) unsafe fn columns(
        product: &Product<u16, u16>,
        cols: Range<usize>,
    ) {
        // SAFETY: passed on.
        unsafe { super::columns::<Pairs>(product, cols) }
    }
}
