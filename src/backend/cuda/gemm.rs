//! Matrix products by cuBLASLt: `out = x W^T (+ bias)`, f32 accumulation.
//!
//! All is row-major here and column-major there, so cuBLAS sees W^T `[in, out]` transposed, times
//! x^T `[in, rows]`, giving out^T `[out, rows]`. The algorithm is asked for once per shape and kept,
//! so that the same step always runs the same code; the workspace is taken once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind};
use super::driver::{Context, Stream};
use super::memory::DeviceMemory;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;

/// `CUBLAS_OP_T`, which the bindings of cuBLASLt leave out.
const TRANSPOSED: i32 = 1;

/// Above this many rows, algorithms are chosen for multiples of it.
const ROWS_GRAIN: usize = 128;

/// Shape of a product, as far as its algorithm depends on it.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
struct Shape {
    out: usize,
    input: usize,
    rows: usize,
    kind: Kind,
    has_bias: bool,
}

/// A cuBLASLt handle with its workspace and the algorithms chosen so far.
pub(super) struct Gemm {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    dtype: Dtype,
    algorithms: HashMap<Shape, sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: the handle may be used from any thread, by one at a time.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Products of weights and activations of `dtype` (bf16 or f16).
    pub(super) fn new(context: &Arc<Context>, dtype: Dtype) -> Result<Gemm> {
        context.enter()?;
        let workspace = DeviceMemory::new(context, WORKSPACE_BYTES, "cuBLAS workspace")?;
        let mut handle = null_mut();
        // SAFETY: writes one handle, of the current context.
        check(unsafe { sys::cublasLtCreate(&mut handle) }, "start cuBLAS")?;
        let algorithms = HashMap::new();
        Ok(Gemm { context: Arc::clone(context), handle, workspace, dtype, algorithms })
    }

    /// Bytes of device memory it holds.
    pub(super) const fn workspace_bytes() -> usize {
        WORKSPACE_BYTES
    }

    /// `out = x W^T (+ bias)`: x `[rows, in]`, W `[out, in]`, bias `[out]`, out `[rows, out]` in
    /// its own kind. Queued on `stream`.
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
        let dtype = cuda_type(self.dtype);
        let out_type = match out.kind() {
            Kind::Stream => sys::cudaDataType::CUDA_R_32F,
            Kind::Activation => dtype,
        };
        let shape =
            Shape { out: weight.rows, input, rows, kind: out.kind(), has_bias: bias.is_some() };
        let product = Product {
            operation: Operation::new(bias.map(DeviceVector::half_address))?,
            weight: Layout::new(dtype, input, weight.rows)?,
            x: Layout::new(dtype, input, rows)?,
            out: Layout::new(out_type, weight.rows, rows)?,
        };
        let algorithm = self.algorithm(shape, &product.operation, (dtype, out_type))?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the layouts describe the buffers (asserted above); all of them outlive the
        // stream's work, which the backend waits for before it frees anything.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                product.operation.0,
                from_ref(&one).cast(),
                pointer(weight.address()),
                product.weight.0,
                pointer(x.address()),
                product.x.0,
                from_ref(&zero).cast(),
                pointer(out.address()),
                product.out.0,
                pointer(out.address()),
                product.out.0,
                &algorithm,
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                stream.raw().cast(),
            )
        };
        check(status, "multiply matrices")
    }

    /// The algorithm for `shape`: cuBLAS's first choice for the number of rows rounded up, so that it
    /// does not depend on what was asked for before.
    fn algorithm(
        &mut self,
        shape: Shape,
        operation: &Operation,
        (dtype, out_type): (sys::cudaDataType, sys::cudaDataType),
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let rows = match shape.rows {
            small if small <= ROWS_GRAIN => small,
            large => large.next_multiple_of(ROWS_GRAIN),
        };
        let key = Shape { rows, ..shape };
        if let Some(known) = self.algorithms.get(&key) {
            return Ok(*known);
        }
        let weight = Layout::new(dtype, shape.input, shape.out)?;
        let x = Layout::new(dtype, shape.input, rows)?;
        let out = Layout::new(out_type, shape.out, rows)?;
        let chosen = first_choice(self.handle, operation, (&weight, &x, &out))?;
        self.algorithms.insert(key, chosen);
        Ok(chosen)
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

/// The descriptors of one product.
struct Product {
    operation: Operation,
    weight: Layout,
    x: Layout,
    out: Layout,
}

/// What cuBLAS would take first.
fn first_choice(
    handle: sys::cublasLtHandle_t,
    operation: &Operation,
    (weight, x, out): (&Layout, &Layout, &Layout),
) -> Result<sys::cublasLtMatmulAlgo_t> {
    let preference = Preference::new(WORKSPACE_BYTES)?;
    let mut found = std::mem::MaybeUninit::uninit();
    let mut count = 0;
    // SAFETY: all descriptors are alive; writes at most one result and a count.
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            operation.0,
            weight.0,
            x.0,
            out.0,
            out.0,
            preference.0,
            1,
            found.as_mut_ptr(),
            &mut count,
        )
    };
    check(status, "choose an algorithm")?;
    if count == 0 {
        return Err(failure("choose an algorithm", cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
    }
    // SAFETY: one result was written.
    Ok(unsafe { found.assume_init() }.algo)
}

/// `cublasLtMatmulDesc_t`, owned.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    /// First operand transposed, f32 accumulation; a bias of the output's dtype if given.
    fn new(bias: Option<u64>) -> Result<Operation> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let mut handle = null_mut();
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: writes one handle.
        let status = unsafe {
            sys::cublasLtMatmulDescCreate(&mut handle, compute, sys::cudaDataType::CUDA_R_32F)
        };
        check(status, "describe a product")?;
        let operation = Operation(handle);
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(operation)
    }

    fn set<T>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: reads the bytes of `value`, whose type is the attribute's.
        let status = unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                self.0,
                which,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(status, "describe a product")
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// `cublasLtMatrixLayout_t`, owned: column-major `[rows, cols]` without gaps.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: sys::cudaDataType, rows: usize, cols: usize) -> Result<Layout> {
        let mut handle = null_mut();
        // SAFETY: writes one handle.
        let status = unsafe {
            sys::cublasLtMatrixLayoutCreate(
                &mut handle,
                dtype,
                rows as u64,
                cols as u64,
                rows as i64,
            )
        };
        check(status, "describe a matrix")?;
        Ok(Layout(handle))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// `cublasLtMatmulPreference_t`, owned.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: usize) -> Result<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut handle = null_mut();
        // SAFETY: writes one handle.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&mut handle) }, "prefer a workspace")?;
        let preference = Preference(handle);
        // SAFETY: reads one size.
        let status = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(
                handle,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                from_ref(&workspace_bytes).cast(),
                size_of::<usize>(),
            )
        };
        check(status, "prefer a workspace")?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

fn cuda_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

fn check(status: cublasStatus_t, what: &'static str) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(failure(what, status))
    }
}

fn failure(what: &'static str, status: cublasStatus_t) -> Error {
    Error::Device { operation: what, code: status as i32, reason: format!("cuBLAS: {status:?}") }
}
