//! What quantised weights take on the device: the extents of the packed form, which
//! `cuda/quant_layout.cuh` describes, and the memory that products with it share.

use std::sync::Arc;

use super::buffer::DeviceVector;
use super::memory::DeviceMemory;
use super::pack::unit_of;
use crate::quant::{Bits, QuantConfig};

/// Inputs of a chunk and rows of a tile.
pub(super) const CHUNK_INPUTS: usize = 128;
pub(super) const TILE_ROWS: usize = 64;
/// Parts of a published form begin on multiples of this in staging memory.
pub(super) const STAGING_ALIGN_BYTES: usize = 256;
/// The most of them: groups of units, and scales, zeros and codes of two matrices.
const STAGING_PARTS: usize = 7;

/// What a packed matrix looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bits: Bits,
    pub(super) rows: usize,
    /// Inputs with padding: whole chunks.
    pub(super) cols: usize,
    /// Groups of a chunk: 1, 2 or 4.
    pub(super) groups: usize,
    pub(super) has_zeros: bool,
}

impl Form {
    /// That of a linear of `rows` outputs and `inputs` inputs in order, as `format` has it.
    fn expected(format: &QuantConfig, rows: usize, inputs: usize) -> Form {
        let size = format.group_inputs(inputs);
        let whole = inputs.div_ceil(size.max(1)).saturating_sub(1);
        Form {
            bits: format.bits,
            rows,
            cols: inputs.next_multiple_of(CHUNK_INPUTS),
            groups: CHUNK_INPUTS / unit_of(std::iter::repeat_n(size, whole)),
            has_zeros: !format.symmetric,
        }
    }

    fn chunk_bytes(&self) -> usize {
        let tables = if self.has_zeros { 2 } else { 1 };
        TILE_ROWS * (CHUNK_INPUTS * self.bits.count() / 8 + 2 * self.groups * tables)
    }

    /// Bytes of a tile.
    pub(super) fn tile_bytes(&self) -> usize {
        self.cols / CHUNK_INPUTS * self.chunk_bytes()
    }

    /// Tiles, the last one perhaps not full.
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Bytes of all tiles.
    pub(super) fn num_bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// Which of the kernels' two widths.
    pub(super) fn width(&self) -> usize {
        match self.bits {
            Bits::Four => 0,
            Bits::Eight => 1,
        }
    }
}

/// A quantised weight matrix `[rows, inputs]`, packed.
pub struct PackedMatrix {
    pub(super) memory: Arc<DeviceMemory>,
    pub(super) form: Form,
    /// Columns of what it is multiplied by.
    pub(super) inputs: usize,
    /// Which of them each packed input is; none: all in their order.
    pub(super) order: Option<Arc<DeviceMemory>>,
    /// `[rows]`, added to every product.
    pub(super) bias: Option<DeviceVector>,
}

/// What the linears of a quantised model need beside their weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantLimits {
    /// Elements of the largest linear, padding included.
    pub dense_elements: usize,
    /// Bytes of the published form of the largest one, which loading stages.
    pub staging_bytes: usize,
    /// Inputs, with padding, of the widest linear whose inputs are reordered or padded; 0: of none.
    pub gathered_inputs: usize,
}

impl QuantLimits {
    /// Of linears of these outputs and inputs. One matrix may need more (in whose file groups are
    /// listed in no order though the format says they are not): then loading takes more.
    pub fn of(format: &QuantConfig, linears: &[(usize, usize)]) -> QuantLimits {
        let forms = || linears.iter().map(|&(rows, inputs)| Form::expected(format, rows, inputs));
        let gathered = linears.iter().filter(|(_, inputs)| is_reordered(format, *inputs));
        QuantLimits {
            dense_elements: forms().map(|form| form.rows * form.cols).max().unwrap_or(0),
            staging_bytes: linears
                .iter()
                .map(|&(rows, inputs)| staging_bytes(format, rows, inputs))
                .max()
                .unwrap_or(0),
            gathered_inputs: gathered
                .map(|(_, inputs)| inputs.next_multiple_of(CHUNK_INPUTS))
                .max()
                .unwrap_or(0),
        }
    }

    /// Elements of the matrix that holds a linear dequantised, and two published forms while loading.
    pub(super) fn room_elements(&self) -> usize {
        self.dense_elements.max(self.staging_bytes)
    }
}

/// Bytes of the published form of a linear of `rows` outputs, one matrix or two, in staging memory; a
/// little more for what lies between its parts.
pub(super) fn staging_bytes(format: &QuantConfig, rows: usize, inputs: usize) -> usize {
    let form = Form::expected(format, rows, inputs);
    let tables = if form.has_zeros { 2 } else { 1 };
    let units = form.cols / CHUNK_INPUTS * form.groups * size_of::<u32>();
    let scales = format.num_groups(inputs) * rows * size_of::<u16>();
    let codes = rows * inputs * format.bits.count() / 8;
    let parts = units + tables * scales + codes;
    (parts + STAGING_PARTS * STAGING_ALIGN_BYTES).next_multiple_of(STAGING_ALIGN_BYTES)
}

/// Have the inputs of such a linear another order, or padding?
fn is_reordered(format: &QuantConfig, inputs: usize) -> bool {
    format.desc_act || !inputs.is_multiple_of(CHUNK_INPUTS)
}

/// Bytes of a linear of `rows` outputs and `inputs` inputs on the device: its packed weights, and the
/// order of its inputs.
pub fn packed_bytes(format: &QuantConfig, rows: usize, inputs: usize) -> (u64, u64) {
    let form = Form::expected(format, rows, inputs);
    let order = if is_reordered(format, inputs) { 4 * form.cols } else { 0 };
    (form.num_bytes() as u64, order as u64)
}
