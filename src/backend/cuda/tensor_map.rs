//! Tensor maps: how the copy engine of Hopper finds the boxes of a matrix in memory.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys::{
    self, CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as Swizzle,
};

use super::driver::check;
use crate::error::Result;
use crate::tensor::Dtype;

/// A row-major matrix of 16-bit elements without gaps, as the copy engine sees it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct MatrixMap(sys::CUtensorMap);

impl MatrixMap {
    /// The matrix `[rows, cols]` at `address`, read in boxes of `box_rows` rows and 64 columns, whose
    /// 128-byte rows arrive in shared memory with their 16-byte parts permuted (128-byte swizzle).
    pub(super) fn new(
        address: u64,
        dtype: Dtype,
        (rows, cols): (usize, usize),
        box_rows: usize,
    ) -> Result<MatrixMap> {
        let element = match dtype {
            Dtype::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            _ => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let extents = [cols as u64, rows as u64];
        let stride = [2 * cols as u64];
        let (box_extents, step) = ([64, box_rows as u32], [1, 1]);
        let mut map = MaybeUninit::uninit();
        // SAFETY: reads arrays of two dimensions (one stride), writes one map; looks at no device
        // memory.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                element,
                2,
                address as *mut c_void,
                extents.as_ptr(),
                stride.as_ptr(),
                box_extents.as_ptr(),
                step.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, "describe a matrix to the copy engine")?;
        // SAFETY: written by the successful call.
        Ok(MatrixMap(unsafe { map.assume_init() }))
    }

    /// The map as a kernel's argument.
    pub(super) fn argument(&self) -> *mut c_void {
        std::ptr::from_ref(&self.0).cast_mut().cast()
    }
}
