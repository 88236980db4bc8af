//! Quantised matrices on their way to the device: in what order their inputs lie there, and how they are
//! packed. What is done with them there is in `quant`.
//!
//! Inputs of a group lie together, in units of 32, 64 or 128 of which each has a scale (groups of more
//! have as many units as they need). What does not fill a unit, or the last chunk of 128, is padding:
//! inputs of no number, which x has a zero for. So any order and any size of group fits; the published
//! ones need neither padding nor another order.
//!
//! The published form of a matrix, or pair, goes to staging memory and is packed from there, while that of
//! the next one comes (see `staging`).

use std::sync::Arc;

use super::kernels::Kernel;
use super::launch::{Config, Launcher};
use super::memory::DeviceMemory;
use super::packed::{CHUNK_INPUTS, Form, PackedMatrix, STAGING_ALIGN_BYTES};
use super::quant::Width;
use super::upload::{Target, Uploader};
use crate::backend::random::RandomCodes;
use crate::error::{Error, Result};
use crate::quant::QuantTensor;
use crate::tensor::{Dtype, HostTensor, Span};

/// In place of an input, or a group: there is none.
const NONE: u32 = u32::MAX;
/// Inputs that share a scale, largest first.
const UNITS: [usize; 3] = [128, 64, 32];
/// Rows of the first of two matrices, then of the second, that lie side by side.
const INTERLEAVE_ROWS: usize = 8;
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
            order: matrix.order.as_ref().map_or(0, |memory| memory.address()),
            sources: sources as u32,
            k: matrix.form.cols as u32,
            groups: matrix.form.groups as u32,
            has_zeros: u32::from(matrix.form.has_zeros),
            ..Arguments::default()
        }
    }
}

/// Where the parts of a published form lie in staging memory; of each source.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    scales: [usize; 2],
    zeros: [usize; 2],
    codes: [usize; 2],
    len_bytes: usize,
}

impl Layout {
    /// Behind the group of each unit, the parts in the order in which they are read.
    fn new(sources: &[&QuantTensor], order: &Order) -> Layout {
        let mut layout = Layout { scales: [0; 2], zeros: [0; 2], codes: [0; 2], len_bytes: 0 };
        layout.add(order.group_of.len() * 4);
        for (index, source) in sources.iter().enumerate() {
            layout.scales[index] = layout.add(source.scales().span().num_bytes());
            let zeros = source.zeros().map_or(0, |zeros| zeros.span().num_bytes());
            layout.zeros[index] = layout.add(zeros);
            layout.codes[index] = layout.add(source.codes().span().num_bytes());
        }
        layout
    }

    /// Room for `len` bytes: where it begins.
    fn add(&mut self, len: usize) -> usize {
        let start = self.len_bytes.next_multiple_of(STAGING_ALIGN_BYTES);
        self.len_bytes = start + len;
        start
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
    /// Queues `sources`, and the packing of them.
    pub(super) fn stored(&mut self, sources: &[&QuantTensor]) -> Result<PackedMatrix> {
        let order = common_order(sources)?;
        let form = Form {
            bits: sources[0].bits(),
            rows: sources.len() * sources[0].outputs(),
            cols: order.inputs.len(),
            groups: CHUNK_INPUTS / order.unit,
            has_zeros: sources.iter().any(|source| source.zeros().is_some()),
        };
        let mut matrix = self.empty(form, sources[0].inputs(), &order)?;
        if let Some(bias) = common_bias(sources) {
            matrix.bias = Some(self.uploader.vector(self.launcher, &bias, Dtype::F16)?);
        }
        let layout = Layout::new(sources, &order);
        let (index, staging) = self.uploader.staging(layout.len_bytes)?;
        let base = staging.address();
        let mut arguments = Arguments {
            columns: sources[0].outputs() as u32,
            group_of: base,
            ..Arguments::new(&matrix, sources.len())
        };
        self.uploader.send(encode(&order.group_of), &staging, 0);
        for (index, source) in sources.iter().enumerate() {
            let zeros = source.zeros().map(|zeros| (zeros.span(), layout.zeros[index]));
            let scales = (source.scales().span(), layout.scales[index]);
            let codes = (source.codes().span(), layout.codes[index]);
            let target = |(span, start): (&Span, usize)| Target::one(start, span.num_bytes());
            self.uploader.copy(scales.0, &staging, target(scales))?;
            if let Some(zeros) = zeros {
                self.uploader.copy_made(zeros.0, &staging, target(zeros))?;
            }
            self.uploader.copy(codes.0, &staging, target(codes))?;
            arguments.scales[index] = base + scales.1 as u64;
            arguments.zeros[index] = zeros.map_or(0, |(_, start)| base + start as u64);
            arguments.codes[index] = base + codes.1 as u64;
        }
        self.pack(self.widths[form.width()].pack, arguments, &matrix, (index, staging))?;
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
        let (index, staging) = self.uploader.staging(order.group_of.len() * 4)?;
        let mut arguments = Arguments {
            columns: first.outputs as u32,
            scale: u32::from(first.scale().to_bits()),
            group_of: staging.address(),
            ..Arguments::new(&matrix, sources.len())
        };
        for (to, source) in arguments.seeds.iter_mut().zip(sources) {
            *to = source.seed;
        }
        self.uploader.send(encode(&order.group_of), &staging, 0);
        self.pack(self.widths[form.width()].random, arguments, &matrix, (index, staging))?;
        Ok(matrix)
    }

    /// Memory for a packed matrix, and the order of its inputs.
    fn empty(&mut self, form: Form, inputs: usize, order: &Order) -> Result<PackedMatrix> {
        let memory = Arc::new(self.uploader.weight_memory(form.num_bytes())?);
        let mut matrix = PackedMatrix { memory, form, inputs, order: None, bias: None };
        if !order.is_plain {
            let words = encode(&order.inputs);
            let memory = self.uploader.weight_memory(words.len())?;
            self.uploader.send_now(self.launcher, &words, &memory, 0)?;
            matrix.order = Some(Arc::new(memory));
        }
        Ok(matrix)
    }

    /// Queues the launch of `kernel` for all tiles of `matrix`.
    fn pack(
        &mut self,
        kernel: Kernel,
        arguments: Arguments,
        matrix: &PackedMatrix,
        (index, staging): (usize, Arc<DeviceMemory>),
    ) -> Result<()> {
        let grid = (arguments.k / CHUNK_INPUTS as u32, matrix.form.tiles() as u32, 1);
        let config =
            Config { grid, threads: THREADS, shared_bytes: 0, cooperative: false, cluster: 1 };
        let kept = (staging, Arc::clone(&matrix.memory), matrix.order.clone());
        self.uploader.run(index, move |launcher| {
            launcher.launch_struct(kernel, config, &arguments)?;
            // What the kernel reads and writes has not been freed: memory waits for it then.
            drop(kept);
            Ok(())
        });
        self.uploader.settle(self.launcher)
    }
}

fn encode(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
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

#[cfg(test)]
mod tests {
    use super::super::packed::staging_bytes;
    use super::*;
    use crate::quant::{Bits, Groups, QuantConfig};
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

    #[test]
    fn parts_of_a_published_form_lie_apart() {
        let source = tensor(512, Groups::Runs(128));
        let zeros = HostTensor::from_vec(Dtype::F16, 4, 8, vec![0; 64]);
        let with_zeros = source.clone().with_zeros(zeros);
        let order = Order::of(&source);
        // Groups of 4 units; 64 bytes of scales, and of zeros; 2048 of codes.
        let one = Layout::new(&[&source], &order);
        assert_eq!((one.scales[0], one.codes[0], one.len_bytes), (256, 512, 2560));
        let two = Layout::new(&[&source, &with_zeros], &order);
        assert_eq!((two.scales, two.codes), ([256, 2560], [512, 3072]));
        assert_eq!((two.zeros[1], two.len_bytes), (2816, 5120));
    }

    /// What is set aside for the published form of a linear holds it, and not much more.
    #[test]
    fn staging_memory_is_as_long_as_what_is_staged() {
        for (bits, outputs, inputs, size, symmetric) in [
            (Bits::Four, 512, 512, 128, true),
            (Bits::Four, 64, 576, 128, false),
            (Bits::Eight, 128, 96, 32, true),
            (Bits::Eight, 64, 1024, 64, false),
        ] {
            let group_size = Some(size);
            let format =
                QuantConfig { bits, group_size, desc_act: false, symmetric, zero_offset: 1 };
            let rows = inputs / bits.codes_per_word();
            let num_groups = inputs.div_ceil(size);
            let codes = HostWords::from_vec(rows, outputs, vec![0; rows * outputs * 4]);
            let halves = || vec![0; num_groups * outputs * 2];
            let scales = HostTensor::from_vec(Dtype::F16, num_groups, outputs, halves());
            let mut source = QuantTensor::new(bits, codes, scales, Groups::Runs(size));
            if !symmetric {
                let zeros = HostTensor::from_vec(Dtype::F16, num_groups, outputs, halves());
                source = source.with_zeros(zeros);
            }
            let order = Order::of(&source);
            for sources in [vec![&source], vec![&source, &source]] {
                let len = Layout::new(&sources, &order).len_bytes;
                let room = staging_bytes(&format, sources.len() * outputs, inputs);
                assert!(
                    len <= room && room < len + 4096,
                    "{len} bytes, room for {room}: {format:?}"
                );
            }
        }
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
