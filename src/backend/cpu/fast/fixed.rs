//! Products with quantised weights in whole numbers: AVX-512 VNNI, 64 products of bytes an instruction.
//!
//! Codes are whole numbers; so are inputs, once each group of a row has a scale of its own, a power of
//! two. An input becomes 24 bits of fixed point, split into three signed bytes ("limbs"):
//!
//! ```text
//! x ~ (l0 + 256 l1 + 65536 l2) / 2^s     |error| <= 2^-23 of the largest |x| in the group
//! ```
//!
//! Per limb, the sum over a group of limb * (code - zero) is exact in 32 bits, whatever its order. What
//! rounds is the conversion of an input (by no more than f32 sums err), and the joining of limbs and
//! groups in f32. Zero points cost nothing: each sum begins at -zero * (sum of limbs), known from
//! staging. A vector of 16 words of Int4 (128 weights) is 9 instructions, against 24 in f32; of Int8
//! (64 weights) 3.
//!
//! From a core's own cache (Zen 5, two cores, 2026-11-25): 63 GB/s of Int4 and 105 of Int8, against 50
//! and 73 in f32. From memory a product is bound by how it reads, runs of 256 bytes a row of words
//! apart: the demo model decodes at 59-73 % (Int4) and 61-75 % (Int8) of the read bandwidth of the same
//! run on a busy machine, where bf16 had 84-94 %. Threads that ask for the first tiles of the next matrix
//! while they wait were tried and gained nothing that could be measured there.
//!
//! A staged row of `stride` floats holds, as bytes:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 3 i | i | for the i inputs of a word: limb l0 of each, l1 of each, l2 of each |
//! | 3 stride | 16 a group | 2^-s (f32), and the sums of l0, l1, l2 (i32) |
//!
//! In the order in which bytes are cut out of a word: of the eight inputs of Int4 first 0, 2, 4, 6
//! (the low halves of its bytes), then 1, 3, 5, 7.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::linear::STREAM_ROWS;
use super::quantised::{Ahead, QuantColumns, load_halves, load_words, panel_outputs};
use super::simd::LANES;
use super::simd::x86::Avx512;
use crate::quant::{Bits, Groups, QuantTensor};

const LIMBS: usize = 3;
/// Largest number of three limbs, each at most 127.
const LARGEST: f32 = (127 * 65536 + 127 * 256 + 127) as f32;
/// Longest group whose sums fit 32 bits: 2^15 inputs of at most 128 * 256.
const MAX_GROUP: usize = 1 << 15;

/// Is `tensor` one for this path? Its inputs must be in the order of their groups.
pub(super) fn serves(tensor: &QuantTensor) -> bool {
    matches!(tensor.groups(), Groups::Runs(size) if (*size).min(tensor.inputs()) <= MAX_GROUP)
}

/// What staging knows of one group of a row.
#[derive(Clone, Copy)]
#[repr(C)]
struct GroupInputs {
    /// 2^-s; not a number if an input is none.
    unit: f32,
    sums: [i32; LIMBS],
}

/// Stages one row for codes of `bits` in groups of `size`, into a row as above.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and VNNI are present; `to` is at least as long as `from`, and a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn stage(from: &[f32], to: &mut [f32], bits: Bits, size: usize) {
    let stride = to.len();
    let bytes = to.as_mut_ptr().cast::<u8>();
    for (group, part) in from.chunks(size).enumerate() {
        // SAFETY: limbs take three quarters of the row; groups are at least 32 inputs (the last may be
        // less), so that their descriptions fit the last quarter.
        unsafe {
            let (up, unit) = scale_of(part);
            let sums = stage_group(part, up, bits, bytes.add(LIMBS * group * size));
            let described = bytes.add(LIMBS * stride).cast::<GroupInputs>().add(group);
            described.write_unaligned(GroupInputs { unit, sums });
        }
    }
}

/// 2^s and 2^-s for one group: the largest s that its largest input allows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scale_of(part: &[f32]) -> (f32, f32) {
    // SAFETY: masked loads stay inside the slice.
    let (largest, poison) = unsafe {
        let (mut largest, mut poison) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for at in (0..part.len()).step_by(LANES) {
            let x = _mm512_maskz_loadu_ps(mask(part.len() - at), part.as_ptr().add(at));
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
            // What is infinite or no number stays one when multiplied by nothing.
            poison = _mm512_fmadd_ps(x, _mm512_setzero_ps(), poison);
        }
        (_mm512_reduce_max_ps(largest), _mm512_reduce_add_ps(poison))
    };
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    let power = |s: i32| f32::from_bits(((s + 127) as u32) << 23);
    // Up to 126: the inverse of a larger one would be subnormal.
    let s = (22 - exponent).clamp(-105, 126);
    let s = if largest * power(s) > LARGEST { s - 1 } else { s };
    (power(s), power(-s) + poison)
}

/// The lanes of a vector that `len` more elements fill.
#[inline(always)]
fn mask(len: usize) -> __mmask16 {
    if len >= LANES { u16::MAX } else { (1 << len) - 1 }
}

/// Writes the limbs of one group to `to`; the sum of each limb.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn stage_group(part: &[f32], up: f32, bits: Bits, to: *mut u8) -> [i32; LIMBS] {
    // SAFETY: masked loads stay inside the slice; rows are padded to whole vectors of inputs.
    unsafe {
        let order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        let mut sums = [_mm512_setzero_si512(); LIMBS];
        for at in (0..part.len()).step_by(LANES) {
            let x = _mm512_maskz_loadu_ps(mask(part.len() - at), part.as_ptr().add(at));
            let mut rest = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(up)));
            for limb in 0..LIMBS {
                let low = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(rest));
                rest = _mm512_srai_epi32::<8>(_mm512_sub_epi32(rest, low));
                sums[limb] = _mm512_add_epi32(sums[limb], low);
                let bytes = _mm512_cvtepi32_epi8(low);
                let to = to.add(LIMBS * at);
                match bits {
                    Bits::Four => scatter::<8>(_mm_shuffle_epi8(bytes, order), to.add(8 * limb)),
                    Bits::Eight => scatter::<4>(bytes, to.add(4 * limb)),
                }
            }
        }
        sums.map(|sum| _mm512_reduce_add_epi32(sum))
    }
}

/// Sixteen limbs to their places: `INPUTS` of each word.
#[inline(always)]
unsafe fn scatter<const INPUTS: usize>(limbs: __m128i, to: *mut u8) {
    let mut bytes = [0_u8; LANES];
    // SAFETY: the caller's row has room for the words of sixteen inputs.
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), limbs);
        for (word, part) in bytes.chunks_exact(INPUTS).enumerate() {
            std::ptr::copy_nonoverlapping(part.as_ptr(), to.add(word * LIMBS * INPUTS), INPUTS);
        }
    }
}

/// The columns of `product`, whose input is staged by `stage`.
///
/// # Safety
/// As for the other kernels; AVX-512 F, BW, VL, DQ and VNNI are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn columns(product: &QuantColumns<'_>) {
    // SAFETY: passed on.
    unsafe {
        match product.weight.tensor.bits() {
            Bits::Four => panels::<4>(product),
            Bits::Eight => panels::<8>(product),
        }
    }
}

#[inline(always)]
unsafe fn panels<const BITS: usize>(product: &QuantColumns<'_>) {
    let panel = panel_outputs(&product.weight.tensor);
    let cols = &product.cols;
    // SAFETY: passed on.
    unsafe {
        if product.rows <= STREAM_ROWS {
            return last_rows::<BITS>(product, 0, cols.clone());
        }
        for start in cols.clone().step_by(panel) {
            let cols = start..cols.end.min(start + panel);
            let mut row = 0;
            while row + 8 <= product.rows {
                tiles::<BITS, 8, 1>(product, row, cols.clone());
                row += 8;
            }
            if row + 4 <= product.rows {
                tiles::<BITS, 4, 1>(product, row, cols.clone());
                row += 4;
            }
            last_rows::<BITS>(product, row, cols);
        }
    }
}

/// The rows from `row` on, at most four. Twelve sums at a time stay in registers, with the inputs; of
/// more the compiler keeps some in memory.
#[inline(always)]
unsafe fn last_rows<const BITS: usize>(product: &QuantColumns<'_>, row: usize, cols: Range<usize>) {
    // SAFETY: passed on.
    unsafe {
        match product.rows - row {
            1 => tiles::<BITS, 1, 4>(product, row, cols),
            2 => tiles::<BITS, 2, 2>(product, row, cols),
            3 => tiles::<BITS, 3, 1>(product, row, cols),
            4 => tiles::<BITS, 4, 1>(product, row, cols),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn tiles<const BITS: usize, const MR: usize, const NR: usize>(
    product: &QuantColumns<'_>,
    row: usize,
    cols: Range<usize>,
) {
    let mut col = cols.start;
    // SAFETY: columns stay below `cols.end`; the rest is passed on.
    unsafe {
        while col + NR * LANES <= cols.end {
            tile::<BITS, MR, NR, false>(product, row, col, LANES);
            col += NR * LANES;
        }
        while col < cols.end {
            tile::<BITS, MR, 1, true>(product, row, col, LANES.min(cols.end - col));
            col += LANES;
        }
    }
}

/// Sums of limbs times codes: of MR rows and NR vectors of outputs.
type Sums<const MR: usize, const NR: usize> = [[[__m512i; LIMBS]; NR]; MR];

/// Rows `row..row + MR`, NR vectors of outputs from `col` on, of `lanes` lanes if `PART`.
#[inline(always)]
unsafe fn tile<const BITS: usize, const MR: usize, const NR: usize, const PART: bool>(
    product: &QuantColumns<'_>,
    row: usize,
    col: usize,
    lanes: usize,
) {
    let tensor = &product.weight.tensor;
    let (n, num_words, per_word) = (tensor.outputs(), tensor.codes().rows(), 32 / BITS);
    let Groups::Runs(size) = *tensor.groups() else { return };
    let lanes = if PART { lanes } else { LANES };
    // SAFETY: words, scales and staged rows are of these shapes; the caller keeps rows and columns
    // inside; a prefetch may name any address.
    unsafe {
        let words = tensor.codes().bytes().as_ptr().cast::<u32>().add(col);
        let scales = tensor.scales().bytes().as_ptr().cast::<u16>().add(col);
        let x: [*const u8; MR] =
            std::array::from_fn(|m| product.x.add((row + m) * product.x_stride).cast());
        let ahead = Ahead::new::<NR>(words, n, num_words);
        let mut out = [[_mm512_setzero_ps(); NR]; MR];
        for group in 0..tensor.scales().rows() {
            let start = group * size / per_word;
            let end = num_words.min(start + size / per_word);
            let inputs = x.map(|x| {
                let described = x.add(LIMBS * product.x_stride).cast::<GroupInputs>();
                described.add(group).read_unaligned()
            });
            let mut sums: Sums<MR, NR> = first_sums(tensor, &inputs, group * n + col, lanes);
            for r in start..end {
                if product.rows <= STREAM_ROWS {
                    ahead.ask::<NR>(r);
                }
                for v in 0..NR {
                    let w = load_words::<Avx512>(words.add(r * n + v * LANES), lanes);
                    for m in 0..MR {
                        add_word::<BITS>(&mut sums[m][v], w, x[m].add(LIMBS * r * per_word));
                    }
                }
            }
            for v in 0..NR {
                let scale = load_halves::<Avx512>(scales.add(group * n + v * LANES), lanes);
                for m in 0..MR {
                    let sum = _mm512_mul_ps(joined(&sums[m][v]), _mm512_set1_ps(inputs[m].unit));
                    out[m][v] = _mm512_fmadd_ps(sum, scale, out[m][v]);
                }
            }
        }
        product.store::<Avx512, MR, NR>(&out, row, col, lanes);
    }
}

/// What the sums of a group begin at: -zero * (sum of limbs), with the zero points from `at` on.
#[inline(always)]
unsafe fn first_sums<const MR: usize, const NR: usize>(
    tensor: &QuantTensor,
    inputs: &[GroupInputs; MR],
    at: usize,
    lanes: usize,
) -> Sums<MR, NR> {
    // SAFETY: lane arithmetic, and zeros inside their matrix.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); LIMBS]; NR]; MR];
        let middle = tensor.bits().middle() as i32;
        for v in 0..NR {
            let zero = tensor.zeros().map(|zeros| {
                let from = zeros.bytes().as_ptr().cast::<u16>().add(at + v * LANES);
                _mm512_cvtps_epi32(load_halves::<Avx512>(from, lanes))
            });
            for (m, inputs) in inputs.iter().enumerate() {
                for limb in 0..LIMBS {
                    let sum = -inputs.sums[limb];
                    sums[m][v][limb] = match zero {
                        Some(zero) => _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum)),
                        None => _mm512_set1_epi32(middle * sum),
                    };
                }
            }
        }
        sums
    }
}

/// Adds the products of one vector of words with the limbs of its inputs at `x`.
#[inline(always)]
unsafe fn add_word<const BITS: usize>(sums: &mut [__m512i; LIMBS], w: __m512i, x: *const u8) {
    // SAFETY: the staged row holds the limbs of whole words.
    unsafe {
        let limbs = |at: usize| _mm512_set1_epi32(x.add(at).cast::<i32>().read_unaligned());
        if BITS == 8 {
            for limb in 0..LIMBS {
                sums[limb] = _mm512_dpbusd_epi32(sums[limb], w, limbs(4 * limb));
            }
            return;
        }
        let low = _mm512_set1_epi8(15);
        let even = _mm512_and_si512(w, low);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<4>(w), low);
        for limb in 0..LIMBS {
            let sum = _mm512_dpbusd_epi32(sums[limb], even, limbs(8 * limb));
            sums[limb] = _mm512_dpbusd_epi32(sum, odd, limbs(8 * limb + 4));
        }
    }
}

/// l0 + 256 l1 + 65536 l2 in f32.
#[inline(always)]
unsafe fn joined(sums: &[__m512i; LIMBS]) -> __m512 {
    // SAFETY: lane arithmetic; the caller has the instruction set.
    unsafe {
        let base = _mm512_set1_ps(256.0);
        let [low, middle, high] = sums.map(|sum| _mm512_cvtepi32_ps(sum));
        _mm512_fmadd_ps(_mm512_fmadd_ps(high, base, middle), base, low)
    }
}
