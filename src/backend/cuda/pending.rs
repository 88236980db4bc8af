//! Linears of a few rows on their way to the device, and the norms between them.
//!
//! A linear is not launched when it is asked for but when the next op is, because a norm between two
//! linears is no kernel of its own: the first adds to the residual stream, and leaves the stream
//! times the norm's weight and the sums of its squares; the second multiplies by the former and
//! divides by the root of the latter. Every launch of another kernel goes through `Launcher`, which
//! lets the linear go first.

use std::cell::RefCell;

use super::kernels::Kernel;
use super::launch::{Config, Launcher, Norm};
use crate::error::Result;

/// What is done with a product; `linear_arguments.cuh` says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    /// The activations' dtype, with a bias if there is one.
    Activation = 0,
    /// f32, the same.
    Stream = 1,
    /// `up * silu(gate)` of interleaved rows, in the activations' dtype.
    GateUp = 3,
    /// Added to an f32 stream, which the next linear normalises.
    AddNorm = 4,
}

/// The one argument of the kernels; field by field as in `linear_arguments.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Arguments {
    pub(super) weights: u64,
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) gain: u64,
    pub(super) weighted: u64,
    pub(super) squares: u64,
    pub(super) rows: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    pub(super) epilogue: u32,
    pub(super) normalised: u32,
    pub(super) tiles: u32,
    pub(super) group: u32,
    pub(super) epsilon: f32,
    pub(super) groups: u32,
    pub(super) has_zeros: u32,
    pub(super) split: u32,
    pub(super) unused: u32,
}

const _: () = assert!(size_of::<Arguments>() == 104, "as the kernels have it");

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

    /// Divides the tiles of `tile_rows` rows among `blocks`, which take up to `most` in a pass over x.
    pub(super) fn divide(&mut self, tile_rows: usize, blocks: usize, most: usize) {
        let tiles = (self.n as usize).div_ceil(tile_rows).div_ceil(blocks);
        self.tiles = tiles as u32;
        self.group = tiles.div_ceil(tiles.div_ceil(most)) as u32;
    }
}

/// A linear that can be launched.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) kernel: Kernel,
    pub(super) config: Config,
    pub(super) arguments: Arguments,
}

/// What is not launched yet.
#[derive(Clone, Copy, Default)]
pub(super) struct Pending {
    linear: Option<Linear>,
    /// A norm of what the linear yields.
    norm: Option<Norm>,
}

/// The place for it.
#[derive(Default)]
pub(super) struct PendingLinear(RefCell<Pending>);

impl PendingLinear {
    /// Takes over `norm` if its delta is what the pending linear yields: then the linear after that
    /// may read the norm's output, but nothing else, and nobody may read the delta. Not if the linear
    /// itself reads what would be written in place of them.
    pub(super) fn take_norm(&self, norm: &Norm) -> bool {
        let mut pending = self.0.borrow_mut();
        let is_next = pending.linear.is_some_and(|Linear { arguments, .. }| {
            arguments.epilogue == Epilogue::Stream as u32
                && arguments.out == norm.delta
                && arguments.rows as usize == norm.rows
                && arguments.normalised == 0
                && arguments.x != norm.out
                && arguments.x != norm.delta
        });
        let takes = is_next && pending.norm.is_none();
        if takes {
            pending.norm = Some(*norm);
        }
        takes
    }

    /// Launches what is pending; `next` takes its place.
    pub(super) fn queue(&self, launcher: &Launcher, mut next: Linear) -> Result<()> {
        let Pending { linear, norm } = *self.0.borrow();
        if let (Some(mut linear), Some(norm)) = (linear, norm)
            && norm.out == next.arguments.x
            && ![norm.delta, norm.out, norm.residual].contains(&next.arguments.out)
        {
            next.arguments = next.arguments.after(&norm);
            linear.arguments = linear.arguments.before(&norm);
            self.0.replace(Pending { linear: Some(linear), norm: None });
        }
        self.flush(launcher)?;
        self.0.replace(Pending { linear: Some(next), norm: None });
        Ok(())
    }

    /// Launches what is pending.
    pub(super) fn flush(&self, launcher: &Launcher) -> Result<()> {
        let Pending { linear, norm } = self.0.take();
        linear.map_or(Ok(()), |Linear { kernel, config, arguments }| {
            launcher.launch_struct(kernel, config, &arguments)
        })?;
        norm.map_or(Ok(()), |norm| launcher.launch_norm(&norm))
    }
}
