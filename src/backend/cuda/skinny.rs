//! Linears of a few rows on Hopper: one pass over the weights at the speed of memory, which cuBLAS
//! does not reach there, with what follows (bias, SwiGLU, residual and norm) in the same launch.
//!
//! A linear is not launched when it is asked for but when the next op is, because a norm between two
//! linears is no kernel of its own: the first adds to the residual stream, and leaves the stream
//! times the norm's weight and the sums of its squares; the second multiplies by the former and
//! divides by the root of the latter. Every launch of another kernel goes through `Launcher`, which
//! lets the linear go first.

use std::cell::RefCell;

use super::buffer::{DeviceBuffer, DeviceMatrix, DeviceVector, Kind};
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, Norm};
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

/// What is done with a product.
#[derive(Clone, Copy)]
enum Epilogue {
    /// The weights' dtype, with a bias if there is one.
    Activation = 0,
    /// f32.
    Stream = 1,
    /// `up * silu(gate)` of interleaved rows, in the weights' dtype.
    GateUp = 3,
    /// Added to an f32 stream, which the next linear normalises.
    AddNorm = 4,
}

/// The one argument of the kernel; field by field as in `skinny_ring.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arguments {
    weights: u64,
    x: u64,
    bias: u64,
    out: u64,
    gain: u64,
    weighted: u64,
    squares: u64,
    rows: u32,
    n: u32,
    k: u32,
    epilogue: u32,
    normalised: u32,
    tiles: u32,
    group: u32,
    epsilon: f32,
}

impl Arguments {
    /// This linear, whose output is f32, does its part of `norm`. What it leaves for the next goes
    /// where its own output and the norm's would have gone, which nobody else reads.
    fn before(self, norm: &Norm) -> Arguments {
        Arguments {
            epilogue: Epilogue::AddNorm as u32,
            out: norm.residual,
            gain: norm.weight,
            weighted: norm.delta,
            squares: norm.out,
            ..self
        }
    }

    /// This linear, which reads `norm`'s output, does the rest of it.
    fn after(self, norm: &Norm) -> Arguments {
        let (x, squares, epsilon) = (norm.delta, norm.out, norm.epsilon);
        Arguments { x, squares, epsilon, normalised: 1, ..self }
    }
}

/// What is not launched yet.
#[derive(Clone, Copy, Default)]
struct Pending {
    linear: Option<Arguments>,
    /// A norm of what the linear yields.
    norm: Option<Norm>,
}

/// Tiles of a block, and how many of them share a pass over x.
fn division(rows: usize, blocks: usize) -> (usize, usize) {
    let tiles = rows.div_ceil(TILE_ROWS).div_ceil(blocks);
    (tiles, tiles.div_ceil(tiles.div_ceil(GROUP_TILES)))
}

/// The variants for one dtype: most rows, shared memory, kernel. There are none before Hopper.
pub(super) struct SkinnyLinear {
    variants: Vec<(usize, usize, Kernel)>,
    /// A stream times a norm's weight is rounded before it is normalised: bf16 has the range of f32
    /// for that, f16 has not.
    does_norms: bool,
    pending: RefCell<Pending>,
}

impl SkinnyLinear {
    pub(super) fn new(kernels: &Kernels, dtype: Dtype) -> Result<SkinnyLinear> {
        let variants = VARIANTS.iter().filter(|_| kernels.is_hopper()).map(|&(rows, bytes)| {
            let name = format!("skinny_linear_{}_{rows}", dtype.name());
            Ok((rows, bytes, kernels.get(&name, bytes)?))
        });
        Ok(SkinnyLinear {
            variants: variants.collect::<Result<_>>()?,
            does_norms: dtype == Dtype::Bf16,
            pending: RefCell::default(),
        })
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

    /// Takes over `norm` if its delta is what the pending linear yields: then the linear after that
    /// may read the norm's output, but nothing else, and nobody may read the delta.
    pub(super) fn take_norm(&self, norm: &Norm) -> bool {
        let mut pending = self.pending.borrow_mut();
        let is_next = pending.linear.is_some_and(|linear| {
            linear.epilogue == Epilogue::Stream as u32
                && linear.out == norm.delta
                && linear.rows as usize == norm.rows
        });
        let takes = self.does_norms && is_next && pending.norm.is_none();
        if takes {
            pending.norm = Some(*norm);
        }
        takes
    }

    /// Launches what is pending.
    pub(super) fn flush(&self, launcher: &Launcher) -> Result<()> {
        let Pending { linear, norm } = self.pending.take();
        linear.map_or(Ok(()), |linear| self.launch(launcher, &linear))?;
        norm.map_or(Ok(()), |norm| launcher.launch_norm(&norm))
    }

    fn queue(
        &self,
        launcher: &Launcher,
        (x, weight, bias): (&DeviceBuffer, &DeviceMatrix, Option<&DeviceVector>),
        out: &DeviceBuffer,
        epilogue: Epilogue,
    ) -> Result<()> {
        assert!(x.cols() == weight.cols && x.kind() == Kind::Activation && out.rows() == x.rows());
        assert!(self.fits(x.rows(), weight));
        let (tiles, group) = division(weight.rows, launcher.num_sms() as usize);
        let mut next = Arguments {
            weights: weight.address(),
            x: x.address(),
            bias: bias.map_or(0, DeviceVector::address),
            out: out.address(),
            rows: x.rows() as u32,
            n: weight.rows as u32,
            k: weight.cols as u32,
            epilogue: epilogue as u32,
            tiles: tiles as u32,
            group: group as u32,
            ..Arguments::default()
        };
        let Pending { linear, norm } = *self.pending.borrow();
        if let (Some(linear), Some(norm)) = (linear, norm)
            && norm.out == x.address()
        {
            next = next.after(&norm);
            self.pending.replace(Pending { linear: Some(linear.before(&norm)), norm: None });
        }
        self.flush(launcher)?;
        self.pending.replace(Pending { linear: Some(next), norm: None });
        Ok(())
    }

    fn launch(&self, launcher: &Launcher, linear: &Arguments) -> Result<()> {
        let Some((_, shared_bytes, kernel)) = self.variant(linear.rows as usize) else {
            return Ok(());
        };
        let config = Config {
            grid: (launcher.num_sms(), 1, 1),
            threads: THREADS,
            shared_bytes: *shared_bytes as u32,
            cooperative: false,
        };
        launcher.launch_struct(*kernel, config, linear)
    }
}
