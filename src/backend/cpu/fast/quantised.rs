//! `y = x W^T` for quantised weights, straight from the packed codes as they lie in the file.
//!
//! Codes are packed along the inputs, and a row of words runs along the outputs: so lanes are outputs,
//! and a step takes one vector of words (16 outputs, 8 or 4 inputs), unpacks it in registers and
//! multiplies by one input after another, broadcast. No lane sums, no repacking:
//!
//! ```text
//!   x tile       words [inputs * bits / 32, outputs]
//!   MR rows      +----+----+----+   r: 8 inputs of Int4
//!                |  NR vectors  |   down the column, then on to the next NR
//!                +----+----+----+
//! ```
//!
//! Every output is a chain of multiply-adds over the inputs of a group, in f32 and with codes centred
//! on the middle (exact), times the group's scale, added up group by group: the same chain whatever
//! the number of rows and the tile, so that decode and prefill give the same bits. Where zero points
//! differ or inputs are in no order, each code is scaled by itself (`Each`): about a third of the speed.
//!
//! A step of Int4 in AVX-512 is a shift, a table look-up and a multiply-add for 16 weights: 64 bytes in
//! about 10 cycles (measured on Zen 5, 2026-11-25: 25 GB/s a core from its own cache), which is what
//! memory gives and so hides none of it. Where the machine has them, whole numbers do better (`fixed`).

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed in two dimensions")]

use std::ops::Range;

use super::linear::STREAM_ROWS;
use super::simd::{CACHE_LINE, Kernel, LANES, Simd, prefetch};
use crate::quant::{Bits, Groups, QuantTensor};
use crate::tensor::HostTensor;

/// A quantised matrix as the fast backend keeps it.
pub struct FastQuant {
    pub(super) tensor: QuantTensor,
    /// `[outputs]`, if it has one of its own.
    pub(super) bias: Option<Vec<f32>>,
    /// Multiplied in whole numbers (`fixed`).
    pub(super) is_fixed: bool,
}

impl FastQuant {
    /// `is_fixed` where `fixed` serves all that share its input, and the instruction set is there.
    pub(super) fn new(source: &QuantTensor, is_fixed: bool) -> FastQuant {
        let bias = source.bias().map(HostTensor::to_f32);
        FastQuant { tensor: source.clone(), bias, is_fixed }
    }
}

/// Outputs that threads do not divide.
pub(super) const UNIT: usize = 2 * LANES;
/// Codes of one panel should stay in the second-level cache beside the x tile.
const PANEL_BYTES: usize = 384 * 1024;
/// Largest panel of outputs.
const PANEL_MAX: usize = 8 * UNIT;
/// How far ahead of the stream of decode to ask for words, in bytes of a tile.
const AHEAD_BYTES: usize = 4096;

/// Outputs that one panel takes.
pub(super) fn panel_outputs(tensor: &QuantTensor) -> usize {
    let column_bytes = (tensor.codes().rows() * 4).max(1);
    (PANEL_BYTES / column_bytes / UNIT * UNIT).clamp(UNIT, PANEL_MAX)
}

/// A product of staged inputs with one quantised matrix; columns are its outputs.
pub(super) struct QuantColumns<'a> {
    /// `[rows, x_stride]`.
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    pub(super) rows: usize,
    pub(super) weight: &'a FastQuant,
    /// `[outputs]` or none.
    pub(super) bias: Option<&'a [f32]>,
    /// `[rows, outputs]`.
    pub(super) out: *mut f32,
    pub(super) cols: Range<usize>,
    /// The first of the words that are read after these columns, if all goes as it usually does.
    pub(super) then: *const u32,
}

impl Kernel for QuantColumns<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tensor = &self.weight.tensor;
        let is_plain = tensor.zeros().is_none();
        // SAFETY: passed on; the tensor's parts fit each other.
        unsafe {
            match (tensor.bits(), tensor.groups()) {
                (Bits::Four, Groups::Runs(size)) if is_plain => {
                    self.columns::<S, Runs<4>>(&Runs(*size));
                }
                (Bits::Eight, Groups::Runs(size)) if is_plain => {
                    self.columns::<S, Runs<8>>(&Runs(*size));
                }
                (Bits::Four, _) => self.columns::<S, Each<4>>(&Each),
                (Bits::Eight, _) => self.columns::<S, Each<8>>(&Each),
            }
        }
    }
}

/// One way to compute a register tile.
trait Tile {
    /// Rows `row..row + MR`, NR vectors of outputs from `col` on, the last of `lanes` lanes.
    unsafe fn tile<S: Simd, const MR: usize, const NR: usize>(
        &self,
        product: &QuantColumns<'_>,
        row: usize,
        col: usize,
        lanes: usize,
    );
}

/// Codes of `BITS` bits, symmetric, in groups of so many inputs.
struct Runs<const BITS: u32>(usize);

/// Codes of `BITS` bits, each scaled by itself.
struct Each<const BITS: u32>;

/// The code of `BITS` bits in the lowest bits of each lane, less the middle; and what comes above it.
#[inline(always)]
unsafe fn next_code<S: Simd, const BITS: u32>(w: S::W) -> (S::V, S::W) {
    // SAFETY: lane arithmetic; the caller has the instruction set.
    unsafe { (if BITS == 4 { S::low4(w) } else { S::low8(w) }, S::shift::<BITS>(w)) }
}

/// The first `lanes` of sixteen words, zeros after them.
#[inline(always)]
pub(super) unsafe fn load_words<S: Simd>(from: *const u32, lanes: usize) -> S::W {
    // SAFETY: the caller's pointer is valid for `lanes` words of any alignment.
    unsafe {
        if lanes >= LANES {
            return S::load_words(from);
        }
        let mut padded = [0_u32; LANES];
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), padded.as_mut_ptr().cast(), 4 * lanes);
        S::load_words(padded.as_ptr())
    }
}

/// The first `lanes` of sixteen f16 as f32, zeros after them.
#[inline(always)]
pub(super) unsafe fn load_halves<S: Simd>(from: *const u16, lanes: usize) -> S::V {
    // SAFETY: the caller's pointer is valid for `lanes` elements of any alignment.
    unsafe {
        if lanes >= LANES {
            return S::load_f16(from);
        }
        let mut padded = [0_u16; LANES];
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), padded.as_mut_ptr().cast(), 2 * lanes);
        S::load_f16(padded.as_ptr())
    }
}

impl<const BITS: u32> Tile for Runs<BITS> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NR: usize>(
        &self,
        product: &QuantColumns<'_>,
        row: usize,
        col: usize,
        lanes: usize,
    ) {
        let per_word = 32 / BITS as usize;
        let tensor = &product.weight.tensor;
        let (n, num_words) = (tensor.outputs(), tensor.codes().rows());
        let lanes_of = |v: usize| if v + 1 == NR { lanes } else { LANES };
        // SAFETY: words, scales and inputs are those of the shapes; the caller keeps rows and columns
        // inside; a prefetch may name any address.
        unsafe {
            let words = tensor.codes().bytes().as_ptr().cast::<u32>().add(col);
            let scales = tensor.scales().bytes().as_ptr().cast::<u16>().add(col);
            let x = product.x.add(row * product.x_stride);
            let ahead = Ahead::new::<NR>(words, n, num_words);
            let mut acc = [[S::splat(0.0); NR]; MR];
            for group in 0..tensor.scales().rows() {
                let start = group * self.0 / per_word;
                let end = num_words.min(start + self.0 / per_word);
                let mut part = [[S::splat(0.0); NR]; MR];
                for r in start..end {
                    if product.rows <= STREAM_ROWS {
                        ahead.ask::<NR>(r);
                    }
                    let mut w = [load_words::<S>(words.add(r * n), lanes_of(0)); NR];
                    for v in 1..NR {
                        w[v] = load_words::<S>(words.add(r * n + v * LANES), lanes_of(v));
                    }
                    for k in r * per_word..(r + 1) * per_word {
                        let mut codes = [S::splat(0.0); NR];
                        for v in 0..NR {
                            (codes[v], w[v]) = next_code::<S, BITS>(w[v]);
                        }
                        for m in 0..MR {
                            let input = S::splat(*x.add(m * product.x_stride + k));
                            for v in 0..NR {
                                part[m][v] = S::fma(input, codes[v], part[m][v]);
                            }
                        }
                    }
                }
                for v in 0..NR {
                    let scale = load_halves::<S>(scales.add(group * n + v * LANES), lanes_of(v));
                    for m in 0..MR {
                        acc[m][v] = S::fma(part[m][v], scale, acc[m][v]);
                    }
                }
            }
            product.store::<S, MR, NR>(&acc, row, col, lanes);
        }
    }
}

impl<const BITS: u32> Tile for Each<BITS> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NR: usize>(
        &self,
        product: &QuantColumns<'_>,
        row: usize,
        col: usize,
        lanes: usize,
    ) {
        let per_word = 32 / BITS as usize;
        let tensor = &product.weight.tensor;
        let n = tensor.outputs();
        let lanes_of = |v: usize| if v + 1 == NR { lanes } else { LANES };
        // SAFETY: as above; groups are inside the scales.
        unsafe {
            let words = tensor.codes().bytes().as_ptr().cast::<u32>().add(col);
            let scales = tensor.scales().bytes().as_ptr().cast::<u16>().add(col);
            let zeros = tensor.zeros().map(|z| z.bytes().as_ptr().cast::<u16>().add(col));
            let middle = S::splat(tensor.bits().middle() as f32);
            let x = product.x.add(row * product.x_stride);
            let mut acc = [[S::splat(0.0); NR]; MR];
            for r in 0..tensor.codes().rows() {
                for v in 0..NR {
                    let mut w = load_words::<S>(words.add(r * n + v * LANES), lanes_of(v));
                    for k in r * per_word..(r + 1) * per_word {
                        let at = tensor.group(k) * n + v * LANES;
                        let mut code;
                        (code, w) = next_code::<S, BITS>(w);
                        if let Some(zeros) = zeros {
                            let zero = load_halves::<S>(zeros.add(at), lanes_of(v));
                            code = S::sub(code, S::sub(zero, middle));
                        }
                        let scale = load_halves::<S>(scales.add(at), lanes_of(v));
                        let weight = S::mul(code, scale);
                        for m in 0..MR {
                            let input = S::splat(*x.add(m * product.x_stride + k));
                            acc[m][v] = S::fma(input, weight, acc[m][v]);
                        }
                    }
                }
            }
            product.store::<S, MR, NR>(&acc, row, col, lanes);
        }
    }
}

/// The words that a tile will come to: some rows on, and past the last the first of the next tile.
pub(super) struct Ahead {
    words: *const u32,
    n: usize,
    num_words: usize,
    rows: usize,
}

impl Ahead {
    #[inline(always)]
    pub(super) fn new<const NR: usize>(words: *const u32, n: usize, num_words: usize) -> Ahead {
        Ahead { words, n, num_words, rows: AHEAD_BYTES / (NR * CACHE_LINE) }
    }

    /// Asks for what comes after row `r`.
    #[inline(always)]
    pub(super) fn ask<const NR: usize>(&self, r: usize) {
        let to = r + self.rows;
        let at = if to < self.num_words {
            to * self.n
        } else {
            (to - self.num_words) * self.n + NR * LANES
        };
        for v in 0..NR {
            prefetch(self.words.wrapping_add(at + v * LANES));
        }
    }
}

impl QuantColumns<'_> {
    /// All rows of the columns.
    #[inline(always)]
    unsafe fn columns<S: Simd, T: Tile>(&self, tile: &T) {
        // SAFETY: passed on.
        unsafe {
            if self.rows <= STREAM_ROWS {
                return self.rows_from::<S, T>(tile, 0, self.cols.clone());
            }
            let panel = panel_outputs(&self.weight.tensor);
            for start in self.cols.clone().step_by(panel) {
                let cols = start..self.cols.end.min(start + panel);
                let mut row = 0;
                while S::MANY_REGISTERS && row + 8 <= self.rows {
                    self.tiles::<S, T, 8, 2>(tile, row, cols.clone());
                    row += 8;
                }
                while row + 4 <= self.rows {
                    self.tiles::<S, T, 4, 2>(tile, row, cols.clone());
                    row += 4;
                }
                self.rows_from::<S, T>(tile, row, cols);
            }
        }
    }

    /// The rows from `row` on, at most four.
    #[inline(always)]
    unsafe fn rows_from<S: Simd, T: Tile>(&self, tile: &T, row: usize, cols: Range<usize>) {
        // SAFETY: passed on.
        unsafe {
            match (self.rows - row, S::MANY_REGISTERS) {
                (1, true) => self.tiles::<S, T, 1, 8>(tile, row, cols),
                (1, false) => self.tiles::<S, T, 1, 2>(tile, row, cols),
                (2, true) => self.tiles::<S, T, 2, 4>(tile, row, cols),
                (2, false) => self.tiles::<S, T, 2, 2>(tile, row, cols),
                (3, _) => self.tiles::<S, T, 3, 2>(tile, row, cols),
                (4, _) => self.tiles::<S, T, 4, 2>(tile, row, cols),
                _ => {}
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<S: Simd, T: Tile, const MR: usize, const NR: usize>(
        &self,
        tile: &T,
        row: usize,
        cols: Range<usize>,
    ) {
        let mut col = cols.start;
        // SAFETY: columns stay below `cols.end`; the rest is passed on.
        unsafe {
            while col + NR * LANES <= cols.end {
                tile.tile::<S, MR, NR>(self, row, col, LANES);
                col += NR * LANES;
            }
            while col < cols.end {
                tile.tile::<S, MR, 1>(self, row, col, LANES.min(cols.end - col));
                col += LANES;
            }
        }
    }

    /// Adds the biases and stores a tile.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd, const MR: usize, const NR: usize>(
        &self,
        acc: &[[S::V; NR]; MR],
        row: usize,
        col: usize,
        lanes: usize,
    ) {
        for m in 0..MR {
            for v in 0..NR {
                let first = col + v * LANES;
                let count = if v + 1 == NR { lanes } else { LANES };
                let mut sums = [0.0_f32; LANES];
                // SAFETY: the tile is inside `[rows, outputs]`, and this thread's alone.
                unsafe {
                    S::store(sums.as_mut_ptr(), acc[m][v]);
                    for bias in [self.weight.bias.as_deref(), self.bias].into_iter().flatten() {
                        let bias = &bias[first..first + count];
                        sums.iter_mut().zip(bias).for_each(|(sum, b)| *sum += b);
                    }
                    let to = self.out.add((row + m) * self.weight.tensor.outputs() + first);
                    std::ptr::copy_nonoverlapping(sums.as_ptr(), to, count);
                }
            }
        }
    }
}
