//! Row-wise work around the matrix products: add + norm, staging of inputs, SwiGLU's product,
//! rotary embedding.

use std::marker::PhantomData;

use super::element::{Bf16, Element};
use super::simd::{Kernel, LANES, Simd, exp};

/// Sixteen elements at `at` of a slice, zeros past its end.
#[inline(always)]
unsafe fn load_part<S: Simd>(from: &[f32], at: usize) -> S::V {
    // SAFETY: a whole vector is loaded from the slice or from the padded copy.
    unsafe {
        if at + LANES <= from.len() {
            return S::load(from.as_ptr().add(at));
        }
        let mut padded = [0.0; LANES];
        padded[..from.len() - at].copy_from_slice(&from[at..]);
        S::load(padded.as_ptr())
    }
}

/// Stores the lanes that fit into `to` at `at`.
#[inline(always)]
unsafe fn store_part<S: Simd>(to: &mut [f32], at: usize, v: S::V) {
    // SAFETY: a whole vector is stored to the slice or to the padded copy.
    unsafe {
        if at + LANES <= to.len() {
            return S::store(to.as_mut_ptr().add(at), v);
        }
        let mut padded = [0.0; LANES];
        S::store(padded.as_mut_ptr(), v);
        let len = to.len() - at;
        to[at..].copy_from_slice(&padded[..len]);
    }
}

/// One row of `add_norm`: `residual += delta`, `out = residual * rsqrt(mean square + eps) * w`.
pub(super) struct AddNorm<'a> {
    pub(super) delta: Option<&'a [f32]>,
    pub(super) residual: &'a mut [f32],
    pub(super) weight: &'a [f32],
    pub(super) epsilon: f32,
    pub(super) out: &'a mut [f32],
}

impl Kernel for AddNorm<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = self.residual.len();
        // SAFETY: lane arithmetic on slices.
        unsafe {
            let mut squares = S::splat(0.0);
            for at in (0..len).step_by(LANES) {
                let mut x = load_part::<S>(self.residual, at);
                if let Some(delta) = self.delta {
                    x = S::add(x, load_part::<S>(delta, at));
                    store_part::<S>(self.residual, at, x);
                }
                squares = S::fma(x, x, squares);
            }
            let mean_square = S::sum(squares) / len as f32;
            let scale = S::splat(1.0 / (mean_square + self.epsilon).sqrt());
            for at in (0..len).step_by(LANES) {
                let x = S::mul(load_part::<S>(self.residual, at), scale);
                store_part::<S>(self.out, at, S::mul(x, load_part::<S>(self.weight, at)));
            }
        }
    }
}

/// One input row as bf16 bits; `to` is zero past the row's end.
pub(super) struct StageBf16<'a> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [u16],
}

impl Kernel for StageBf16<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for at in (0..self.from.len()).step_by(LANES) {
            let mut rounded = [0.0; LANES];
            // SAFETY: lane arithmetic on slices.
            unsafe {
                let v = S::round_bf16(load_part::<S>(self.from, at));
                S::store(rounded.as_mut_ptr(), v);
            }
            let len = LANES.min(self.to.len() - at);
            for (bits, x) in self.to[at..at + len].iter_mut().zip(&rounded) {
                *bits = Bf16::bits(*x);
            }
        }
    }
}

/// One input row rounded to `E`, as f32; `to` is zero past the row's end.
pub(super) struct StageF32<'a, E> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [f32],
    pub(super) element: PhantomData<E>,
}

impl<E: Element> Kernel for StageF32<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for at in (0..self.from.len()).step_by(LANES) {
            // SAFETY: lane arithmetic on slices.
            unsafe {
                let v = load_part::<S>(self.from, at);
                store_part::<S>(self.to, at, E::round::<S>(v));
            }
        }
    }
}

/// `out *= silu(gate)`, elementwise: SwiGLU's product, `out` holding the up projection.
pub(super) struct SiluMul<'a> {
    pub(super) gate: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for at in (0..self.out.len()).step_by(LANES) {
            // SAFETY: lane arithmetic on slices.
            unsafe {
                let gate = load_part::<S>(self.gate, at);
                let one = S::splat(1.0);
                let sigmoid_inverse = S::add(one, exp::<S>(S::sub(S::splat(0.0), gate)));
                let up = load_part::<S>(self.out, at);
                store_part::<S>(self.out, at, S::mul(up, S::div(gate, sigmoid_inverse)));
            }
        }
    }
}

/// Cosines and sines of half a head.
pub(super) type Angles<'a> = (&'a [f32], &'a [f32]);

/// One head: rotated by its angles (none: left as it is), scaled, rounded to `E`.
pub(super) struct RotateHead<'a, E> {
    pub(super) head: &'a mut [f32],
    pub(super) angles: Option<Angles<'a>>,
    pub(super) scale: f32,
    pub(super) element: PhantomData<E>,
}

impl<E: Element> Kernel for RotateHead<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if let Some((cos, sin)) = self.angles {
            let (first, second) = self.head.split_at_mut(cos.len());
            for at in (0..cos.len()).step_by(LANES) {
                // SAFETY: lane arithmetic on slices.
                unsafe {
                    let (c, s) = (load_part::<S>(cos, at), load_part::<S>(sin, at));
                    let (a, b) = (load_part::<S>(first, at), load_part::<S>(second, at));
                    let minus_b = S::sub(S::splat(0.0), b);
                    store_part::<S>(first, at, S::fma(minus_b, s, S::mul(a, c)));
                    store_part::<S>(second, at, S::fma(a, s, S::mul(b, c)));
                }
            }
        }
        for at in (0..self.head.len()).step_by(LANES) {
            // SAFETY: lane arithmetic on slices.
            unsafe {
                let scaled = S::mul(load_part::<S>(self.head, at), S::splat(self.scale));
                store_part::<S>(self.head, at, E::round::<S>(scaled));
            }
        }
    }
}
