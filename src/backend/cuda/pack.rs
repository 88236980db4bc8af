//! Quantised matrices on their way to the device: in what order their inputs lie there, and the pieces
//! they travel in. What is done with them there is in
//! `quant`.
//!
//! Inputs of a group lie together, in units of 32, 64 or 128 of which each has a scale (groups of more
//! have as many units as they need). What does not fill a unit, or the last chunk of 128, is padding:
//! inputs of no number, which x has a zero for. So any order and any size of group fits; the published
//! ones need neither padding nor another order.
//!
//! A piece is some columns (outputs) of the published form with all of their inputs. It goes through a
//! pinned block into staging memory and is packed from there: beside the packed weights, the device
//! never holds more of the published form than a block.

use std::ops::Range;

use super::driver::Stream;
use super::kernels::Kernel;
use super::launch::{Config, Launcher};
use super::load::{BLOCK_BYTES, Uploader};
use super::memory::DeviceMemory;
use super::packed::{CHUNK_INPUTS, Form, PackedMatrix, TILE_ROWS};
use super::quant::Width;
use crate::backend::random::RandomCodes;
use crate::error::{Error, Result};
use crate::quant::QuantTensor;
use crate::tensor::{Dtype, HostTensor};

/// In place of an input, or a group: there is none.
const NONE: u32 = u32::MAX;
/// Inputs that share a scale, largest first.
const UNITS: [usize; 3] = [128, 64, 32];
/// Rows of the first of two matrices, then of the second, that lie side by side.
const INTERLEAVE_ROWS: usize = 8;
/// Parts of a piece begin on multiples of this.
const ALIGN_BYTES: usize = 16;
/// Most parts of a piece.
const MAX_PARTS: usize = 7;
const THREADS: u32 = 256;

/// The largest unit that groups of these lengths are made of; the last may be cut short.
pub(super) fn unit_of(lengths: impl Iterator<Item = usize> + Clone) -> usize {
    let fits = |unit: &usize| lengths.clone().all(|len| len.is_multiple_of(*unit));
    UNITS.into_iter().find(fits).unwrap_or(UNITS[2])
}

/// How the inputs of a matrix lie in its packed form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Which input each of the packed ones is; whole chunks.
    inputs: Vec<u32>,
    /// The group of each unit.
    group_of: Vec<u32>,
    unit: usize,
    /// It is the order of the published form.
    is_plain: bool,
}

impl Order {
    /// The order of `source`.
    fn of(source: &QuantTensor) -> Order {
        Order::new(source.inputs(), |input| source.group(input))
    }

    /// `len` inputs by group, in a group as they come.
    fn new(len: usize, group_of: impl Fn(usize) -> usize) -> Order {
        let group = |input: &u32| group_of(*input as usize) as u32;
        let mut sorted: Vec<u32> = (0..len as u32).collect();
        sorted.sort_by_key(group);
        let runs: Vec<&[u32]> = sorted.chunk_by(|a, b| group(a) == group(b)).collect();
        let (_, whole) = runs.split_last().unwrap_or((&(&[] as &[u32]), &[]));
        let unit = unit_of(whole.iter().map(|run| run.len()));
        let (mut inputs, mut group_of) = (Vec::new(), Vec::new());
        for run in &runs {
            inputs.extend_from_slice(run);
            inputs.resize(inputs.len().next_multiple_of(unit), NONE);
            group_of.resize(inputs.len() / unit, group(&run[0]));
        }
        inputs.resize(inputs.len().next_multiple_of(CHUNK_INPUTS), NONE);
        group_of.resize(inputs.len() / unit, NONE);
        let is_plain = inputs.iter().copied().eq(0..len as u32);
        Order { inputs, group_of, unit, is_plain }
    }
}

/// The one argument of the packing kernels; field by field as in `quant_pack.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arguments {
    packed: u64,
    codes: [u64; 2],
    scales: [u64; 2],
    zeros: [u64; 2],
    order: u64,
    group_of: u64,
    seeds: [u64; 2],
    columns: u32,
    sources: u32,
    k: u32,
    groups: u32,
    has_zeros: u32,
    scale: u32,
}

const _: () = assert!(size_of::<Arguments>() == 112, "as the kernels have it");

impl Arguments {
    fn new(matrix: &PackedMatrix, sources: usize) -> Arguments {
        Arguments {
            packed: matrix.memory.address(),
            order: matrix.order.as_ref().map_or(0, DeviceMemory::address),
            sources: sources as u32,
            k: matrix.form.cols as u32,
            groups: matrix.form.groups as u32,
            has_zeros: u32::from(matrix.form.has_zeros),
            ..Arguments::default()
        }
    }
}

/// Parts of a piece, one behind the other.
struct Piece<'a> {
    block: &'a mut [u8],
    len: usize,
}

impl Piece<'_> {
    /// Puts bytes `range` of every row of `row_bytes` at the end, and says where.
    fn add(&mut self, bytes: &[u8], row_bytes: usize, range: Range<usize>) -> u64 {
        let start = self.len.next_multiple_of(ALIGN_BYTES);
        self.len = start;
        for row in bytes.chunks_exact(row_bytes) {
            let some = &row[range.clone()];
            self.block[self.len..self.len + some.len()].copy_from_slice(some);
            self.len += some.len();
        }
        start as u64
    }

    fn add_words(&mut self, words: &[u32]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.add(&bytes, bytes.len().max(1), 0..bytes.len())
    }
}

/// The matrices that one packed matrix is made of: one, or two of one shape, whose rows are
/// interleaved in eights.
pub(super) struct Packer<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) uploader: &'a mut Uploader,
    pub(super) widths: &'a [Width; 2],
}

impl Packer<'_> {
    /// Packs `sources`.
    pub(super) fn stored(&mut self, sources: &[&QuantTensor]) -> Result<PackedMatrix> {
        let order = common_order(sources)?;
        let step = piece_columns(sources, &order)?;
        let form = Form {
            bits: sources[0].bits(),
            rows: sources.len() * sources[0].outputs(),
            cols: order.inputs.len(),
            groups: CHUNK_INPUTS / order.unit,
            has_zeros: sources.iter().any(|source| source.zeros().is_some()),
        };
        let mut matrix = self.empty(form, sources[0].inputs(), &order)?;
        if let Some(bias) = common_bias(sources) {
            matrix.bias = Some(self.uploader.vector(&self.launcher.stream, &bias, Dtype::F16)?);
        }
        let outputs = sources[0].outputs();
        let mut staging = self.uploader.take_staging()?;
        for first in (0..outputs).step_by(step) {
            let columns = first..(first + step).min(outputs);
            self.piece(&mut staging, &matrix, sources, &order, columns)?;
        }
        self.uploader.keep_staging(staging);
        Ok(matrix)
    }

    /// The packed form of random codes, made on the device.
    pub(super) fn random(&mut self, sources: &[&RandomCodes]) -> Result<PackedMatrix> {
        let first = sources[0];
        assert!(sources.len() == 1 || first.outputs.is_multiple_of(INTERLEAVE_ROWS));
        let group_inputs = first.format.group_inputs(first.inputs);
        let order = Order::new(first.inputs, |input| input / group_inputs);
        let form = Form {
            bits: first.format.bits,
            rows: sources.len() * first.outputs,
            cols: order.inputs.len(),
            groups: CHUNK_INPUTS / order.unit,
            has_zeros: false,
        };
        let matrix = self.empty(form, first.inputs, &order)?;
        let mut staging = self.uploader.take_staging()?;
        let mut arguments = Arguments {
            columns: first.outputs as u32,
            scale: u32::from(first.scale().to_bits()),
            group_of: staging.address(),
            ..Arguments::new(&matrix, sources.len())
        };
        for (to, source) in arguments.seeds.iter_mut().zip(sources) {
            *to = source.seed;
        }
        self.uploader.send(&self.launcher.stream, &mut staging, 0, |block| {
            let mut piece = Piece { block, len: 0 };
            piece.add_words(&order.group_of);
            piece.len
        })?;
        self.uploader.keep_staging(staging);
        self.launch(self.widths[form.width()].random, &arguments, form.tiles())?;
        Ok(matrix)
    }

    /// Memory for a packed matrix, and the order of its inputs.
    fn empty(&mut self, form: Form, inputs: usize, order: &Order) -> Result<PackedMatrix> {
        let launcher = self.launcher;
        let context = launcher.stream.context();
        let memory = DeviceMemory::new(context, form.num_bytes(), "weights")?;
        let mut matrix = PackedMatrix { memory, form, inputs, order: None, bias: None };
        if !order.is_plain {
            matrix.order = Some(self.words(&launcher.stream, &order.inputs)?);
        }
        Ok(matrix)
    }

    fn words(&mut self, stream: &Stream, words: &[u32]) -> Result<DeviceMemory> {
        let mut memory = DeviceMemory::new(stream.context(), words.len() * 4, "weights")?;
        self.uploader.send(stream, &mut memory, 0, |block| {
            let mut piece = Piece { block, len: 0 };
            piece.add_words(words);
            piece.len
        })?;
        Ok(memory)
    }

    /// Sends columns `columns` of each source and packs them.
    fn piece(
        &mut self,
        staging: &mut DeviceMemory,
        matrix: &PackedMatrix,
        sources: &[&QuantTensor],
        order: &Order,
        columns: Range<usize>,
    ) -> Result<()> {
        let base = staging.address();
        let mut arguments = Arguments::new(matrix, sources.len());
        arguments.columns = columns.len() as u32;
        self.uploader.send(&self.launcher.stream, staging, 0, |block| {
            let mut piece = Piece { block, len: 0 };
            arguments.group_of = base + piece.add_words(&order.group_of);
            let range = |size: usize| columns.start * size..columns.end * size;
            for (index, source) in sources.iter().enumerate() {
                let outputs = source.outputs();
                let tables = [Some(source.scales()), source.zeros()].map(|table| {
                    let bytes = table.map(HostTensor::bytes);
                    bytes.map_or(0, |bytes| base + piece.add(bytes, 2 * outputs, range(2)))
                });
                [arguments.scales[index], arguments.zeros[index]] = tables;
                let codes = piece.add(source.codes().bytes(), 4 * outputs, range(4));
                arguments.codes[index] = base + codes;
            }
            piece.len
        })?;
        let rows = columns.len() * sources.len();
        let first_tile = columns.start * sources.len() / TILE_ROWS;
        arguments.packed += (first_tile * matrix.form.tile_bytes()) as u64;
        let width = &self.widths[matrix.form.width()];
        self.launch(width.pack, &arguments, rows.div_ceil(TILE_ROWS))
    }

    fn launch(&self, kernel: Kernel, arguments: &Arguments, tiles: usize) -> Result<()> {
        let grid = (arguments.k / CHUNK_INPUTS as u32, tiles as u32, 1);
        let config = Config { grid, threads: THREADS, shared_bytes: 0, cooperative: false };
        self.launcher.launch_struct(kernel, config, arguments)
    }
}

/// The order of inputs that all `sources` have.
fn common_order(sources: &[&QuantTensor]) -> Result<Order> {
    let order = Order::of(sources[0]);
    for source in &sources[1..] {
        let shape = (source.outputs(), source.inputs(), source.bits());
        let first = (sources[0].outputs(), sources[0].inputs(), sources[0].bits());
        assert!(shape == first && shape.0.is_multiple_of(INTERLEAVE_ROWS), "two of one shape");
        if Order::of(source) != order {
            let reason = "the gate and the up matrix of an MLP have their inputs in groups of \
                          different order: on CUDA both must have the same";
            return Err(Error::Argument { argument: "checkpoint", reason: reason.to_string() });
        }
    }
    Ok(order)
}

/// The biases of `sources`, in f32, as their rows lie; none if none has one.
fn common_bias(sources: &[&QuantTensor]) -> Option<HostTensor> {
    if sources.iter().all(|source| source.bias().is_none()) {
        return None;
    }
    let zeros = || vec![0.0; sources[0].outputs()];
    let each: Vec<Vec<f32>> =
        sources.iter().map(|source| source.bias().map_or_else(zeros, HostTensor::to_f32)).collect();
    let rows = if each.len() == 1 { each[0].len() } else { INTERLEAVE_ROWS };
    let groups = (0..each[0].len()).step_by(rows.max(1));
    let values = groups.flat_map(|at| each.iter().flat_map(move |bias| &bias[at..at + rows]));
    let bytes: Vec<u8> = values.flat_map(|x| x.to_le_bytes()).collect();
    Some(HostTensor::from_vec(Dtype::F32, bytes.len() / 4, 1, bytes))
}

/// Columns of each source that go into a block: whole tiles.
fn piece_columns(sources: &[&QuantTensor], order: &Order) -> Result<usize> {
    let column_bytes = |source: &&QuantTensor| {
        let groups = source.scales().rows() * if source.zeros().is_some() { 4 } else { 2 };
        source.codes().rows() * 4 + groups
    };
    let one: usize = sources.iter().map(column_bytes).sum();
    let taken = (order.inputs.len() + order.group_of.len()) * 4 + MAX_PARTS * ALIGN_BYTES;
    let step = TILE_ROWS / sources.len();
    let columns = BLOCK_BYTES.saturating_sub(taken) / one.max(1) / step * step;
    if columns > 0 {
        return Ok(columns);
    }
    let inputs = sources[0].inputs();
    let reason = format!("a quantised linear of {inputs} inputs: too many for the CUDA backend");
    Err(Error::Argument { argument: "checkpoint", reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bits, Groups};
    use crate::tensor::HostWords;

    fn tensor(inputs: usize, groups: Groups) -> QuantTensor {
        let num_groups = match &groups {
            Groups::Runs(size) => inputs.div_ceil(*size),
            Groups::Listed(list) => list.iter().max().map_or(0, |most| *most as usize + 1),
        };
        let codes = HostWords::from_vec(inputs / 8, 8, vec![0; inputs * 4]);
        let scales = HostTensor::from_vec(Dtype::F16, num_groups, 8, vec![0; num_groups * 16]);
        QuantTensor::new(Bits::Four, codes, scales, groups)
    }

    /// Every input once, each in a unit of its own group.
    fn check(source: &QuantTensor, order: &Order) {
        assert!(order.inputs.len().is_multiple_of(CHUNK_INPUTS));
        assert_eq!(order.group_of.len() * order.unit, order.inputs.len());
        let mut seen: Vec<u32> =
            order.inputs.iter().copied().filter(|input| *input != NONE).collect();
        for (at, input) in order.inputs.iter().enumerate().filter(|(_, input)| **input != NONE) {
            let group = source.group(*input as usize) as u32;
            assert_eq!(order.group_of[at / order.unit], group, "input {input}");
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..source.inputs() as u32));
    }

    #[test]
    fn groups_in_runs_keep_their_order() {
        for (inputs, size, unit, packed) in [
            (512, 128, 128, 512),
            (512, 64, 64, 512),
            (512, 32, 32, 512),
            (768, 384, 128, 768),
            (384, 96, 32, 384),
            (384, 192, 64, 384),
            (512, 4096, 128, 512),
            // Cut short at the end, as the demo model's are.
            (576, 128, 128, 640),
            (200, 64, 64, 256),
            (72, 32, 32, 128),
            (96, 40, 32, 256),
        ] {
            let source = tensor(inputs, Groups::Runs(size));
            let order = Order::of(&source);
            check(&source, &order);
            assert_eq!((order.unit, order.inputs.len()), (unit, packed), "{inputs} by {size}");
            assert_eq!(order.is_plain, inputs == packed, "{inputs} by {size}");
        }
    }

    #[test]
    fn groups_in_any_order_are_brought_together() {
        // 7 and 16 have no common factor: every input comes once.
        let shuffled = |inputs: usize, size: usize| -> Groups {
            Groups::Listed((0..inputs).map(|k| ((7 * k % inputs) / size) as u32).collect())
        };
        for (inputs, size, unit, packed) in
            [(512, 128, 128, 512), (512, 32, 32, 512), (320, 128, 128, 384), (512, 512, 128, 512)]
        {
            let source = tensor(inputs, shuffled(inputs, size));
            let order = Order::of(&source);
            check(&source, &order);
            assert_eq!((order.unit, order.inputs.len()), (unit, packed), "{inputs} by {size}");
        }
        // Groups of no common length are filled up; one of them has nothing.
        let source = tensor(64, Groups::Listed((0..64).map(|k| [0, 1, 0, 3][k % 4]).collect()));
        let order = Order::of(&source);
        check(&source, &order);
        assert_eq!((order.unit, order.inputs.len()), (32, 128));
    }
}
