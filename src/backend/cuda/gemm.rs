//! Matrix products by cuBLASLt: `out = x W^T (+ bias)`, f32 accumulation.
//!
//! All is row-major here and column-major there, so cuBLAS sees W^T `[in, out]` transposed, times
//! x^T `[in, rows]`, giving out^T `[out, rows]`. The workspace is taken once.
//!
//! The algorithm of a shape is chosen when the shape is first met, on the very buffers of that step:
//! cuBLAS's suggestions are timed (`tuning`), and the fastest is kept as long as the process lives, by
//! all engines on that device. What that means for the bits of a result:
//!
//! - Every algorithm here adds up in an order that does not depend on which block is ready first, and
//!   a shape keeps its algorithm: a request that runs alone gives the same bits each time, in every
//!   engine of the process with the same `autotune`.
//! - Two algorithms may add up in different orders. Where two are about equally fast, another process
//!   may choose otherwise, and its results may differ in their last bits. Without timing
//!   (`autotune` = false) cuBLAS's first suggestion is taken, which is the same wherever the library,
//!   the GPU and the shape are.
//! - The choice does not depend on where buffers lie or on how large they are.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::{Arc, LazyLock};

use cudarc::cublaslt::sys;
use parking_lot::Mutex;

use super::blas::{Algorithm, Layout, Operation, Product, WORKSPACE_BYTES, check, cuda_type};
use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind};
use super::driver::{Context, Stream};
use super::faults::{self, MULTIPLY};
use super::graph::Graph;
use super::memory::DeviceMemory;
use super::tuning::{Timer, Winner, contest};
use crate::error::Result;
use crate::tensor::Dtype;

/// Shape of a product, as far as its algorithm depends on it; `rows` as `bucket` has them.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
struct Shape {
    out: usize,
    input: usize,
    rows: usize,
    kind: Kind,
    has_bias: bool,
}

/// The numbers of rows for which algorithms are chosen: the next one up serves. Closer together where
/// a row more makes more of a difference.
fn bucket(rows: usize) -> usize {
    match rows {
        0..=16 => rows.next_power_of_two(),
        17..=128 => rows.next_multiple_of(16),
        129..=1024 => rows.next_multiple_of(128),
        _ => rows.next_multiple_of(256),
    }
}

/// The algorithm of a shape, and how it was found.
#[derive(Clone, Copy)]
struct Choice {
    algorithm: Algorithm,
    /// Which of cuBLAS's suggestions it is, and the times.
    winner: Winner,
}

/// Where and for which type and shape; true: by timing, if it could be.
type Key = (usize, Dtype, Shape, bool);

/// What this process has chosen.
static CHOSEN: LazyLock<Mutex<HashMap<Key, Choice>>> = LazyLock::new(Mutex::default);

/// A cuBLASLt handle with its workspace and the algorithms chosen so far.
pub(super) struct Gemm {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    dtype: Dtype,
    /// `None`: cuBLAS's first suggestions are taken as they are.
    timer: Option<Timer>,
    choices: HashMap<Shape, Choice>,
}

// SAFETY: the handle may be used from any thread, by one at a time.
unsafe impl Send for Gemm {}

/// A product and its buffers.
struct Call {
    product: Product,
    weight: u64,
    x: u64,
    out: u64,
}

impl Gemm {
    /// Products of weights and activations of `dtype` (bf16 or f16).
    pub(super) fn new(context: &Arc<Context>, dtype: Dtype, autotune: bool) -> Result<Gemm> {
        context.enter()?;
        let workspace = DeviceMemory::new(context, WORKSPACE_BYTES, "cuBLAS workspace")?;
        let timer = autotune.then(|| Timer::new(context)).transpose()?;
        let mut handle = null_mut();
        // SAFETY: writes one handle, of the current context.
        check(unsafe { sys::cublasLtCreate(&mut handle) }, "start cuBLAS")?;
        let context = Arc::clone(context);
        Ok(Gemm { context, handle, workspace, dtype, timer, choices: HashMap::new() })
    }

    /// `out = x W^T (+ bias)`: x `[rows, in]`, W `[out, in]`, bias `[out]`, out `[rows, out]` in
    /// its own kind. Queued on `stream`; where the shape is new and the stream is not recorded, it
    /// also waits for the stream.
    pub(super) fn linear(
        &mut self,
        stream: &Stream,
        x: &DeviceBuffer,
        weight: &DeviceMatrix,
        bias: Option<&DeviceVector>,
        out: &DeviceBuffer,
    ) -> Result<()> {
        let (rows, input) = (x.rows(), weight.cols);
        assert!(x.cols() == input && out.cols() == weight.rows && out.rows() == rows);
        assert!(x.kind() == Kind::Activation && bias.is_none_or(|b| b.len == weight.rows));
        if rows == 0 {
            return Ok(());
        }
        let bias = bias.map(DeviceVector::half_address);
        let shape =
            Shape { out: weight.rows, input, rows, kind: out.kind(), has_bias: bias.is_some() };
        let call = Call {
            product: self.product(shape, bias)?,
            weight: weight.address(),
            x: x.address(),
            out: out.address(),
        };
        let bucketed = Shape { rows: bucket(rows), ..shape };
        let algorithm = match self.choices.get(&bucketed) {
            Some(choice) => choice.algorithm,
            None => self.choose(stream, bucketed, bias, &call)?,
        };
        self.multiply(stream, &call, &algorithm)
    }

    fn product(&self, shape: Shape, bias: Option<u64>) -> Result<Product> {
        let dtype = cuda_type(self.dtype);
        let out_type = match shape.kind {
            Kind::Stream => sys::cudaDataType::CUDA_R_32F,
            Kind::Activation => dtype,
        };
        Ok(Product {
            operation: Operation::new(bias)?,
            weight: Layout::new(dtype, shape.input, shape.out)?,
            x: Layout::new(dtype, shape.input, shape.rows)?,
            out: Layout::new(out_type, shape.out, shape.rows)?,
        })
    }

    fn multiply(&self, stream: &Stream, call: &Call, algorithm: &Algorithm) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |address: u64| address as *mut c_void;
        let product = &call.product;
        if faults::is_due(MULTIPLY) {
            return check(sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED, MULTIPLY);
        }
        // SAFETY: the layouts describe the buffers (`linear` asserts it); all of them outlive the
        // stream's work, which the backend waits for before it frees anything.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                product.operation.0,
                from_ref(&one).cast(),
                pointer(call.weight),
                product.weight.0,
                pointer(call.x),
                product.x.0,
                from_ref(&zero).cast(),
                pointer(call.out),
                product.out.0,
                pointer(call.out),
                product.out.0,
                algorithm,
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        };
        check(status, MULTIPLY)
    }

    /// The algorithm for `shape`, from now on: the one this process has used before, or the fastest
    /// at `call`, a product of that shape or a little fewer rows. Nothing can be timed while the
    /// stream is recorded; the backend sees to it that shapes are met before.
    fn choose(
        &mut self,
        stream: &Stream,
        shape: Shape,
        bias: Option<u64>,
        call: &Call,
    ) -> Result<Algorithm> {
        let key = (self.context.device.index, self.dtype, shape, self.timer.is_some());
        let is_recorded = Graph::is_recording(stream)?;
        if !is_recorded {
            // The driver loads an algorithm's code when it is first launched, for which it may wait for
            // all work of the context. That should hold no kernel that waits for another device: its
            // thread may have code to load, too, and nothing says that two threads can at once.
            stream.wait()?;
        }
        let known = CHOSEN.lock().get(&key).copied();
        let choice = match known {
            Some(choice) => choice,
            None => {
                let timer = self.timer.as_ref().filter(|_| !is_recorded);
                let found = self.find(stream, timer, &self.product(shape, bias)?, call)?;
                // Another engine may have found one meanwhile: all use the same.
                *CHOSEN.lock().entry(key).or_insert(found)
            }
        };
        self.choices.insert(shape, choice);
        Ok(choice.algorithm)
    }

    /// `call`'s algorithm by `timer`, or cuBLAS's first suggestion without one.
    fn find(
        &self,
        stream: &Stream,
        timer: Option<&Timer>,
        product: &Product,
        call: &Call,
    ) -> Result<Choice> {
        let suggestions = product.suggestions(self.handle)?;
        let winner = match timer {
            None => Winner { way: 0, times_us: None },
            Some(timer) => contest(suggestions.len(), |way| {
                let work = || self.multiply(stream, call, &suggestions[way]);
                timer.time_us(stream, &self.workspace, work)
            })?,
        };
        Ok(Choice { algorithm: suggestions[winner.way], winner })
    }

    /// A line for each product met so far: its shape and how its algorithm was found.
    pub(super) fn report(&self) -> Vec<String> {
        let line = |(shape, choice): (&Shape, &Choice)| {
            let Shape { out, input, rows, kind, has_bias } = shape;
            let bias = if *has_bias { " + bias" } else { "" };
            let what = format!("{rows} x {input} -> {out}{bias} as {kind:?}");
            match choice.winner {
                Winner { way, times_us: Some((first, best)) } => {
                    format!("{what}: suggestion {way}, {best:.1} us; the first takes {first:.1} us")
                }
                Winner { way, .. } => format!("{what}: suggestion {way}, not timed"),
            }
        };
        let mut lines: Vec<String> = self.choices.iter().map(line).collect();
        lines.sort();
        lines
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn a_bucket_holds_its_rows_and_is_its_own() {
        for rows in 1..10_000 {
            let size = bucket(rows);
            assert!(size >= rows && bucket(size) == size, "{rows} rows in {size}");
            assert!(bucket(rows) <= bucket(rows + 1), "{rows}");
            assert!(size < 2 * rows, "{rows} rows in {size}");
        }
    }
}
