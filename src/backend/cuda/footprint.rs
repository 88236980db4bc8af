//! What an engine takes of a device's memory, told before it takes it.
//!
//! The sizes of buffers are known, and how CUDA rounds them; what code and recorded steps take are
//! constants. The context itself is counted nowhere: what is free is asked inside it.

use super::blas::WORKSPACE_BYTES;
use super::comm::Communicator;
use super::decode::DecodeAttention;
use super::driver::Device;
use super::graph::bucket;
use super::group::GroupShape;
use super::quant::Quant;
use super::sample::TokenSampler;
use super::step::StepInputs;
use super::{Cuda, CudaSettings};
use crate::tensor::Dtype;

const MIB: u64 = 1 << 20;
/// Allocations from this size on have pages of their own; smaller ones share them.
const LARGE_BYTES: u64 = MIB;
const PAGE_BYTES: u64 = 2 * MIB;
/// What small ones are rounded up to.
const GRAIN_BYTES: u64 = 512;

/// Our kernels (4 MiB on an H200), and cuBLAS's, which are loaded when they first run (next to nothing
/// there, for the few shapes of one model): with room for more shapes.
const CODE_BYTES: u64 = 32 * MIB;
/// One kernel of a recorded step, on the device.
const NODE_BYTES: u64 = 8 << 10;
/// Kernels of a recorded step: of each layer (also where four linears are quantised, each dequantised
/// before the product, or its input gathered, and where sums over ranks come between), and outside of
/// them.
const LAYER_NODES: u64 = 7;
const QUANTISED_NODES: u64 = 4;
const SUM_NODES: u64 = 2;
const OTHER_NODES: u64 = 8;

/// Device memory that a number of allocations take.
#[derive(Debug, Default, Clone, Copy)]
pub struct Footprint {
    large_bytes: u64,
    small_bytes: u64,
}

impl Footprint {
    /// `count` more allocations of `len_bytes` each.
    pub fn add(&mut self, count: usize, len_bytes: u64) {
        let (sum, grain) = match len_bytes >= LARGE_BYTES {
            true => (&mut self.large_bytes, PAGE_BYTES),
            false => (&mut self.small_bytes, GRAIN_BYTES),
        };
        let each = len_bytes.div_ceil(grain).saturating_mul(grain);
        *sum = sum.saturating_add(each.saturating_mul(count as u64));
    }

    /// A matrix `[rows, cols]` of `dtype`, `count` times.
    pub fn add_matrices(&mut self, count: usize, rows: usize, cols: usize, dtype: Dtype) {
        let elements = (rows as u64).saturating_mul(cols as u64);
        self.add(count, elements.saturating_mul(dtype.size_bytes() as u64));
    }

    /// Bytes taken from the device.
    pub fn num_bytes(&self) -> u64 {
        let shared = self.small_bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        self.large_bytes.saturating_add(shared)
    }
}

impl Cuda {
    /// Shared memory that a block must be able to have, for heads of `head_dim`.
    pub fn block_shared_bytes(head_dim: usize) -> usize {
        DecodeAttention::shared_bytes(head_dim)
    }

    /// Adds the device memory that `new` takes, or, in a group of this shape, a rank of it.
    pub fn add_workspace(
        taken: &mut Footprint,
        settings: &CudaSettings,
        device: &Device,
        group: Option<&GroupShape>,
    ) {
        let limits = &settings.limits;
        let angles = limits.max_tokens * limits.head_dim / 2 * 4;
        taken.add(2, angles as u64);
        taken.add(1, (limits.max_tokens * 2 * settings.mlp_width * 2) as u64);
        taken.add(1, WORKSPACE_BYTES as u64);
        let single = [
            StepInputs::device_bytes(limits),
            DecodeAttention::workspace_bytes(device.num_sms, limits.head_dim),
            TokenSampler::device_bytes(limits, device.num_sms),
        ];
        single.into_iter().for_each(|bytes| taken.add(1, bytes as u64));
        if let Some(quantised) = &settings.quantised {
            let shared = Quant::device_bytes(quantised, limits.max_tokens);
            shared.into_iter().for_each(|bytes| taken.add(1, bytes as u64));
        }
        if let Some(shape) = group {
            let shared = Communicator::device_bytes(shape, limits);
            shared.into_iter().for_each(|bytes| taken.add(1, bytes as u64));
        }
    }

    /// What CUDA takes beside allocations for a model of `num_layers`: code, and decode steps of as many
    /// sequences as `settings` say recorded; of each of `world` ranks.
    pub fn overhead_bytes(settings: &CudaSettings, num_layers: usize, world: usize) -> u64 {
        let mut sizes: Vec<usize> = (1..=settings.limits.max_sequences).map(bucket).collect();
        sizes.dedup();
        let quantised = settings.quantised.map_or(0, |_| QUANTISED_NODES);
        let sums = if world > 1 { SUM_NODES } else { 0 };
        let nodes = (LAYER_NODES + quantised + sums) * num_layers as u64 + OTHER_NODES;
        let graphs = (sizes.len() as u64).saturating_mul(nodes).saturating_mul(NODE_BYTES);
        CODE_BYTES.saturating_add(graphs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(sizes: &[(usize, u64)]) -> u64 {
        let mut taken = Footprint::default();
        sizes.iter().for_each(|(count, bytes)| taken.add(*count, *bytes));
        taken.num_bytes()
    }

    #[test]
    fn large_allocations_take_pages_and_small_ones_share_them() {
        assert_eq!(taken(&[]), 0);
        assert_eq!(taken(&[(1, 1)]), 2 * MIB);
        assert_eq!(taken(&[(4096, 1)]), 2 * MIB);
        assert_eq!(taken(&[(4097, 512)]), 4 * MIB);
        assert_eq!(taken(&[(3, MIB)]), 6 * MIB);
        assert_eq!(taken(&[(2, 2 * MIB), (1, 2 * MIB + 1), (5, 100)]), 10 * MIB);
        assert_eq!(taken(&[(usize::MAX, u64::MAX)]), u64::MAX, "it never wraps");
    }
}
