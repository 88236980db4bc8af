//! A weight matrix of the fast backend: plain or quantised, always where the checkpoint left it.

use std::ops::Range;

use super::parts::Division;
use super::quantised::{FastQuant, UNIT, panel_outputs};
use super::simd::Isa;
use super::staging::Form;
use crate::quant::Groups;
use crate::tensor::{Dtype, HostTensor};

/// A weight matrix `[outputs, inputs]`.
pub enum FastMatrix {
    /// Elements of one dtype.
    Plain(HostTensor),
    /// Packed codes.
    Quantised(Box<FastQuant>),
}

impl FastMatrix {
    pub(super) fn outputs(&self) -> usize {
        match self {
            FastMatrix::Plain(weight) => weight.rows(),
            FastMatrix::Quantised(weight) => weight.tensor.outputs(),
        }
    }

    pub(super) fn inputs(&self) -> usize {
        match self {
            FastMatrix::Plain(weight) => weight.cols(),
            FastMatrix::Quantised(weight) => weight.tensor.inputs(),
        }
    }

    /// How its input is staged on `isa`.
    pub(super) fn form(&self, isa: Isa) -> Form {
        match self {
            FastMatrix::Plain(weight) => match weight.dtype() {
                Dtype::Bf16 if isa == Isa::Avx512Bf16 => Form::Bits,
                Dtype::Bf16 => Form::RoundedFloats,
                Dtype::F16 | Dtype::F32 => Form::Floats,
            },
            FastMatrix::Quantised(weight) => match weight.tensor.groups() {
                Groups::Runs(size) if weight.is_fixed => Form::Fixed(weight.tensor.bits(), *size),
                _ => Form::Floats,
            },
        }
    }

    /// How threads divide its outputs.
    pub(super) fn division(&self) -> Division {
        match self {
            FastMatrix::Plain(weight) => Division::of_rows(weight),
            FastMatrix::Quantised(weight) => {
                let panel = panel_outputs(&weight.tensor);
                Division { len: weight.tensor.outputs(), unit: UNIT, panel }
            }
        }
    }

    /// The words of output `col` and those behind it; nothing where there are none.
    pub(super) fn words(&self, col: usize) -> *const u32 {
        match self {
            FastMatrix::Plain(_) => std::ptr::null(),
            FastMatrix::Quantised(weight) => {
                weight.tensor.codes().bytes().as_ptr().cast::<u32>().wrapping_add(col)
            }
        }
    }

    /// The bytes that each thread reads first, as a range of what begins at the pointer.
    pub(super) fn first_bytes(
        &self,
        threads: usize,
    ) -> (*const u8, impl Fn(usize) -> Range<usize>) {
        let (bytes, row_bytes) = match self {
            FastMatrix::Plain(weight) => {
                (weight.bytes(), weight.cols() * weight.dtype().size_bytes())
            }
            // A row of words holds the outputs of all threads: nothing is each one's first.
            FastMatrix::Quantised(weight) => (weight.tensor.codes().bytes(), 0),
        };
        let share = self.division().share(threads) * row_bytes;
        let len = bytes.len();
        (bytes.as_ptr(), move |worker| (worker * share).min(len)..((worker + 1) * share).min(len))
    }
}
