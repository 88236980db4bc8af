//! Products with quantised weights: by our own kernel where rows are few (Hopper), else by cuBLAS with
//! the matrix dequantised into one scratch matrix, which all of them share in turn.
//!
//! Weights are packed as `cuda/quant_layout.cuh` says; `pack` makes them so.

use std::sync::Arc;

use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind, Storage};
use super::driver::Stream;
use super::gemm::Gemm;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, int};
use super::memory::DeviceMemory;
use super::pack::Packer;
use super::packed::{CHUNK_INPUTS, PackedMatrix, QuantLimits, TILE_ROWS};
use super::pending::{Arguments, Epilogue, Linear};
use super::upload::Uploader;
use crate::backend::random::RandomCodes;
use crate::error::Result;
use crate::quant::{Bits, QuantTensor};

/// Most rows that go to our own kernel, of codes of 4 and of 8 bits. It takes up to `KERNEL_ROWS` at once
/// and reads the packed weights once for each such block of rows. On an H200 a step of Qwen-72B Int4
/// takes 12.8 ms a block of 16, and 89 ms with dequantised weights (80 rows, 2026-11-28). At 8 bits it
/// is not measured: by the bytes that are read, five blocks are one too many.
const FEW_ROWS: [usize; 2] = [96, 64];
const KERNEL_ROWS: usize = 16;
/// Threads of its blocks.
const THREADS: u32 = 384;
/// Of each variant: most rows, shared memory, most tiles that share a pass over x.
const VARIANTS: [(usize, usize, usize); 2] = [(8, 218_464, 6), (16, 201_056, 3)];
/// Most tiles that a pair of blocks shares, by halves of their inputs.
const PAIR_TILES: usize = 3;
/// Threads of a block that dequantises, gathers or adds.
const DEQUANTISE_THREADS: u32 = 128;
const ROW_THREADS: u32 = 256;
/// Elements that a thread gathers.
const GATHER_ELEMENTS: usize = 8;

/// A linear kernel for up to `rows` rows.
#[derive(Clone, Copy)]
struct Variant {
    rows: usize,
    shared_bytes: usize,
    group_tiles: usize,
    kernel: Kernel,
}

/// The kernels for one width of codes.
pub(super) struct Width {
    pub(super) pack: Kernel,
    pub(super) random: Kernel,
    dequantise: Kernel,
    /// For one group a chunk and no zeros, and for any, by their rows.
    variants: Vec<[Variant; 2]>,
}

impl Width {
    fn new(kernels: &Kernels, bits: Bits) -> Result<Width> {
        let bits = bits.count();
        let variants = VARIANTS.iter().filter(|_| kernels.is_hopper());
        let variants = variants.map(|&(rows, shared_bytes, group_tiles)| {
            let get = |tail: &str| {
                let name = format!("quant_linear_{bits}_{rows}{tail}");
                let kernel = kernels.get(&name, shared_bytes)?;
                Ok(Variant { rows, shared_bytes, group_tiles, kernel })
            };
            Ok([get("")?, get("_any")?])
        });
        Ok(Width {
            pack: kernels.get(&format!("quant_pack_{bits}"), 0)?,
            random: kernels.get(&format!("quant_random_{bits}"), 0)?,
            dequantise: kernels.get(&format!("quant_dequantise_{bits}"), 0)?,
            variants: variants.collect::<Result<_>>()?,
        })
    }
}

/// Kernels for quantised weights, and the memory they share.
pub(super) struct Quant {
    /// 4 bits, 8 bits.
    widths: [Width; 2],
    gather: Kernel,
    add_bias: [Kernel; 2],
    /// The matrix that cuBLAS multiplies by, f16; staging memory while weights are loaded.
    dense: DeviceMatrix,
    /// Elements that it has room for.
    dense_elements: usize,
    /// Inputs in the order of a matrix that has one of its own.
    gathered: Option<DeviceBuffer>,
    max_tokens: usize,
}

impl Quant {
    /// Takes the memory that `limits` says, for steps of up to `max_tokens` rows.
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        limits: &QuantLimits,
        max_tokens: usize,
    ) -> Result<Quant> {
        let bias = |kind: &str| kernels.get(&format!("quant_add_bias_{kind}"), 0);
        let gathers = limits.gathered_inputs > 0;
        let gathered = gathers.then(|| gathered(stream, max_tokens, limits.gathered_inputs));
        Ok(Quant {
            widths: [Width::new(kernels, Bits::Four)?, Width::new(kernels, Bits::Eight)?],
            gather: kernels.get("quant_gather", 0)?,
            add_bias: [bias("f16")?, bias("f32")?],
            dense: dense(stream, limits.room_elements())?,
            dense_elements: limits.room_elements(),
            gathered: gathered.transpose()?,
            max_tokens,
        })
    }

    /// Bytes of each allocation that `new` makes.
    pub(super) fn device_bytes(limits: &QuantLimits, max_tokens: usize) -> [usize; 2] {
        [2 * limits.room_elements(), 2 * limits.gathered_inputs * max_tokens]
    }

    /// Packs a matrix, or two as one whose rows are interleaved in eights.
    pub(super) fn stored(
        &mut self,
        launcher: &Launcher,
        uploader: &mut Uploader,
        sources: &[&QuantTensor],
    ) -> Result<PackedMatrix> {
        let matrix = Packer { launcher, uploader, widths: &self.widths }.stored(sources)?;
        self.make_room(&launcher.stream, &matrix)?;
        Ok(matrix)
    }

    /// The same of random codes.
    pub(super) fn random(
        &mut self,
        launcher: &Launcher,
        uploader: &mut Uploader,
        sources: &[&RandomCodes],
    ) -> Result<PackedMatrix> {
        let matrix = Packer { launcher, uploader, widths: &self.widths }.random(sources)?;
        self.make_room(&launcher.stream, &matrix)?;
        Ok(matrix)
    }

    /// Takes more memory if this matrix needs more than the limits said.
    fn make_room(&mut self, stream: &Stream, matrix: &PackedMatrix) -> Result<()> {
        let elements = matrix.form.rows * matrix.form.cols;
        if self.dense_elements < elements {
            self.dense = dense(stream, elements)?;
            self.dense_elements = elements;
        }
        let needed = 2 * matrix.form.cols * self.max_tokens;
        let has = self.gathered.as_ref().map_or(0, |buffer| buffer.memory.len_bytes());
        if matrix.order.is_some() && has < needed {
            self.gathered = Some(gathered(stream, self.max_tokens, matrix.form.cols)?);
        }
        Ok(())
    }

    /// The kernels for some rows of `weight`, if there are any.
    fn variants(&self, rows: usize, weight: &PackedMatrix) -> Option<[Variant; 2]> {
        let variants = &self.widths[weight.form.width()].variants;
        let is_any = usize::from(weight.form.groups > 1 || weight.form.has_zeros);
        match variants[..] {
            [few, many] if rows <= FEW_ROWS[weight.form.width()] => {
                Some([few[is_any], many[is_any]])
            }
            _ => None,
        }
    }

    /// `out = x W^T (+ bias)`, with the matrix's own bias in any case.
    pub(super) fn linear(
        &mut self,
        (launcher, gemm): (&Launcher, &mut Gemm),
        (x, weight, bias): (&DeviceBuffer, &PackedMatrix, Option<&DeviceVector>),
        out: &DeviceBuffer,
    ) -> Result<()> {
        assert!(x.cols() == weight.inputs && x.kind() == Kind::Activation);
        assert!(out.cols() == weight.form.rows && out.rows() == x.rows());
        assert!(bias.is_none_or(|bias| bias.len == weight.form.rows));
        assert!(bias.is_none() || out.kind() == Kind::Activation, "a bias goes with an activation");
        if x.rows() == 0 {
            return Ok(());
        }
        let own = weight.bias.as_ref();
        let rest = match self.variants(x.rows(), weight) {
            Some(variants) => {
                let epilogue = match out.kind() {
                    Kind::Activation => Epilogue::Activation,
                    Kind::Stream => Epilogue::Stream,
                };
                let x = self.ordered(launcher, x, weight)?;
                queue(launcher, &variants, (x, weight, bias.or(own)), out, epilogue)?;
                own.filter(|_| bias.is_some())
            }
            None => {
                self.dequantise(launcher, weight)?;
                self.ordered(launcher, x, weight)?;
                let x = self.gathered.as_ref().filter(|_| weight.order.is_some()).unwrap_or(x);
                launcher.flush()?;
                gemm.linear(&launcher.stream, x, &self.dense, bias, out)?;
                own
            }
        };
        rest.map_or(Ok(()), |own| self.add_bias(launcher, own, out))
    }

    /// `out = up * silu(gate)` of an interleaved matrix, if there is a kernel that does it: false,
    /// and nothing done, if there is none.
    pub(super) fn gate_up(
        &mut self,
        launcher: &Launcher,
        (x, weight): (&DeviceBuffer, &PackedMatrix),
        out: &DeviceBuffer,
    ) -> Result<bool> {
        assert!(x.cols() == weight.inputs && x.kind() == Kind::Activation);
        assert!(2 * out.cols() == weight.form.rows && out.kind() == Kind::Activation);
        // The kernel adds no bias before the product of the two.
        let variants = self.variants(x.rows(), weight).filter(|_| weight.bias.is_none());
        let Some(variants) = variants.filter(|_| x.rows() > 0) else { return Ok(false) };
        let x = self.ordered(launcher, x, weight)?;
        queue(launcher, &variants, (x, weight, None), out, Epilogue::GateUp)?;
        Ok(true)
    }

    /// `x` with its columns as the packed inputs of `weight` lie.
    fn ordered<'a>(
        &'a mut self,
        launcher: &Launcher,
        x: &'a DeviceBuffer,
        weight: &PackedMatrix,
    ) -> Result<&'a DeviceBuffer> {
        let (Some(order), Some(to)) = (&weight.order, &mut self.gathered) else { return Ok(x) };
        to.cols = weight.form.cols;
        to.set_rows(x.rows());
        let (inputs, cols) = (int(weight.inputs), int(to.cols));
        let arguments = [to.address(), x.address(), order.address(), inputs, cols];
        let blocks = to.cols.div_ceil(GATHER_ELEMENTS * ROW_THREADS as usize);
        launcher.launch(self.gather, config((x.rows(), blocks), ROW_THREADS), &arguments)?;
        Ok(to)
    }

    /// Makes `dense` the matrix `[rows, cols]` of `weight`, its inputs in their packed order.
    pub(super) fn dequantise(&mut self, launcher: &Launcher, weight: &PackedMatrix) -> Result<()> {
        let form = &weight.form;
        assert!(form.rows * form.cols <= self.dense_elements);
        (self.dense.rows, self.dense.cols) = (form.rows, form.cols);
        let arguments = [
            self.dense.address(),
            weight.memory.address(),
            int(form.rows),
            int(form.cols),
            int(form.groups),
            int(usize::from(form.has_zeros)),
        ];
        let grid = (form.cols / CHUNK_INPUTS, form.tiles());
        let kernel = self.widths[form.width()].dequantise;
        launcher.launch(kernel, config(grid, DEQUANTISE_THREADS), &arguments)
    }

    /// Where `dequantise` leaves a matrix.
    pub(super) fn dense_memory(&self) -> &DeviceMemory {
        match &self.dense.storage {
            Storage::Device(memory) => memory,
            Storage::Host { .. } => unreachable!("made by `dense`"),
        }
    }

    fn add_bias(&self, launcher: &Launcher, bias: &DeviceVector, out: &DeviceBuffer) -> Result<()> {
        assert!(bias.len == out.cols());
        let kernel = self.add_bias[usize::from(out.kind() == Kind::Stream)];
        let grid = (out.rows(), out.cols().div_ceil(ROW_THREADS as usize));
        let arguments = [out.address(), bias.address(), int(out.cols())];
        launcher.launch(kernel, config(grid, ROW_THREADS), &arguments)
    }
}

/// Launches of the linear kernel on every multiprocessor, each for some rows; the last waits for the
/// next op.
fn queue(
    launcher: &Launcher,
    variants: &[Variant; 2],
    (x, weight, bias): (&DeviceBuffer, &PackedMatrix, Option<&DeviceVector>),
    out: &DeviceBuffer,
    epilogue: Epilogue,
) -> Result<()> {
    assert!(x.cols() == weight.form.cols);
    let (n, k) = (weight.form.rows, weight.form.cols);
    let out_row_bytes = match epilogue {
        Epilogue::Activation => 2 * n,
        Epilogue::GateUp => n,
        Epilogue::Stream | Epilogue::AddNorm | Epilogue::Send => 4 * n,
    };
    for first in (0..x.rows()).step_by(KERNEL_ROWS) {
        let rows = (x.rows() - first).min(KERNEL_ROWS);
        let variant = variants[usize::from(rows > variants[0].rows)];
        let arguments = Arguments {
            weights: weight.memory.address(),
            x: x.address() + (first * 2 * k) as u64,
            bias: bias.map_or(0, DeviceVector::address),
            out: out.address() + (first * out_row_bytes) as u64,
            rows: rows as u32,
            n: n as u32,
            k: k as u32,
            epilogue: epilogue as u32,
            groups: weight.form.groups as u32,
            has_zeros: u32::from(weight.form.has_zeros),
            ..Arguments::default()
        };
        launcher.pending.queue(launcher, divided(launcher, variant, arguments))?;
    }
    Ok(())
}

/// Divides a linear among the multiprocessors.
fn divided(launcher: &Launcher, variant: Variant, mut arguments: Arguments) -> Linear {
    let sms = launcher.num_sms() as usize;
    let tiles = arguments.n.div_ceil(TILE_ROWS as u32) as usize;
    let split = blocks_a_share(arguments.rows as usize, tiles, sms);
    arguments.split = split as u32;
    arguments.divide(
        TILE_ROWS,
        sms / split,
        if split == 2 { PAIR_TILES } else { variant.group_tiles },
    );
    let config = Config {
        shared_bytes: variant.shared_bytes as u32,
        cluster: arguments.split,
        ..config((sms / split * split, 1), THREADS)
    };
    Linear { kernel: variant.kernel, config, arguments }
}

/// 2 where pairs of blocks share tiles, by halves of the inputs; else 1. That pays where the tiles come
/// out more even, and, for more than eight rows, where a block would have one tile, for which it reads
/// as many bytes of x as of weights.
fn blocks_a_share(rows: usize, tiles: usize, sms: usize) -> usize {
    if sms < 2 {
        return 1;
    }
    let (alone, paired) = (tiles.div_ceil(sms), tiles.div_ceil(sms / 2));
    let pays = paired < 2 * alone || (rows > 8 && alone == 1);
    if paired <= PAIR_TILES && pays { 2 } else { 1 }
}

fn config((x, y): (usize, usize), threads: u32) -> Config {
    let grid = (x as u32, y as u32, 1);
    Config { grid, threads, shared_bytes: 0, cooperative: false, cluster: 1 }
}

/// Room for a matrix of up to `elements`.
fn dense(stream: &Stream, elements: usize) -> Result<DeviceMatrix> {
    let memory = DeviceMemory::new(stream.context(), 2 * elements, "dequantised weights")?;
    Ok(DeviceMatrix { storage: Storage::Device(Arc::new(memory)), rows: 0, cols: 0 })
}

/// Room for `max_rows` rows of up to `cols`.
fn gathered(stream: &Stream, max_rows: usize, cols: usize) -> Result<DeviceBuffer> {
    let memory = DeviceMemory::zeroed(stream, 2 * max_rows * cols, "activations")?;
    Ok(DeviceBuffer { memory, kind: Kind::Activation, max_rows, cols, rows: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's header has the numbers of a launch, too.
    #[test]
    fn launches_are_as_the_kernel_wants_them() {
        let header = include_str!("../../../cuda/quant_operand.cuh");
        let [(_, few_bytes, few_tiles), (_, many_bytes, many_tiles)] = VARIANTS;
        for text in [
            format!("shared_bytes<1> == {few_bytes} && shared_bytes<2> == {many_bytes},"),
            format!("PAIR_TILES = {PAIR_TILES};"),
            format!("group_tiles = {few_tiles} / NT;"),
            "NUM_CONSUMERS + 128;".to_string(),
        ] {
            assert!(header.contains(&text), "{text}");
        }
        assert!(many_tiles == few_tiles / 2 && THREADS == 8 * 32 + 128);
    }

    #[test]
    fn pairs_share_tiles_where_that_pays() {
        for (rows, tiles, sms, blocks) in [
            (1, 128, 132, 1),
            (16, 128, 132, 2),
            (1, 64, 132, 2),
            (1, 192, 132, 2),
            (1, 344, 132, 1),
            (16, 768, 132, 1),
            (1, 1, 1, 1),
        ] {
            assert_eq!(blocks_a_share(rows, tiles, sms), blocks, "{rows} rows, {tiles}, {sms}");
        }
    }
}
