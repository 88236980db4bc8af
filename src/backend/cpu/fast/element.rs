//! The three stored element types, as the fast kernels see them.

use half::f16;

use super::simd::Simd;

/// Plain numbers: every bit pattern is a value, zero bits are zero.
pub(super) trait Stored: Copy + Default + Send + Sync + 'static {}
impl Stored for u16 {}
impl Stored for f32 {}

/// A stored element type: how sixteen of them become f32 lanes, and back.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// The stored bits.
    type Bits: Stored;

    /// Sixteen elements as f32. `from` is valid for sixteen elements, any alignment.
    unsafe fn load<S: Simd>(from: *const Self::Bits) -> S::V;
    /// Rounded to this type and back.
    unsafe fn round<S: Simd>(v: S::V) -> S::V;
    /// The bits of an f32 that this type represents exactly.
    fn bits(exact: f32) -> Self::Bits;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(super) struct Bf16;
/// IEEE binary16.
#[derive(Clone, Copy)]
pub(super) struct F16;
/// IEEE binary32.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Element for Bf16 {
    type Bits = u16;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn round<S: Simd>(v: S::V) -> S::V {
        // SAFETY: lane arithmetic; the caller has the instruction set.
        unsafe { S::round_bf16(v) }
    }
    #[inline(always)]
    fn bits(exact: f32) -> u16 {
        (exact.to_bits() >> 16) as u16
    }
}

impl Element for F16 {
    type Bits = u16;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn round<S: Simd>(v: S::V) -> S::V {
        // SAFETY: lane arithmetic; the caller has the instruction set.
        unsafe { S::round_f16(v) }
    }
    #[inline(always)]
    fn bits(exact: f32) -> u16 {
        f16::from_f32(exact).to_bits()
    }
}

impl Element for F32 {
    type Bits = f32;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        // SAFETY: the caller's pointer is valid for sixteen elements.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn round<S: Simd>(v: S::V) -> S::V {
        v
    }
    #[inline(always)]
    fn bits(exact: f32) -> f32 {
        exact
    }
}
