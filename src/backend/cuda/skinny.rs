//! Linears of a few rows on Hopper: one pass over the weights at the speed of memory, which cuBLAS
//! does not reach there, with what follows (bias, SwiGLU) in the same launch.

use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind};
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher};
use crate::error::Result;
use crate::tensor::Dtype;

/// As `skinny_linear.cu` has them.
const THREADS: u32 = 192;
/// Most rows of each variant, and its shared memory.
const VARIANTS: [(usize, usize); 2] = [(8, 200_880), (16, 221_360)];
/// Columns of a matrix come in steps of this, rows in steps of `ROW_STEP`.
const COL_STEP: usize = 64;
const ROW_STEP: usize = 8;

/// What is done with a product.
#[derive(Clone, Copy)]
enum Epilogue {
    /// The weights' dtype, with a bias if there is one.
    Activation = 0,
    /// f32.
    Stream = 1,
    /// `up * silu(gate)` of interleaved rows, in the weights' dtype.
    GateUp = 3,
}

/// The one argument of the kernel; field by field as in `skinny_linear.cu`.
#[repr(C)]
struct SkinnyArguments {
    weights: u64,
    x: u64,
    bias: u64,
    out: u64,
    rows: u32,
    n: u32,
    k: u32,
    epilogue: u32,
}

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
        self.launch(launcher, (x, weight, bias), out, epilogue)
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
        self.launch(launcher, (x, weight, None), out, Epilogue::GateUp)
    }

    fn launch(
        &self,
        launcher: &Launcher,
        (x, weight, bias): (&DeviceBuffer, &DeviceMatrix, Option<&DeviceVector>),
        out: &DeviceBuffer,
        epilogue: Epilogue,
    ) -> Result<()> {
        assert!(x.cols() == weight.cols && x.kind() == Kind::Activation && out.rows() == x.rows());
        assert!(self.fits(x.rows(), weight));
        let Some((_, shared_bytes, kernel)) = self.variant(x.rows()) else { return Ok(()) };
        let arguments = SkinnyArguments {
            weights: weight.address(),
            x: x.address(),
            bias: bias.map_or(0, DeviceVector::address),
            out: out.address(),
            rows: x.rows() as u32,
            n: weight.rows as u32,
            k: weight.cols as u32,
            epilogue: epilogue as u32,
        };
        let config = Config {
            grid: (launcher.num_sms(), 1, 1),
            threads: THREADS,
            shared_bytes: *shared_bytes as u32,
            cooperative: false,
        };
        launcher.launch_struct(*kernel, config, &arguments)
    }
}
