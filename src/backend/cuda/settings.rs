//! What the backend is made for, decided when an engine is opened.

use super::packed::QuantLimits;
use super::step::StepLimits;
use crate::tensor::Dtype;

/// Head sizes that the attention kernels are made for.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// What the backend is made for, decided when an engine is opened.
#[derive(Debug, Clone, Copy)]
pub struct CudaSettings {
    /// Element type of weights, activations and cache: bf16 or f16.
    pub dtype: Dtype,
    /// Extents of the largest step.
    pub limits: StepLimits,
    /// Half the columns of the largest gate-and-up product on this rank.
    pub mlp_width: usize,
    /// Memory for all weights on the device; what does not fit in comes beside it.
    pub weight_bytes: u64,
    /// What quantised linears need; none where the model has none.
    pub quantised: Option<QuantLimits>,
    /// Keep the embedding table in host memory.
    pub host_embedding: bool,
    /// Time cuBLAS's algorithms and keep the fastest; else its first suggestions are taken.
    pub autotune: bool,
}
