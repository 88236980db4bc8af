//! The sixteen lanes of `simd` in AVX2 (two registers) and AVX-512 (one), by intrinsics.

use std::arch::x86_64::*;

use super::{Kernel, Simd, UNITS};

/// The body of a lane method: intrinsics, under the contract of `Simd`.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: the contract of `Simd`: the instruction set is present, pointers are valid.
        unsafe { $body }
    };
}

/// # Safety
/// AVX-512 F, BW, VL, DQ are present.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(in crate::backend::cpu::fast) unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: the caller checked the instruction set.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
/// AVX2, FMA and F16C are present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::backend::cpu::fast) unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: the caller checked the instruction set.
    unsafe { kernel.run::<Avx2>() }
}

/// Lane sum of eight as (i, i+4), (i, i+2), (i, i+1).
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    intrinsics!({
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    })
}

/// Lane maximum of eight.
#[inline(always)]
unsafe fn max8(v: __m256) -> f32 {
    intrinsics!({
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    })
}

/// One zmm register.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu::fast) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        intrinsics!(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        intrinsics!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        intrinsics!(_mm512_storeu_ps(to, v))
    }
    #[inline(always)]
    unsafe fn round_f16(v: __m512) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        intrinsics!(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(v))
    }
    #[inline(always)]
    unsafe fn pow2(v: __m512) -> __m512 {
        intrinsics!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    unsafe fn round_bf16(v: __m512) -> __m512 {
        intrinsics!({
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let kept = _mm512_and_si512(sum, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_mov_ps(_mm512_castsi512_ps(kept), nan, v)
        })
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        intrinsics!(sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))))
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        intrinsics!(max8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))))
    }

    type W = __m512i;

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m512i {
        intrinsics!(_mm512_loadu_si512(from.cast()))
    }
    /// A table of all sixteen values: the permutation looks at four bits of each index only.
    #[inline(always)]
    unsafe fn low4(w: __m512i) -> __m512 {
        intrinsics!({
            let low = _mm256_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0);
            let high = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0);
            let table = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            _mm512_permutexvar_ps(w, table)
        })
    }
    #[inline(always)]
    unsafe fn low8(w: __m512i) -> __m512 {
        intrinsics!({
            // (w & 255) | UNITS
            let (mask, units) = (_mm512_set1_epi32(255), _mm512_set1_epi32(UNITS));
            let above = _mm512_ternarylogic_epi32::<0xea>(w, mask, units);
            _mm512_sub_ps(_mm512_castsi512_ps(above), _mm512_set1_ps(8_388_608.0 + 128.0))
        })
    }
    #[inline(always)]
    unsafe fn shift<const BITS: u32>(w: __m512i) -> __m512i {
        intrinsics!(_mm512_srli_epi32::<BITS>(w))
    }
}

/// Two ymm registers.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu::fast) struct Avx2;

/// Applies an intrinsic to both halves.
macro_rules! halves {
    ($f:ident, $a:expr) => {
        ($f($a.0), $f($a.1))
    };
    ($f:ident, $a:expr, $b:expr) => {
        ($f($a.0, $b.0), $f($a.1, $b.1))
    };
}

#[inline(always)]
unsafe fn round_bf16_8(v: __m256) -> __m256 {
    intrinsics!({
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let kept = _mm256_and_si256(sum, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        _mm256_blendv_ps(_mm256_castsi256_ps(kept), v, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v))
    })
}

#[inline(always)]
unsafe fn pow2_8(v: __m256) -> __m256 {
    intrinsics!({
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
    })
}

#[inline(always)]
unsafe fn widen_bf16_8(from: *const u16) -> __m256 {
    intrinsics!({
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    })
}

/// The bits of each lane that `MASK` (a power of two less one) keeps, less half of their range.
#[inline(always)]
unsafe fn centred_8<const MASK: i32>(w: __m256i) -> __m256 {
    intrinsics!({
        let kept = _mm256_and_si256(w, _mm256_set1_epi32(MASK));
        let above = _mm256_castsi256_ps(_mm256_or_si256(kept, _mm256_set1_epi32(UNITS)));
        _mm256_sub_ps(above, _mm256_set1_ps((8_388_608 + (MASK + 1) / 2) as f32))
    })
}

#[inline(always)]
unsafe fn round_8(v: __m256) -> __m256 {
    intrinsics!(_mm256_round_ps::<_MM_FROUND_TO_NEAREST_INT>(v))
}

#[inline(always)]
unsafe fn round_f16_8(v: __m256) -> __m256 {
    intrinsics!(_mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)))
}

impl Simd for Avx2 {
    type V = (__m256, __m256);
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        intrinsics!((_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        intrinsics!((_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        intrinsics!((widen_bf16_8(from), widen_bf16_8(from.add(8))))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        intrinsics!({
            let bits = _mm256_loadu_si256(from.cast());
            let high = _mm256_extracti128_si256::<1>(bits);
            (_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(high))
        })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        intrinsics!({
            _mm256_storeu_ps(to, v.0);
            _mm256_storeu_ps(to.add(8), v.1);
        })
    }
    #[inline(always)]
    unsafe fn round_f16(v: Self::V) -> Self::V {
        intrinsics!(halves!(round_f16_8, v))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_add_ps, a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_sub_ps, a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_mul_ps, a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_div_ps, a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        intrinsics!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_max_ps, a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(halves!(_mm256_min_ps, a, b))
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        intrinsics!(halves!(round_8, v))
    }
    #[inline(always)]
    unsafe fn pow2(v: Self::V) -> Self::V {
        intrinsics!(halves!(pow2_8, v))
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        intrinsics!(halves!(round_bf16_8, v))
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        intrinsics!(sum8(_mm256_add_ps(v.0, v.1)))
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        intrinsics!(max8(_mm256_max_ps(v.0, v.1)))
    }

    type W = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Self::W {
        intrinsics!((_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())))
    }
    #[inline(always)]
    unsafe fn low4(w: Self::W) -> Self::V {
        intrinsics!((centred_8::<15>(w.0), centred_8::<15>(w.1)))
    }
    #[inline(always)]
    unsafe fn low8(w: Self::W) -> Self::V {
        intrinsics!((centred_8::<255>(w.0), centred_8::<255>(w.1)))
    }
    #[inline(always)]
    unsafe fn shift<const BITS: u32>(w: Self::W) -> Self::W {
        // The intrinsic's constant is signed.
        intrinsics!(match BITS {
            4 => (_mm256_srli_epi32::<4>(w.0), _mm256_srli_epi32::<4>(w.1)),
            _ => (_mm256_srli_epi32::<8>(w.0), _mm256_srli_epi32::<8>(w.1)),
        })
    }
}
