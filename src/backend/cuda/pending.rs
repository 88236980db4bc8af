//! Linears of a few rows on their way to the device, the sums of what they yield over ranks, and the
//! norms between them.
//!
//! A linear is not launched when it is asked for but when the next op is, because a norm between two
//! linears is no kernel of its own: the first adds to the residual stream, and leaves the stream
//! times the norm's weight and the sums of its squares; the second multiplies by the former and
//! divides by the root of the latter. Where there are several ranks, the sum between the linears does the
//! first one's part. Every launch of another kernel goes through `Launcher`, which
//! lets the linear go first.

use std::cell::RefCell;

use super::comm::Reduce;
use super::kernels::Kernel;
use super::launch::{Config, Launcher, Norm};
use super::owners::RowSum;
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
    /// f32, sent to the other ranks as well.
    Send = 5,
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

    /// This linear, which reads `norm`'s output, does the rest of it: of the weighted stream and the
    /// sums of its squares.
    fn after(self, norm: &Norm, x: u64, squares: u64) -> Arguments {
        Arguments { x, squares, epsilon: norm.epsilon, normalised: 1, ..self }
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

/// What can be held back: a norm may follow it.
#[derive(Clone)]
enum First {
    Linear(Linear),
    /// The sum over ranks of what a linear yields.
    Reduce(Reduce),
    /// The same of many rows; it does a norm whole.
    Rows(Box<RowSum>),
}

impl First {
    /// Could it do its part of `norm`? A linear not if it reads what would be written in place of the
    /// norm's output and delta.
    fn yields(&self, norm: &Norm) -> bool {
        match self {
            First::Reduce(reduce) => reduce.yields(norm),
            First::Rows(sum) => sum.yields(norm),
            First::Linear(Linear { arguments, .. }) => {
                arguments.epilogue == Epilogue::Stream as u32
                    && arguments.out == norm.delta
                    && arguments.rows as usize == norm.rows
                    && arguments.normalised == 0
                    && arguments.x != norm.out
                    && arguments.x != norm.delta
            }
        }
    }

    /// It does its part of `norm`; and where that leaves the weighted stream and the sums of its
    /// squares. A linear's go where its own output and the norm's would have gone, which nobody else
    /// reads. None: it would do all of it.
    fn before(&self, norm: &Norm) -> Option<(First, u64, u64)> {
        match self {
            First::Rows(_) => None,
            First::Reduce(reduce) => {
                let (reduce, weighted, squares) = reduce.before(norm);
                Some((First::Reduce(reduce), weighted, squares))
            }
            First::Linear(linear) => {
                let arguments = linear.arguments.before(norm);
                let linear = Linear { arguments, ..*linear };
                Some((First::Linear(linear), norm.delta, norm.out))
            }
        }
    }

    /// Launches it, and `norm` behind it.
    fn launch(&self, launcher: &Launcher, norm: Option<&Norm>) -> Result<()> {
        match self {
            First::Rows(sum) => return sum.launch(launcher, norm),
            First::Reduce(reduce) => reduce.launch(launcher)?,
            First::Linear(Linear { kernel, config, arguments }) => {
                launcher.launch_struct(*kernel, *config, arguments)?;
            }
        }
        norm.map_or(Ok(()), |norm| launcher.launch_norm(norm))
    }
}

/// What is not launched yet.
#[derive(Clone, Default)]
struct Pending {
    first: Option<First>,
    /// A norm of what it yields.
    norm: Option<Norm>,
}

/// The place for it.
#[derive(Default)]
pub(super) struct PendingLinear(RefCell<Pending>);

impl PendingLinear {
    /// Takes over `norm` if its delta is what is pending: then the linear after that may read the
    /// norm's output, but nothing else, and nobody may read the delta.
    pub(super) fn take_norm(&self, norm: &Norm) -> bool {
        let mut pending = self.0.borrow_mut();
        let is_next = pending.first.as_ref().is_some_and(|first| first.yields(norm));
        let takes = is_next && pending.norm.is_none();
        if takes {
            pending.norm = Some(*norm);
        }
        takes
    }

    /// Launches what is pending; `next` takes its place.
    pub(super) fn queue(&self, launcher: &Launcher, mut next: Linear) -> Result<()> {
        let Pending { first, norm } = self.0.borrow().clone();
        if let (Some(first), Some(norm)) = (first, norm)
            && let Some((first, weighted, squares)) = first.before(&norm)
            && norm.out == next.arguments.x
            && norm.rows == next.arguments.rows as usize
            && ![norm.delta, norm.out, norm.residual].contains(&next.arguments.out)
        {
            next.arguments = next.arguments.after(&norm, weighted, squares);
            self.0.replace(Pending { first: Some(first), norm: None });
        }
        self.put(launcher, First::Linear(next))
    }

    /// The same for a sum over ranks, which the linear before sends.
    pub(super) fn queue_reduce(&self, launcher: &Launcher, mut next: Reduce) -> Result<()> {
        if let Pending { first: Some(First::Linear(linear)), norm: None } =
            &mut *self.0.borrow_mut()
        {
            next.sent_by(linear);
        }
        self.put(launcher, First::Reduce(next))
    }

    /// The same for one of many rows.
    pub(super) fn queue_rows(&self, launcher: &Launcher, next: RowSum) -> Result<()> {
        self.put(launcher, First::Rows(Box::new(next)))
    }

    fn put(&self, launcher: &Launcher, next: First) -> Result<()> {
        self.flush(launcher)?;
        self.0.replace(Pending { first: Some(next), norm: None });
        Ok(())
    }

    /// Launches what is pending.
    pub(super) fn flush(&self, launcher: &Launcher) -> Result<()> {
        let Pending { first, norm } = self.0.take();
        first.map_or(Ok(()), |first| first.launch(launcher, norm.as_ref()))
    }
}
