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

/// A row-major matrix `[rows, cols]` of 32-bit words, little-endian, with no promise about the
/// alignment of its first byte: packed codes and indices.
#[derive(Clone)]
pub struct HostWords {
    rows: usize,
    cols: usize,
    owner: ByteOwner,
    range: Range<usize>,
}

impl HostWords {
    /// A window of `owner`. Panics as `HostTensor::new` does.
    pub fn new(rows: usize, cols: usize, owner: ByteOwner, range: Range<usize>) -> HostWords {
        assert!(range.end <= (*owner).as_ref().len(), "window of words outside its owner");
        assert_eq!(range.len(), rows * cols * 4, "window of words has a wrong size");
        HostWords { rows, cols, owner, range }
    }

    /// Words that own their bytes.
    pub fn from_vec(rows: usize, cols: usize, bytes: Vec<u8>) -> HostWords {
        let range = 0..bytes.len();
        HostWords::new(rows, cols, Arc::new(bytes), range)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The words' bytes, row after row.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    /// The word at (`row`, `col`).
    pub fn get(&self, row: usize, col: usize) -> u32 {
        let at = (row * self.cols + col) * 4;
        let bytes = &self.bytes()[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Rows `rows` of it, in place.
    pub fn rows_of(&self, rows: Range<usize>) -> HostWords {
        let (row_bytes, first) = (self.cols * 4, self.range.start);
        let range = first + rows.start * row_bytes..first + rows.end * row_bytes;
        HostWords::new(rows.len(), self.cols, self.owner.clone(), range)
    }

    /// All words in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let words = self.bytes().chunks_exact(4);
        words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
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
