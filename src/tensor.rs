//! A tensor in host memory: element type, shape and shared bytes. No arithmetic.
//!
//! The checkpoint makes these (most are windows into a memory map, none copies more than it
//! must), the model hands them to a backend, the backend keeps or uploads them.

use std::ops::Range;
use std::sync::Arc;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: 8 exponent bits, 8 significant bits.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// The name used in option values and reports.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
        }
    }
}

/// Owner of tensor bytes: a memory map or a heap block.
pub type ByteOwner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A row-major matrix `[rows, cols]` (a vector `[n]` is `[n, 1]`), little-endian, with no promise about
/// the alignment of its first byte.
#[derive(Clone)]
pub struct HostTensor {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    owner: ByteOwner,
    range: Range<usize>,
}

impl HostTensor {
    /// A window of `owner`. Panics when `range` is outside the owner or is not exactly
    /// `rows * cols` elements long: callers have checked the file before.
    pub fn new(
        dtype: Dtype,
        rows: usize,
        cols: usize,
        owner: ByteOwner,
        range: Range<usize>,
    ) -> HostTensor {
        assert!(range.end <= (*owner).as_ref().len(), "tensor window outside its owner");
        assert_eq!(range.len(), rows * cols * dtype.size_bytes(), "tensor window has a wrong size");
        HostTensor { dtype, rows, cols, owner, range }
    }

    /// A tensor that owns its bytes.
    pub fn from_vec(dtype: Dtype, rows: usize, cols: usize, bytes: Vec<u8>) -> HostTensor {
        let range = 0..bytes.len();
        HostTensor::new(dtype, rows, cols, Arc::new(bytes), range)
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements' bytes, row after row.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// All elements as f32, in order (exact for every dtype).
    pub fn to_f32(&self) -> Vec<f32> {
        decode_f32(self.dtype, self.bytes())
    }
}

/// Little-endian elements of `dtype` as f32.
pub fn decode_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::Bf16 => pairs().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        Dtype::F16 => pairs().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    }
}
