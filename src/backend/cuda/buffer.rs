//! What the backend's ops work on: weights, vectors, activations and the KV cache, on the device.

use std::sync::Arc;

use super::memory::DeviceMemory;
pub use super::packed::PackedMatrix;
use super::upload::SharedPinned;
pub use crate::backend::BufferKind as Kind;
use crate::backend::KvSpec;
use crate::batch::PAGE_TOKENS;
use crate::tensor::Dtype;

/// A weight matrix `[rows, cols]` of bf16 or f16, row-major; or a table in pinned host memory.
pub struct DeviceMatrix {
    pub(super) storage: Storage,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A weight matrix as a backend of this kind keeps it.
pub enum Weight {
    /// Of 16-bit elements.
    Plain(DeviceMatrix),
    /// Of codes.
    Packed(PackedMatrix),
}

impl Weight {
    /// The matrix of 16-bit elements that this must be.
    #[expect(clippy::panic, reason = "whoever makes it knows what it is")]
    pub(super) fn plain(&self) -> &DeviceMatrix {
        match self {
            Weight::Plain(matrix) => matrix,
            Weight::Packed(_) => panic!("an embedding table of codes"),
        }
    }
}

/// A gate and an up matrix as one: `[2 * width, hidden]`, rows in blocks of 16, eight of the gate
/// and then the eight of up that go with them.
pub struct GateUp(pub(super) Weight);

/// Where a matrix is; kernels read both by address. While it is on its way there, others hold it too.
pub(super) enum Storage {
    Device(Arc<DeviceMemory>),
    Host { address: u64, _memory: SharedPinned },
}

impl DeviceMatrix {
    /// Where it begins, as the device sees it.
    pub(super) fn address(&self) -> u64 {
        match &self.storage {
            Storage::Device(memory) => memory.address(),
            Storage::Host { address, .. } => *address,
        }
    }
}

/// A vector `[len]` as f32, followed by the same in the weights' dtype (what cuBLAS wants of a
/// bias; exact, because vectors are stored in that dtype).
pub struct DeviceVector {
    pub(super) memory: DeviceMemory,
    pub(super) len: usize,
}

impl DeviceVector {
    /// The f32 elements.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// The elements in the weights' dtype, 16-byte aligned.
    pub(super) fn half_address(&self) -> u64 {
        self.address() + half_offset(self.len) as u64
    }
}

/// Bytes of a vector of `len`, both copies.
pub(super) fn vector_bytes(len: usize) -> usize {
    half_offset(len) + 2 * len
}

/// Bytes before the second copy of a vector of `len`.
pub(super) fn half_offset(len: usize) -> usize {
    (len * 4).next_multiple_of(16)
}

/// Activations `[rows, cols]`, row-major: f32 of kind `Stream`, the weights' dtype of kind
/// `Activation`.
pub struct DeviceBuffer {
    pub(super) memory: DeviceMemory,
    pub(super) kind: Kind,
    pub(super) max_rows: usize,
    pub(super) cols: usize,
    pub(super) rows: usize,
}

impl DeviceBuffer {
    /// Where row 0 begins.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Precision of the elements.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Type of the elements, where weights are of `dtype`.
    pub(super) fn element(&self, dtype: Dtype) -> Dtype {
        if self.kind == Kind::Stream { Dtype::F32 } else { dtype }
    }

    /// Sets the rows in use; their contents are whatever was there.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "more rows than the buffer holds");
        self.rows = rows;
    }
}

/// Keys and values of all layers: `[layer][page][K, V][kv head][token in page][head_dim]`.
pub struct DeviceKv {
    pub(super) memory: DeviceMemory,
    pub(super) spec: KvSpec,
}

/// Bytes of one layer of a cache of `spec`.
pub(super) fn kv_layer_bytes(spec: &KvSpec) -> usize {
    let page = 2 * spec.num_kv_heads * PAGE_TOKENS * spec.head_dim * spec.dtype.size_bytes();
    spec.num_pages * page
}

impl DeviceKv {
    /// Where layer `layer` begins.
    pub(super) fn layer(&self, layer: usize) -> u64 {
        assert!(layer < self.spec.num_layers, "no such layer");
        self.memory.address() + (layer * kv_layer_bytes(&self.spec)) as u64
    }
}
