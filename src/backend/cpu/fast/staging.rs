//! Inputs of matrix products, prepared once for all threads (rounded to the weights' precision and
//! padded to whole vector steps), and the products themselves, divided over the threads.

use std::marker::PhantomData;
use std::ops::Range;

use super::element::{Bf16, Element, F16, F32};
use super::linear::{Product, WidenColumns};
use super::matrix::FastMatrix;
use super::parts::Parts;
use super::pool::Pool;
use super::quantised::QuantColumns;
use super::rows::{SiluMul, StageBf16, StageF32};
use super::simd::{self, Isa};
use crate::backend::cpu::{HostBuffer, zeroed};
use crate::error::Result;
use crate::quant::Bits;
use crate::tensor::{Dtype, HostTensor};

/// Staged rows are padded to this many elements: the longest vector step.
const STEP_PADDING: usize = 32;

/// Rows of a matrix in memory, handed to threads that each touch different rows (or columns).
pub(super) struct Rows<T> {
    data: *mut T,
    len: usize,
    stride: usize,
}

// SAFETY: `row` is unsafe and leaves it to the caller that no two threads touch one element.
unsafe impl<T> Sync for Rows<T> {}

impl Rows<f32> {
    /// The rows of an activation buffer.
    pub(super) fn of(buffer: &mut HostBuffer) -> Rows<f32> {
        let stride = buffer.cols();
        Rows::new(buffer.data_mut(), stride)
    }
}

impl<T> Rows<T> {
    fn new(data: &mut [T], stride: usize) -> Rows<T> {
        Rows { data: data.as_mut_ptr(), len: data.len(), stride }
    }

    /// Elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The first element.
    pub(super) fn start(&self) -> *mut T {
        self.data
    }

    /// Columns `cols` of row `index`.
    ///
    /// # Safety
    /// As `row`; only these columns count as used.
    #[expect(clippy::mut_from_ref, reason = "parts are handed out once by the caller's word")]
    pub(super) unsafe fn part(&self, index: usize, cols: Range<usize>) -> &mut [T] {
        assert!((index + 1) * self.stride <= self.len && cols.end <= self.stride, "outside");
        // SAFETY: the part is inside the matrix.
        unsafe {
            let start = self.data.add(index * self.stride + cols.start);
            std::slice::from_raw_parts_mut(start, cols.len())
        }
    }

    /// Row `index`.
    ///
    /// # Safety
    /// The matrix outlives the result, and nobody else touches the elements that are used.
    #[expect(clippy::mut_from_ref, reason = "rows are handed out once by the caller's word")]
    pub(super) unsafe fn row(&self, index: usize) -> &mut [T] {
        assert!((index + 1) * self.stride <= self.len, "row outside the matrix");
        // SAFETY: the row is inside the matrix.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index * self.stride), self.stride) }
    }
}

/// What form the staged input has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// bf16 bits, for vdpbf16ps.
    Bits,
    /// f32.
    Floats,
    /// f32, rounded to bf16.
    RoundedFloats,
    /// Fixed point, for codes of these bits in groups of this size (`fixed`).
    Fixed(Bits, usize),
}

/// Scratch for the staged input and for the gate projection. Sized when buffers are made, so that
/// a step allocates nothing.
pub(super) struct Staging {
    bits: Vec<u16>,
    floats: Vec<f32>,
    gate: Vec<f32>,
    form: Form,
    isa: Isa,
    rows: usize,
    stride: usize,
}

impl Default for Staging {
    fn default() -> Staging {
        Staging {
            bits: Vec::new(),
            floats: Vec::new(),
            gate: Vec::new(),
            form: Form::Floats,
            isa: Isa::Portable,
            rows: 0,
            stride: 0,
        }
    }
}

/// One row in f32 or fixed point.
///
/// # Safety
/// The instruction set of `form` and `isa` is present.
unsafe fn stage_floats(form: Form, isa: Isa, from: &[f32], to: &mut [f32]) {
    // SAFETY: passed on; rows are padded to the longest step.
    unsafe {
        match form {
            #[cfg(target_arch = "x86_64")]
            Form::Fixed(bits, size) => super::fixed::stage(from, to, bits, size),
            Form::RoundedFloats => {
                to[from.len()..].fill(0.0);
                simd::run(isa, StageF32 { from, to, element: PhantomData::<Bf16> });
            }
            _ => {
                to[from.len()..].fill(0.0);
                simd::run(isa, StageF32 { from, to, element: PhantomData::<F32> });
            }
        }
    }
}

impl Staging {
    /// Makes room for inputs (and gate projections) of `max_rows` rows of `cols`.
    pub(super) fn reserve(&mut self, max_rows: usize, cols: usize) -> Result<()> {
        let len = max_rows * cols.next_multiple_of(STEP_PADDING);
        if len > self.floats.len() {
            self.bits = zeroed(len, "staged activations")?;
            self.floats = zeroed(len, "staged activations")?;
            self.gate = zeroed(len, "gate projection")?;
        }
        Ok(())
    }

    /// Stages `x` for products with `weight`.
    pub(super) fn stage(&mut self, pool: &Pool, isa: Isa, x: &HostBuffer, weight: &FastMatrix) {
        let stride = x.cols().next_multiple_of(STEP_PADDING);
        (self.rows, self.stride, self.isa) = (x.rows(), stride, isa);
        let form = weight.form(isa);
        self.form = form;
        let bits = Rows::new(&mut self.bits, stride);
        let floats = Rows::new(&mut self.floats, stride);
        super::for_rows(pool, x.rows(), &|range| {
            for row in range {
                let from = x.row(row);
                // SAFETY: each row is visited by one thread; the instruction set is present.
                unsafe {
                    if form == Form::Bits {
                        let to = bits.row(row);
                        to[from.len()..].fill(0);
                        simd::run(isa, StageBf16 { from, to });
                    } else {
                        stage_floats(form, isa, from, floats.row(row));
                    }
                }
            }
        });
    }

    /// `out = staged W^T + bias`.
    pub(super) fn linear(
        &self,
        pool: &Pool,
        weight: &FastMatrix,
        bias: Option<&[f32]>,
        out: &mut HostBuffer,
    ) {
        assert_eq!(out.cols(), weight.outputs(), "linear: output columns");
        assert!(bias.is_none_or(|bias| bias.len() == weight.outputs()), "linear: bias");
        let out = Rows::of(out);
        let parts = Parts::new(pool, weight.division(), self.rows);
        pool.run(&|worker| {
            while let Some(cols) = parts.take(worker) {
                // SAFETY: threads have disjoint columns.
                unsafe {
                    let then = weight.words(cols.end);
                    self.columns(weight, bias, out.start(), (cols, then));
                }
            }
        });
    }

    /// `out = (staged up^T) * silu(staged gate^T)`, panel by panel, while a panel's gate
    /// projection is still in cache.
    pub(super) fn swiglu(
        &mut self,
        pool: &Pool,
        gate: &FastMatrix,
        up: &FastMatrix,
        out: &mut HostBuffer,
    ) {
        let width = gate.outputs();
        assert_eq!((out.cols(), up.outputs()), (width, width), "swiglu: widths");
        assert_eq!(up.form(self.isa), self.form, "swiglu: the input is staged for one form");
        assert!(self.rows * width <= self.gate.len(), "swiglu: the buffers are another backend's");
        let scratch = Rows::new(&mut self.gate, width);
        let out = Rows::of(out);
        let this = &*self;
        let parts = Parts::new(pool, gate.division(), self.rows);
        pool.run(&|worker| {
            while let Some(cols) = parts.take(worker) {
                // SAFETY: threads have disjoint columns; the instruction set is present.
                unsafe {
                    let (same, behind) = (up.words(cols.start), gate.words(cols.end));
                    this.columns(gate, None, scratch.start(), (cols.clone(), same));
                    this.columns(up, None, out.start(), (cols.clone(), behind));
                    for row in 0..this.rows {
                        let gate = scratch.part(row, cols.clone());
                        let out = out.part(row, cols.clone());
                        simd::run(this.isa, SiluMul { gate, out });
                    }
                }
            }
        });
    }

    /// Output columns `cols` of the staged input times `weight`, for all rows; `then` is read next.
    ///
    /// # Safety
    /// `out` is valid for `[rows, weight rows]` and no other thread touches these columns.
    unsafe fn columns(
        &self,
        weight: &FastMatrix,
        bias: Option<&[f32]>,
        out: *mut f32,
        (cols, then): (Range<usize>, *const u32),
    ) {
        assert!(self.stride >= weight.inputs() && cols.end <= weight.outputs(), "linear: shapes");
        let weight = match weight {
            FastMatrix::Plain(weight) => weight,
            FastMatrix::Quantised(weight) => {
                let (x, x_stride, rows) = (self.floats.as_ptr(), self.stride, self.rows);
                let kernel = QuantColumns { x, x_stride, rows, weight, bias, out, cols, then };
                // SAFETY: passed on; the input has the form that `stage` chose.
                return unsafe { self.quantised(kernel) };
            }
        };
        // SAFETY: passed on; the staged input has the form that `stage` chose.
        unsafe {
            match (self.form, weight.dtype()) {
                #[cfg(target_arch = "x86_64")]
                (Form::Bits, Dtype::Bf16) => {
                    let product = self.product(self.bits.as_ptr(), weight, bias, out);
                    super::linear::bf16::columns(&product, cols);
                }
                (_, Dtype::Bf16) => self.widen::<Bf16>(weight, bias, out, cols),
                (_, Dtype::F16) => self.widen::<F16>(weight, bias, out, cols),
                (_, Dtype::F32) => self.widen::<F32>(weight, bias, out, cols),
            }
        }
    }

    /// `columns` for quantised weights.
    ///
    /// # Safety
    /// As `columns`.
    unsafe fn quantised(&self, kernel: QuantColumns<'_>) {
        // SAFETY: passed on; the form is chosen where the instruction set is present.
        unsafe {
            match self.form {
                #[cfg(target_arch = "x86_64")]
                Form::Fixed(..) if self.isa == Isa::Avx2 => super::fixed_avx2::columns(&kernel),
                #[cfg(target_arch = "x86_64")]
                Form::Fixed(..) => super::fixed::columns(&kernel),
                _ => simd::run(self.isa, kernel),
            }
        }
    }

    /// `columns` for a staged input in f32.
    ///
    /// # Safety
    /// As `columns`.
    unsafe fn widen<E: Element>(
        &self,
        weight: &HostTensor,
        bias: Option<&[f32]>,
        out: *mut f32,
        cols: Range<usize>,
    ) {
        let product = self.product(self.floats.as_ptr(), weight, bias, out);
        // SAFETY: passed on.
        unsafe { simd::run(self.isa, WidenColumns::<E> { product: &product, cols }) }
    }

    fn product<X, W>(
        &self,
        x: *const X,
        weight: &HostTensor,
        bias: Option<&[f32]>,
        out: *mut f32,
    ) -> Product<X, W> {
        Product {
            x,
            x_stride: self.stride,
            rows: self.rows,
            w: weight.bytes().as_ptr().cast(),
            k: weight.cols(),
            bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            out,
            n: weight.rows(),
        }
    }
}
