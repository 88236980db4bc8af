//! Sixteen f32 lanes on any x86-64 (and a portable form for everything else), chosen at run time.
//!
//! A kernel is written once, generic over `Simd`; `run` compiles it for each instruction set and
//! picks by `Isa`. The lanes, the order of operations and the reduction tree are the same
//! everywhere; only fused multiply-add (absent in the portable form) rounds differently.

/// The instruction sets the fast backend knows, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain arrays; the compiler uses what the target's baseline has.
    Portable,
    /// AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// The same with dot products of bf16 and of bytes (AVX-512 BF16 and VNNI).
    Avx512Bf16,
}

impl Isa {
    /// Every instruction set this machine has, best last.
    pub fn available() -> Vec<Isa> {
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            let bf16 = avx512
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512vnni");
            let sets = [(avx2, Isa::Avx2), (avx512, Isa::Avx512), (bf16, Isa::Avx512Bf16)];
            found.extend(sets.iter().filter(|(has, _)| *has).map(|(_, isa)| *isa));
        }
        found
    }

    /// The best of this machine.
    pub fn best() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
        }
    }
}

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Sixteen f32 lanes. Every method needs the instruction set it is named after to be present, and
/// pointers to be valid for sixteen elements (any alignment).
pub(super) trait Simd: Copy + 'static {
    /// The vector.
    type V: Copy;
    /// Room for large register tiles (32 vector registers).
    const MANY_REGISTERS: bool;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn load_f16(from: *const u16) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Rounded to f16 and back.
    unsafe fn round_f16(v: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `2^v` for integers -126..=127.
    unsafe fn pow2(v: Self::V) -> Self::V;
    /// Rounded to bf16 (nearest, ties to even; NaN stays NaN) and back.
    unsafe fn round_bf16(v: Self::V) -> Self::V;
    /// Lane sum as the tree (i, i+8), (i, i+4), (i, i+2), (i, i+1).
    unsafe fn sum(v: Self::V) -> f32;
    unsafe fn max_lane(v: Self::V) -> f32;

    /// Sixteen words of packed codes.
    type W: Copy;

    unsafe fn load_words(from: *const u32) -> Self::W;
    /// The lowest four bits of each lane, less 8.
    unsafe fn low4(w: Self::W) -> Self::V;
    /// The lowest eight bits of each lane, less 128.
    unsafe fn low8(w: Self::W) -> Self::V;
    /// Each lane's bits moved down by `BITS`, 4 or 8.
    unsafe fn shift<const BITS: u32>(w: Self::W) -> Self::W;
}

/// 2^23: with this as its high half, a word's low bits are the fraction of a float, one a unit.
#[cfg(target_arch = "x86_64")]
const UNITS: i32 = 0x4b00_0000;

/// A piece of work generic over the instruction set.
pub(super) trait Kernel {
    /// Does the work. Must be `#[inline(always)]`, so that it is compiled for the caller's
    /// instruction set.
    unsafe fn run<S: Simd>(self);
}

/// Runs `kernel` compiled for `isa`.
///
/// # Safety
/// `isa` came from `Isa::available`, and the kernel's own pointers are valid.
pub(super) unsafe fn run<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        // SAFETY: the caller checked the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { x86::run_avx512(kernel) },
        // SAFETY: the caller checked the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        // SAFETY: the portable form needs nothing.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

/// Bytes that come from memory together.
pub(super) const CACHE_LINE: usize = 64;

/// Asks for the cache line of `at`; never faults, wherever that is.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in every x86-64, and a prefetch reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same, into the second-level cache.
#[inline(always)]
pub(super) fn prefetch_second<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in every x86-64, and a prefetch reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `e^x` with a relative error under 3e-7 for -87..=88; smaller x give about 1e-38, NaN gives NaN.
///
/// Range reduction x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 split in two so that n ln 2 is
/// exact), then the Taylor polynomial of degree 7: its remainder r^8/8! is below 6e-9.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: only lane arithmetic; the caller has the instruction set.
    unsafe {
        // NaN is in the second place of both, which is what comes out then.
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut poly = S::splat(1.0 / 5040.0);
        for coefficient in TAYLOR {
            poly = S::fma(poly, r, S::splat(coefficient));
        }
        S::mul(poly, S::pow2(n))
    }
}

/// Arrays of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Portable {
    #[inline(always)]
    fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
        std::array::from_fn(|i| f(a[i]))
    }

    #[inline(always)]
    fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }

    #[inline(always)]
    fn tree(v: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
        let a: [f32; 8] = std::array::from_fn(|i| f(v[i], v[i + 8]));
        let b: [f32; 4] = std::array::from_fn(|i| f(a[i], a[i + 4]));
        f(f(b[0], b[2]), f(b[1], b[3]))
    }
}

impl Simd for Portable {
    type V = [f32; 16];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        std::array::from_fn(|i| f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        std::array::from_fn(|i| half::f16::from_bits(bits[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn round_f16(v: Self::V) -> Self::V {
        Portable::map(v, |x| half::f16::from_f32_const(x).to_f32_const())
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        Portable::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        // Adding and taking away 1.5 * 2^23 leaves no fraction bits: exact for |x| < 2^22.
        const MAGIC: f32 = 12_582_912.0;
        Portable::map(v, |x| (x + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn pow2(v: Self::V) -> Self::V {
        Portable::map(v, |x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn round_bf16(v: Self::V) -> Self::V {
        Portable::map(v, |x| {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
            if x.is_nan() { f32::NAN } else { f32::from_bits(rounded) }
        })
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        Portable::tree(v, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        Portable::tree(v, |a, b| if a > b { a } else { b })
    }

    type W = [u32; 16];

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Self::W {
        // SAFETY: the caller's pointer is valid for sixteen words.
        unsafe { from.cast::<[u32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low4(w: Self::W) -> Self::V {
        std::array::from_fn(|i| (w[i] & 15) as f32 - 8.0)
    }
    #[inline(always)]
    unsafe fn low8(w: Self::W) -> Self::V {
        std::array::from_fn(|i| (w[i] & 255) as f32 - 128.0)
    }
    #[inline(always)]
    unsafe fn shift<const BITS: u32>(w: Self::W) -> Self::W {
        w.map(|word| word >> BITS)
    }
}

#[cfg(target_arch = "x86_64")]
#[path = "simd_x86.rs"]
pub(super) mod x86;
