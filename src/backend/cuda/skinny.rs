//! Linears of a few rows on Hopper: one pass over the weights at the speed of memory, which cuBLAS
//! does not reach there, with what follows (bias, SwiGLU, residual and norm) in the same launch.

use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind};
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher};
use super::pending::{Arguments, Epilogue, Linear};
use crate::error::Result;
use crate::tensor::Dtype;

/// As `skinny_linear.cu` has them.
const THREADS: u32 = 192;
/// Most rows of each variant, and its shared memory.
const VARIANTS: [(usize, usize); 2] = [(8, 229_616), (16, 229_600)];
/// Weight rows of a tile, and most tiles that share a pass over x.
const TILE_ROWS: usize = 16;
const GROUP_TILES: usize = 8;
/// Columns of a matrix come in steps of this, rows in steps of `ROW_STEP`.
const COL_STEP: usize = 64;
const ROW_STEP: usize = 8;

/// The variants for one dtype: most rows, shared memory, kernel. There are none before Hopper.
pub(super) struct SkinnyLinear {
    variants: Vec<(usize, usize, Kernel)>,
}

impl SkinnyLinear {
    pub(super) fn new(kernels: &Kernels, dtype: Dtype) -> Result<SkinnyLinear> {
        let variants = VARIANTS.iter().filter(|_| kernels.is_hopper()).map(|&(rows, bytes)| {
            let name = format!("skinny_linear_{}_{rows}", dtype.name());
            Ok((rows, bytes, kernels.get(&name, bytes)?))
        });
        Ok(SkinnyLinear { variants: variants.collect::<Result<_>>()? })
    }

    fn variant(&self, rows: usize) -> Option<&(usize, usize, Kernel)> {
        self.variants.iter().find(|(most, ..)| rows <= *most)
    }

    /// Is there a kernel for `rows` rows times this matrix?
    pub(super) fn fits(&self, rows: usize, weight: &DeviceMatrix) -> bool {
        let is_even = weight.cols.is_multiple_of(COL_STEP) && weight.rows.is_multiple_of(ROW_STEP);
        rows > 0 && is_even && self.variant(rows).is_some()
    }

    /// `out = x W^T (+ bias)`. `fits` must hold.
    pub(super) fn linear(
        &self,
        launcher: &Launcher,
        x: &DeviceBuffer,
        weight: &DeviceMatrix,
        bias: Option<&DeviceVector>,
        out: &DeviceBuffer,
    ) -> Result<()> {
        assert!(out.cols() == weight.rows && bias.is_none_or(|bias| bias.len == weight.rows));
        let epilogue = match out.kind() {
            Kind::Activation => Epilogue::Activation,
            Kind::Stream => Epilogue::Stream,
        };
        assert!(bias.is_none() || out.kind() == Kind::Activation, "a bias goes with an activation");
        self.queue(launcher, (x, weight, bias), out, epilogue)
    }

    /// `out = up * silu(gate)` of an interleaved matrix. `fits` must hold.
    pub(super) fn gate_up(
        &self,
        launcher: &Launcher,
        x: &DeviceBuffer,
        weight: &DeviceMatrix,
        out: &DeviceBuffer,
    ) -> Result<()> {
        assert!(2 * out.cols() == weight.rows && out.kind() == Kind::Activation);
        self.queue(launcher, (x, weight, None), out, Epilogue::GateUp)
    }

    fn queue(
        &self,
        launcher: &Launcher,
        (x, weight, bias): (&DeviceBuffer, &DeviceMatrix, Option<&DeviceVector>),
        out: &DeviceBuffer,
        epilogue: Epilogue,
    ) -> Result<()> {
        assert!(x.cols() == weight.cols && x.kind() == Kind::Activation && out.rows() == x.rows());
        let Some((_, shared_bytes, kernel)) =
            self.variant(x.rows()).filter(|_| self.fits(x.rows(), weight))
        else {
            unreachable!("the caller has asked whether it fits");
        };
        let mut arguments = Arguments {
            weights: weight.address(),
            x: x.address(),
            bias: bias.map_or(0, DeviceVector::address),
            out: out.address(),
            rows: x.rows() as u32,
            n: weight.rows as u32,
            k: weight.cols as u32,
            epilogue: epilogue as u32,
            ..Arguments::default()
        };
        arguments.divide(TILE_ROWS, launcher.num_sms() as usize, GROUP_TILES);
        let config = Config {
            grid: (launcher.num_sms(), 1, 1),
            threads: THREADS,
            shared_bytes: *shared_bytes as u32,
            cooperative: false,
            cluster: 1,
        };
        launcher.pending.queue(launcher, Linear { kernel: *kernel, config, arguments })
    }
}
