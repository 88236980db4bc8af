//! A tensor in host memory: element type, shape and shared bytes. No arithmetic.
//!
//! The checkpoint makes these (most are windows into a memory map, none copies more than it
//! must), the model hands them to a backend, the backend keeps or uploads them.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
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

/// What tensor bytes are windows of: a memory map or a heap block.
pub trait Bytes: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// The file that is mapped here whole, from its first byte on; none where they are a copy.
    fn file(&self) -> Option<&StoredFile> {
        None
    }
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// An open file, its name, and what tells whether the name still means the same file.
#[derive(Debug)]
pub struct StoredFile {
    /// Where it was when it was opened.
    pub path: PathBuf,
    /// It itself, open: reading it fails where a map of it would end the process.
    pub file: File,
    /// Its device and its number there, as the system counts them.
    pub identity: (u64, u64),
}

/// Owner of tensor bytes.
pub type ByteOwner = Arc<dyn Bytes>;

/// Some bytes of an owner: together, or cut out of it in several pieces, one after the other.
#[derive(Clone)]
pub struct Span {
    owner: ByteOwner,
    /// The pieces, if there are several.
    pieces: Option<Arc<[Range<usize>]>>,
    /// Of the owner; where there are pieces, of these laid end to end.
    range: Range<usize>,
}

impl Span {
    /// Bytes `range` of `owner`. Panics when that has fewer.
    pub fn new(owner: ByteOwner, range: Range<usize>) -> Span {
        assert!(range.start <= range.end && range.end <= owner.bytes().len(), "outside its owner");
        Span { owner, pieces: None, range }
    }

    /// Bytes `pieces` of `owner`, in this order. Panics when that has fewer.
    pub fn of_pieces(owner: ByteOwner, pieces: impl Iterator<Item = Range<usize>>) -> Span {
        let mut joined: Vec<Range<usize>> = Vec::new();
        for piece in pieces {
            assert!(piece.start <= piece.end && piece.end <= owner.bytes().len(), "outside");
            match joined.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => joined.push(piece),
            }
        }
        match &joined[..] {
            [] => Span::new(owner, 0..0),
            [one] => Span::new(owner, one.clone()),
            _ => {
                let range = 0..joined.iter().map(Range::len).sum();
                Span { owner, pieces: Some(joined.into()), range }
            }
        }
    }

    /// The bytes. Panics where they are in pieces: whoever wants them so has them joined before.
    pub fn bytes(&self) -> &[u8] {
        assert!(!self.is_cut(), "bytes that do not lie together");
        &self.owner.bytes()[self.range.clone()]
    }

    /// Are they in pieces?
    pub fn is_cut(&self) -> bool {
        self.pieces.is_some()
    }

    /// Which bytes of the owner they are, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let Range { start, end } = self.range;
        let whole = std::slice::from_ref(&self.range);
        let (pieces, mut at) = match &self.pieces {
            Some(pieces) => (&pieces[..], 0),
            None => (whole, start),
        };
        let inside = pieces.iter().map(move |piece| {
            // `at` is where the piece begins in the row of all of them.
            let from = start.clamp(at, at + piece.len()) - at;
            let to = end.clamp(at, at + piece.len()) - at;
            at += piece.len();
            piece.start + from..piece.start + to
        });
        inside.filter(|range| !range.is_empty())
    }

    /// Whose bytes they are.
    pub fn owner(&self) -> &ByteOwner {
        &self.owner
    }

    /// How many.
    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// Bytes `range` of these.
    pub fn part(&self, range: Range<usize>) -> Span {
        assert!(range.start <= range.end && range.end <= self.range.len(), "outside the span");
        let start = self.range.start;
        Span { range: start + range.start..start + range.end, ..self.clone() }
    }

    /// The file they are mapped from, and the first one's offset in it.
    pub fn stored(&self) -> Option<(&StoredFile, usize)> {
        self.owner.file().map(|file| (file, self.range.start))
    }
}

/// A row-major matrix `[rows, cols]` (a vector `[n]` is `[n, 1]`), little-endian, with no promise about
/// the alignment of its first byte.
#[derive(Clone)]
pub struct HostTensor {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    span: Span,
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
        HostTensor::of_span(dtype, rows, cols, Span::new(owner, range))
    }

    /// A tensor of these bytes, which may be in pieces. Panics as `new` does.
    pub fn of_span(dtype: Dtype, rows: usize, cols: usize, span: Span) -> HostTensor {
        let len = rows * cols * dtype.size_bytes();
        assert_eq!(span.num_bytes(), len, "tensor window has a wrong size");
        HostTensor { dtype, rows, cols, span }
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
        self.span.bytes()
    }

    /// Where these bytes are.
    pub fn span(&self) -> &Span {
        &self.span
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
    span: Span,
}

impl HostWords {
    /// A window of `owner`. Panics as `HostTensor::new` does.
    pub fn new(rows: usize, cols: usize, owner: ByteOwner, range: Range<usize>) -> HostWords {
        HostWords::of_span(rows, cols, Span::new(owner, range))
    }

    /// Words of these bytes, which may be in pieces. Panics as `new` does.
    pub fn of_span(rows: usize, cols: usize, span: Span) -> HostWords {
        assert_eq!(span.num_bytes(), rows * cols * 4, "window of words has a wrong size");
        HostWords { rows, cols, span }
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
        self.span.bytes()
    }

    /// Where these bytes are.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The word at (`row`, `col`).
    pub fn get(&self, row: usize, col: usize) -> u32 {
        let at = (row * self.cols + col) * 4;
        let bytes = &self.bytes()[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Rows `rows` of it, in place.
    pub fn rows_of(&self, rows: Range<usize>) -> HostWords {
        let row_bytes = self.cols * 4;
        let span = self.span.part(rows.start * row_bytes..rows.end * row_bytes);
        HostWords { rows: rows.len(), cols: self.cols, span }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_row_of_bytes() {
        let owner: ByteOwner = Arc::new((0..100).collect::<Vec<u8>>());
        let pieces = [3..10, 10..12, 50..50, 40..45, 0..3, 99..100];
        let want: Vec<u8> = pieces.iter().cloned().flatten().map(|at| at as u8).collect();
        let span = Span::of_pieces(owner.clone(), pieces.into_iter());
        assert!(span.is_cut() && span.num_bytes() == want.len());
        for start in 0..=want.len() {
            for end in start..=want.len() {
                let part = span.part(start..end);
                let got: Vec<u8> = part.ranges().flatten().map(|at| at as u8).collect();
                assert_eq!(got, want[start..end], "{start}..{end}");
                let inner = part.part(0..part.num_bytes() / 2);
                assert_eq!(
                    inner.ranges().map(|range| range.len()).sum::<usize>(),
                    (end - start) / 2
                );
            }
        }
        let together = Span::of_pieces(owner.clone(), [3..10, 10..12].into_iter());
        assert!(!together.is_cut() && together.bytes() == &want[..9]);
        assert_eq!(Span::of_pieces(owner, std::iter::empty()).num_bytes(), 0);
    }
}
