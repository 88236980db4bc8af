//! Products of Int4 in whole numbers (`fixed`) without VNNI: AVX2, 32 products of bytes an instruction.
//!
//! `vpmaddubsw` multiplies bytes without sign by bytes with one and adds pairs in 16 bits, which
//! saturate. A code times a limb is at most 15 * 128, a pair 3840, and eight of them 30720: the sums over
//! 32 inputs are exact in 16 bits, and then go on in 32.
//!
//! ```text
//!             words [inputs / 8, outputs]
//!             +-----------+-----------+
//!  group 0    | ->        |           |  a run of outputs; all rows of words of a group at once, one cache
//!  group 1    |           |           |  line of each; what comes a group later is asked for
//!             +-----------+-----------+
//! ```
//!
//! So memory is read along rows, a run of up to 2 KiB in each, and sums of a group stay in registers. A
//! cache line of words (128 weights) takes 36 vector instructions, against 80 in f32: a core of Zen 3 at
//! 3.1 GHz, which does four a cycle, cannot pass 22 GB/s from its own cache.
//!
//! Measured there (an EPYC whose two virtual cores are the two threads of one core, 2026-11-28; read
//! bandwidth 26 to 32 GB/s), the demo model, both forms in turns in one process, two runs of 10 rounds:
//! decode 53.6 and 48.4 % of the read bandwidth in f32, 60.9 and 54.6 % here; the quantised linears of a
//! token 5.9 and 6.6 ms in f32, 4.5 and 5.2 ms here.
//! What was tried and gained nothing: four rows of words at a time (59.6 %: narrow matrices lose), runs of
//! 256 outputs into the first-level cache; and Int8, as two codes of four bits (much slower than f32) or
//! with inputs of two 16-bit halves and `vpmaddwd` (3 % slower, though it has half the instructions).

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::fixed::{GroupInputs, LIMBS};
use super::linear::STREAM_ROWS;
use super::quantised::{QuantColumns, load_halves};
use super::simd::x86::Avx2;
use super::simd::{LANES, prefetch_second};
use crate::quant::Groups;

/// Outputs that are taken together.
const RUN: usize = 512;
/// Inputs of a word.
const PER_WORD: usize = 8;
/// Inputs whose products 16 bits hold.
const EXACT: usize = 32;
/// Vectors of a cache line of words.
const HALVES: usize = 2;

/// The columns of `product`, whose input is staged by `fixed::stage`.
///
/// # Safety
/// As for the other kernels; AVX2, FMA and F16C are present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn columns(product: &QuantColumns<'_>) {
    let Groups::Runs(size) = *product.weight.tensor.groups() else { return };
    for start in product.cols.clone().step_by(RUN) {
        let cols = start..product.cols.end.min(start + RUN);
        let mut row = 0;
        while row < product.rows {
            let pair = row + 2 <= product.rows;
            // SAFETY: passed on.
            unsafe {
                if pair {
                    run::<2, 1>(product, size, row, cols.clone());
                } else {
                    run::<1, 2>(product, size, row, cols.clone());
                }
            }
            row += if pair { 2 } else { 1 };
        }
    }
}

/// A row of words that a group begins with, and where its columns end up.
struct Place<const MR: usize> {
    words: *const u32,
    /// Words from one row to the next.
    n: usize,
    num_words: usize,
    /// Limbs of the group's inputs.
    x: [*const u8; MR],
    /// Of the sixteen outputs, those that exist.
    lanes: usize,
}

/// Sums of limbs times codes: of MR rows and a cache line of outputs.
type Sums<const MR: usize> = [[[__m256i; LIMBS]; HALVES]; MR];

/// Rows `row..row + MR` of the outputs `cols`, `V` vectors at a time.
#[inline(always)]
unsafe fn run<const MR: usize, const V: usize>(
    product: &QuantColumns<'_>,
    size: usize,
    row: usize,
    cols: Range<usize>,
) {
    let tensor = &product.weight.tensor;
    let (n, all_words) = (tensor.outputs(), tensor.codes().rows());
    // SAFETY: words, scales and staged rows are of these shapes; the caller keeps rows and columns
    // inside; a prefetch may name any address.
    unsafe {
        let words = tensor.codes().bytes().as_ptr().cast::<u32>();
        let scales = tensor.scales().bytes().as_ptr().cast::<u16>();
        let x: [*const u8; MR] =
            std::array::from_fn(|m| product.x.add((row + m) * product.x_stride).cast());
        let mut out = [[[_mm256_setzero_ps(); HALVES]; RUN / LANES]; MR];
        for group in 0..tensor.scales().rows() {
            let start = group * size / PER_WORD;
            let end = all_words.min(start + size / PER_WORD);
            let mut inputs = [GroupInputs { unit: 0.0, sums: [0; LIMBS] }; MR];
            for m in 0..MR {
                let described = x[m].add(LIMBS * product.x_stride).cast::<GroupInputs>();
                inputs[m] = described.add(group).read_unaligned();
            }
            for (line, col) in cols.clone().step_by(LANES).enumerate() {
                let place = Place {
                    words: words.add(start * n + col),
                    n,
                    num_words: end - start,
                    x: x.map(|x| x.add(LIMBS * PER_WORD * start)),
                    lanes: LANES.min(cols.end - col),
                };
                if product.rows <= STREAM_ROWS {
                    let next = if cols.end < product.cols.end {
                        words.wrapping_add(col + RUN)
                    } else {
                        product.then.wrapping_add(col - cols.start)
                    };
                    ask(&place, (end == all_words).then_some(next));
                }
                let mut sums = first_sums(product, &inputs, group * n + col, place.lanes);
                if place.lanes == LANES {
                    add_group::<MR, V, false>(&mut sums, &place);
                } else {
                    add_group::<MR, V, true>(&mut sums, &place);
                }
                let scale = load_halves::<Avx2>(scales.add(group * n + col), place.lanes);
                for m in 0..MR {
                    let unit = _mm256_set1_ps(inputs[m].unit);
                    for (h, scale) in [scale.0, scale.1].into_iter().enumerate() {
                        let sum = _mm256_mul_ps(joined(&sums[m][h]), unit);
                        out[m][line][h] = _mm256_fmadd_ps(sum, scale, out[m][line][h]);
                    }
                }
            }
        }
        for (line, col) in cols.clone().step_by(LANES).enumerate() {
            let mut sums = [[(_mm256_setzero_ps(), _mm256_setzero_ps()); 1]; MR];
            for m in 0..MR {
                sums[m][0] = (out[m][line][0], out[m][line][1]);
            }
            product.store::<Avx2, MR, 1>(&sums, row, col, LANES.min(cols.end - col));
        }
    }
}

/// Asks for the words as far behind those of `place` as these are long; past the last row of the
/// matrix for what comes `then`.
#[inline(always)]
unsafe fn ask<const MR: usize>(place: &Place<MR>, then: Option<*const u32>) {
    let behind = || place.words.wrapping_add(place.num_words * place.n);
    let ahead = then.unwrap_or_else(behind);
    for r in 0..place.num_words {
        prefetch_second(ahead.wrapping_add(r * place.n));
    }
}

/// What the sums of a group begin at: -zero * (sum of limbs), with the zero points from `at` on.
#[inline(always)]
unsafe fn first_sums<const MR: usize>(
    product: &QuantColumns<'_>,
    inputs: &[GroupInputs; MR],
    at: usize,
    lanes: usize,
) -> Sums<MR> {
    let tensor = &product.weight.tensor;
    // SAFETY: lane arithmetic, and zeros inside their matrix.
    unsafe {
        let mut zero = [_mm256_set1_epi32(tensor.bits().middle() as i32); HALVES];
        if let Some(zeros) = tensor.zeros() {
            let from = zeros.bytes().as_ptr().cast::<u16>().add(at);
            let halves = load_halves::<Avx2>(from, lanes);
            zero = [_mm256_cvtps_epi32(halves.0), _mm256_cvtps_epi32(halves.1)];
        }
        let mut sums = [[[_mm256_setzero_si256(); LIMBS]; HALVES]; MR];
        for m in 0..MR {
            for h in 0..HALVES {
                for limb in 0..LIMBS {
                    let sum = _mm256_set1_epi32(-inputs[m].sums[limb]);
                    sums[m][h][limb] = _mm256_mullo_epi32(zero[h], sum);
                }
            }
        }
        sums
    }
}

/// Adds the products of a group's words with its limbs, `V` vectors at a time; `PART`: not all
/// lanes exist.
#[inline(always)]
unsafe fn add_group<const MR: usize, const V: usize, const PART: bool>(
    sums: &mut Sums<MR>,
    place: &Place<MR>,
) {
    const STEP: usize = EXACT / PER_WORD;
    for first in (0..HALVES).step_by(V) {
        for start in (0..place.num_words).step_by(STEP) {
            // SAFETY: words and limbs are those of the group; lane arithmetic.
            unsafe {
                let mut exact = [[[_mm256_setzero_si256(); LIMBS]; V]; MR];
                for r in start..place.num_words.min(start + STEP) {
                    for v in 0..V {
                        let w = load_eight::<PART, MR>(place, r, first + v);
                        for m in 0..MR {
                            let x = place.x[m].add(LIMBS * PER_WORD * r);
                            add_word(&mut exact[m][v], w, x);
                        }
                    }
                }
                let one = _mm256_set1_epi16(1);
                for m in 0..MR {
                    for v in 0..V {
                        for limb in 0..LIMBS {
                            let wide = _mm256_madd_epi16(exact[m][v][limb], one);
                            let sum = &mut sums[m][first + v][limb];
                            *sum = _mm256_add_epi32(*sum, wide);
                        }
                    }
                }
            }
        }
    }
}

/// Vector `half` of row `r` of the words; if `PART`, zeros where lanes do not exist.
#[inline(always)]
unsafe fn load_eight<const PART: bool, const MR: usize>(
    place: &Place<MR>,
    r: usize,
    half: usize,
) -> __m256i {
    let from = place.words.wrapping_add(r * place.n + 8 * half);
    // SAFETY: the words that are loaded are inside their matrix.
    unsafe {
        if !PART {
            return _mm256_loadu_si256(from.cast());
        }
        let lanes = place.lanes.saturating_sub(8 * half) as i32;
        let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), index);
        _mm256_maskload_epi32(from.cast(), mask)
    }
}

/// Adds the products of one vector of words with the limbs of its inputs at `x`.
#[inline(always)]
unsafe fn add_word(exact: &mut [__m256i; LIMBS], w: __m256i, x: *const u8) {
    // SAFETY: the staged row holds the limbs of whole words.
    unsafe {
        let limbs = |at: usize| _mm256_set1_epi32(x.add(at).cast::<i32>().read_unaligned());
        let mask = _mm256_set1_epi8(15);
        let lower = _mm256_and_si256(w, mask);
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
        for limb in 0..LIMBS {
            let even = _mm256_maddubs_epi16(lower, limbs(8 * limb));
            let odd = _mm256_maddubs_epi16(upper, limbs(8 * limb + 4));
            exact[limb] = _mm256_add_epi16(exact[limb], _mm256_add_epi16(even, odd));
        }
    }
}

/// l0 + 256 l1 + 65536 l2 in f32.
#[inline(always)]
unsafe fn joined(sums: &[__m256i; LIMBS]) -> __m256 {
    // SAFETY: lane arithmetic; the caller has the instruction set.
    unsafe {
        let base = _mm256_set1_ps(256.0);
        let middle = _mm256_cvtepi32_ps(sums[1]);
        let upper = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[2]), base, middle);
        _mm256_fmadd_ps(upper, base, _mm256_cvtepi32_ps(sums[0]))
    }
}
