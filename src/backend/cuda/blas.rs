//! cuBLASLt's descriptions of a product, owned: operation, matrices, what an algorithm may do; and
//! its suggestions of algorithms.

use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// What NVIDIA recommends for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 64 << 20;

/// `CUBLAS_OP_T`, which the bindings of cuBLASLt leave out.
const TRANSPOSED: i32 = 1;

/// Most algorithms that are asked for.
const SUGGESTIONS: usize = 8;

/// How a product is computed: plain data, good for every handle of the same library.
pub(super) type Algorithm = sys::cublasLtMatmulAlgo_t;

/// The descriptors of one product.
pub(super) struct Product {
    pub(super) operation: Operation,
    pub(super) weight: Layout,
    pub(super) x: Layout,
    pub(super) out: Layout,
}

impl Product {
    /// cuBLAS's algorithms for it, its favourite first; at least one.
    ///
    /// Where one splits a sum over blocks, the parts are f32 in the workspace and are added up
    /// afterwards in a fixed order: parts in the output's 16 bits, or added up in the output, would
    /// be rounded again and again.
    pub(super) fn suggestions(&self, handle: sys::cublasLtHandle_t) -> Result<Vec<Algorithm>> {
        let preference = Preference::new()?;
        let mut found =
            [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; SUGGESTIONS];
        let mut count = 0;
        // SAFETY: all descriptors are alive; writes at most as many results as there is room for,
        // and their count.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.operation.0,
                self.weight.0,
                self.x.0,
                self.out.0,
                self.out.0,
                preference.0,
                SUGGESTIONS as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        };
        check(status, "choose an algorithm")?;
        // SAFETY: as many results as counted were written.
        let written = found[..count as usize].iter().map(|result| unsafe { result.assume_init() });
        let works = |result: &sys::cublasLtMatmulHeuristicResult_t| {
            result.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        let algorithms: Vec<Algorithm> = written.filter(works).map(|result| result.algo).collect();
        match algorithms.is_empty() {
            true => {
                Err(failure("choose an algorithm", cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))
            }
            false => Ok(algorithms),
        }
    }
}

/// `cublasLtMatmulDesc_t`, owned.
pub(super) struct Operation(pub(super) sys::cublasLtMatmulDesc_t);

impl Operation {
    /// First operand transposed, f32 accumulation; a bias of the output's dtype if given.
    pub(super) fn new(bias: Option<u64>) -> Result<Operation> {
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
pub(super) struct Layout(pub(super) sys::cublasLtMatrixLayout_t);

impl Layout {
    pub(super) fn new(dtype: sys::cudaDataType, rows: usize, cols: usize) -> Result<Layout> {
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
    /// What the algorithms here may do (see `Product::suggestions`).
    fn new() -> Result<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as IN_F32;
        let mut handle = null_mut();
        // SAFETY: writes one handle.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&mut handle) }, "prefer a workspace")?;
        let preference = Preference(handle);
        let workspace = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        preference.set(workspace, &WORKSPACE_BYTES)?;
        let schemes = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        preference.set(schemes, &(IN_F32 as u32))?;
        Ok(preference)
    }

    fn set<T>(&self, which: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: reads the bytes of `value`, whose type is the attribute's.
        let status = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(
                self.0,
                which,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check(status, "prefer a workspace")
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

pub(super) fn cuda_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

pub(super) fn check(status: cublasStatus_t, what: &'static str) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => Err(failure(what, status)),
    }
}

fn failure(what: &'static str, status: cublasStatus_t) -> Error {
    Error::Device { operation: what, code: status as i32, reason: format!("cuBLAS: {status:?}") }
}
