//! The memory that weights lie in: one allocation for all that a model of the expected shape has, taken
//! when the backend is made. What is beyond that (a bias that only some checkpoints have) is allocated as
//! it comes.
//!
//! An allocation keeps the loading thread, and meanwhile nobody hands blocks back to the readers: one before
//! the load takes the place of some 560 in the midst of that of a quantised 72B.

use std::sync::Arc;

use super::buffer;
use super::driver::Context;
use super::memory::DeviceMemory;
use crate::error::Result;
use crate::tensor::Dtype;

/// Every weight begins on a multiple of this: what CUDA gives small allocations, too.
const ALIGN_BYTES: u64 = 512;
const PURPOSE: &str = "weights";

/// Bytes of weights side by side.
#[derive(Debug, Default, Clone, Copy)]
pub struct WeightBytes(u64);

impl WeightBytes {
    /// `count` more tensors of `len_bytes` each.
    pub fn add(&mut self, count: usize, len_bytes: u64) {
        let each = len_bytes.div_ceil(ALIGN_BYTES).saturating_mul(ALIGN_BYTES);
        self.0 = self.0.saturating_add(each.saturating_mul(count as u64));
    }

    /// A matrix `[rows, cols]` of `dtype`, `count` times.
    pub fn add_matrices(&mut self, count: usize, rows: usize, cols: usize, dtype: Dtype) {
        let elements = (rows as u64).saturating_mul(cols as u64);
        self.add(count, elements.saturating_mul(dtype.size_bytes() as u64));
    }

    /// A vector of `len`, as the backend keeps it, `count` times.
    pub fn add_vectors(&mut self, count: usize, len: usize) {
        self.add(count, buffer::vector_bytes(len) as u64);
    }

    /// All of them.
    pub fn num_bytes(&self) -> u64 {
        self.0
    }
}

/// Hands out memory for one weight after the other.
pub(super) struct WeightMemory {
    context: Arc<Context>,
    /// None where nothing is expected.
    slab: Option<DeviceMemory>,
    used: WeightBytes,
}

impl WeightMemory {
    /// Takes `num_bytes` at once.
    pub(super) fn new(context: &Arc<Context>, num_bytes: u64) -> Result<WeightMemory> {
        let len = usize::try_from(num_bytes).unwrap_or(usize::MAX);
        let slab = (len > 0).then(|| DeviceMemory::new(context, len, PURPOSE)).transpose()?;
        Ok(WeightMemory { context: Arc::clone(context), slab, used: WeightBytes::default() })
    }

    /// Memory for a weight of `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<DeviceMemory> {
        let start = self.used.num_bytes() as usize;
        let room = self.slab.as_ref().filter(|slab| start + len <= slab.len_bytes());
        let Some(slab) = room else { return DeviceMemory::new(&self.context, len, PURPOSE) };
        self.used.add(1, len as u64);
        Ok(slab.part(start..start + len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_side_by_side_and_aligned() {
        let mut bytes = WeightBytes::default();
        bytes.add(3, 1);
        assert_eq!(bytes.num_bytes(), 3 * 512);
        bytes.add_matrices(2, 16, 16, Dtype::F16);
        bytes.add_vectors(1, 3);
        assert_eq!(bytes.num_bytes(), 3 * 512 + 2 * 512 + 512);
        bytes.add(usize::MAX, u64::MAX);
        assert_eq!(bytes.num_bytes(), u64::MAX, "it never wraps");
    }
}
