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
use super::simd::x86::Avx512;
use super::simd::{Isa, LANES};
use crate::quant::{Bits, Groups, QuantTensor};

pub(super) const LIMBS: usize = 3;
/// Largest number of three limbs, each at most 127.
const LARGEST: f32 = (127 * 65536 + 127 * 256 + 127) as f32;
/// Longest group whose sums fit 32 bits: 2^15 inputs of at most 128 * 256.
const MAX_GROUP: usize = 1 << 15;

/// Is `tensor` one for this path on `isa`? Its inputs must be in the order of their groups.
pub(super) fn serves(tensor: &QuantTensor, isa: Isa) -> bool {
    // Int8 in AVX2 was tried, too (`fixed_avx2`).
    let has = isa == Isa::Avx512Bf16 || (isa == Isa::Avx2 && tensor.bits() == Bits::Four);
    has && matches!(tensor.groups(), Groups::Runs(size) if (*size).min(tensor.inputs()) <= MAX_GROUP)
}

/// What staging knows of one group of a row.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GroupInputs {
    /// 2^-s; not a number if an input is none.
    pub(super) unit: f32,
    pub(super) sums: [i32; LIMBS],
}

/// Stages one row for codes of `bits` in groups of `size`, into a row as above. AVX2 is enough for it:
/// a row of 576 takes 0.1 us.
///
/// # Safety
/// AVX2, FMA and F16C are present; `to` is at least as long as `from`, and a multiple of 32.
#[target_feature(enable = "avx2,fma,f16c")]
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

/// Inputs that are staged at a time.
const STAGED: usize = 8;

/// The inputs of `part` from `at` on, zeros past its end.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_part(part: &[f32], at: usize) -> __m256 {
    // SAFETY: a whole vector is loaded from the slice or from the padded copy.
    unsafe {
        if at + STAGED <= part.len() {
            return _mm256_loadu_ps(part.as_ptr().add(at));
        }
        let mut padded = [0.0; STAGED];
        padded[..part.len() - at].copy_from_slice(&part[at..]);
        _mm256_loadu_ps(padded.as_ptr())
    }
}

/// 2^s and 2^-s for one group: the largest s that its largest input allows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_of(part: &[f32]) -> (f32, f32) {
    let (mut largest, mut poison) = ([0.0_f32; STAGED], [0.0_f32; STAGED]);
    // SAFETY: lane arithmetic; arrays are as long as vectors.
    unsafe {
        let (mut most, mut no_number) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for at in (0..part.len()).step_by(STAGED) {
            let x = load_part(part, at);
            most = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x), most);
            // What is infinite or no number stays one when multiplied by nothing.
            no_number = _mm256_fmadd_ps(x, _mm256_setzero_ps(), no_number);
        }
        _mm256_storeu_ps(largest.as_mut_ptr(), most);
        _mm256_storeu_ps(poison.as_mut_ptr(), no_number);
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    let poison: f32 = poison.into_iter().sum();
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    let power = |s: i32| f32::from_bits(((s + 127) as u32) << 23);
    // Up to 126: the inverse of a larger one would be subnormal.
    let s = (22 - exponent).clamp(-105, 126);
    let s = if largest * power(s) > LARGEST { s - 1 } else { s };
    (power(s), power(-s) + poison)
}

/// Writes the limbs of one group to `to`; the sum of each limb.
///
/// With 128 added to every limb they are the bytes of one number without signs: one addition cuts it,
/// and `psadbw` sums eight of them at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn stage_group(part: &[f32], up: f32, bits: Bits, to: *mut u8) -> [i32; LIMBS] {
    let signs = _mm_set1_epi8(-128);
    // SAFETY: rows are padded to whole vectors of inputs.
    unsafe {
        let (mut low_sums, mut high_sums) = (_mm_setzero_si128(), _mm_setzero_si128());
        for at in (0..part.len()).step_by(STAGED) {
            let x = _mm256_mul_ps(load_part(part, at), _mm256_set1_ps(up));
            let digits = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(0x80_8080));
            // Eight of the lowest limb and eight of the middle one; eight of the highest.
            let (low, high) = arranged(digits, bits);
            low_sums = _mm_add_epi64(low_sums, _mm_sad_epu8(low, _mm_setzero_si128()));
            high_sums = _mm_add_epi64(high_sums, _mm_sad_epu8(high, _mm_setzero_si128()));
            let (low, high) = (_mm_xor_si128(low, signs), _mm_xor_si128(high, signs));
            let to = to.add(LIMBS * at);
            match bits {
                Bits::Four => {
                    _mm_storeu_si128(to.cast(), low);
                    _mm_storel_epi64(to.add(16).cast(), high);
                }
                // The limbs of one word, then those of the other.
                Bits::Eight => {
                    let pairs = _mm_shuffle_epi32::<0b11_01_10_00>(low);
                    _mm_storel_epi64(to.cast(), pairs);
                    _mm_storeu_si32(to.add(8), high);
                    _mm_storel_epi64(to.add(12).cast(), _mm_unpackhi_epi64(pairs, pairs));
                    _mm_storeu_si32(to.add(20), _mm_srli_epi64::<32>(high));
                }
            }
        }
        let added = 128 * part.len().next_multiple_of(STAGED) as i32;
        let (low, middle) = (_mm_cvtsi128_si32(low_sums), _mm_extract_epi32::<2>(low_sums));
        [low - added, middle - added, _mm_cvtsi128_si32(high_sums) - added]
    }
}

/// The bytes 0, 1 and 2 of eight numbers: sixteen of 0 and 1, eight of 2 (then zeros). In the order of
/// Int4, or four of one word and four of the next.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn arranged(digits: __m256i, bits: Bits) -> (__m128i, __m128i) {
    let order = match bits {
        Bits::Four => _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, -1, -1, -1, -1),
        Bits::Eight => _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1),
    };
    let first = _mm_shuffle_epi8(_mm256_castsi256_si128(digits), order);
    let second = _mm_shuffle_epi8(_mm256_extracti128_si256::<1>(digits), order);
    match bits {
        Bits::Four => (_mm_unpacklo_epi16(first, second), _mm_unpackhi_epi16(first, second)),
        Bits::Eight => (_mm_unpacklo_epi32(first, second), _mm_unpackhi_epi32(first, second)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The limbs of each word and the sums, by the formula.
    #[test]
    fn staged_rows_hold_the_digits_of_their_inputs() {
        if !Isa::available().contains(&Isa::Avx2) {
            return;
        }
        let from: Vec<f32> = (0..104).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        for bits in [Bits::Four, Bits::Eight] {
            let mut to = vec![0.0_f32; 128];
            // SAFETY: the instructions are there; the row is long enough.
            unsafe { stage(&from, &mut to, bits, 64) };
            let (stride, row) = (to.len(), to.as_mut_ptr().cast::<u8>());
            let order: &[usize] =
                if bits == Bits::Four { &[0, 2, 4, 6, 1, 3, 5, 7] } else { &[0, 1, 2, 3] };
            for (group, part) in from.chunks(64).enumerate() {
                // SAFETY: the group is one of the row's.
                let inputs = unsafe {
                    row.add(LIMBS * stride).cast::<GroupInputs>().add(group).read_unaligned()
                };
                let mut sums = [0_i32; LIMBS];
                for (i, x) in part.iter().enumerate() {
                    let (word, place) = (i / order.len(), i % order.len());
                    let at = order.iter().position(|o| *o == place).expect("each has a place");
                    let start = LIMBS * (64 * group + word * order.len()) + at;
                    let limb = |l: usize| {
                        // SAFETY: inside the row.
                        unsafe { row.add(start + l * order.len()).cast::<i8>().read() }
                    };
                    let digits: [i32; LIMBS] = std::array::from_fn(|l| i32::from(limb(l)));
                    sums.iter_mut().zip(digits).for_each(|(sum, digit)| *sum += digit);
                    let whole = digits[0] + 256 * digits[1] + 65536 * digits[2];
                    assert_eq!(whole, (x / inputs.unit).round_ties_even() as i32, "{bits:?} {i}");
                }
                assert_eq!(inputs.sums, sums, "{bits:?} group {group}");
            }
        }
    }
}
