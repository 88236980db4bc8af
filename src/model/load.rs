//! Loads one rank's share of a model's weights into a backend, reporting progress in bytes.

use crate::backend::Backend;
use crate::backend::random::{Normal, seed_of};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{self, LayerTensor};
use crate::checkpoint::shard::{Split, slice};
use crate::error::{Error, Result};
use crate::quant::QuantConfig;
use crate::tensor::{Dtype, HostTensor, Span};

/// Called with the bytes made ready since the last call; `false` cancels the load.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Where the weights of a model come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// A checkpoint's tensors.
    Stored(&'a Checkpoint),
    /// Nowhere: random numbers of this dtype, the same at every load.
    Random(Dtype),
}

impl Weights<'_> {
    /// Dtype of activations and cache: that of the stored linears, or, where these are quantised, of
    /// lm_head, which never is.
    pub fn dtype(&self) -> Result<Dtype> {
        match self {
            Weights::Stored(checkpoint) => {
                let first = names::layer(0, LayerTensor::QkvWeight);
                let is_quantised = checkpoint.has_codes(&first);
                Ok(checkpoint.shape(if is_quantised { names::LM_HEAD } else { &first })?.0)
            }
            Weights::Random(dtype) => Ok(*dtype),
        }
    }
}

impl<'a> From<&'a Checkpoint> for Weights<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Weights<'a> {
        Weights::Stored(checkpoint)
    }
}

/// Mean and standard deviation of random weights other than linears', whose deviation is
/// 1 / sqrt(inputs): activations keep their size through a random model.
const RANDOM_EMBEDDING: (f32, f32) = (0.0, 0.02);
const RANDOM_NORM: (f32, f32) = (1.0, 0.1);
const RANDOM_BIAS: (f32, f32) = (0.0, 0.1);

/// Distance between touched bytes: the smallest page of any machine.
const PAGE_BYTES: usize = 4096;
/// Bytes touched between two reports of progress.
const REPORT_BYTES: usize = 16 << 20;

/// Bytes of weights that a backend which streams may be behind: they keep its readers busy while the
/// next weights are looked at.
const AHEAD_BYTES: u64 = 512 << 20;

/// Reads tensors for one rank.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) weights: Weights<'a>,
    pub(super) quantisation: Option<QuantConfig>,
    /// Which part of tensors that are divided this rank has, of how many.
    pub(super) part: usize,
    pub(super) parts: usize,
    pub(super) progress: Progress<'a>,
}

impl<B: Backend> Loader<'_, B> {
    /// This rank's part of matrix `name`, whose full shape is `[rows, cols]`.
    pub(super) fn matrix(
        &mut self,
        name: &str,
        shape: (usize, usize),
        split: Split,
    ) -> Result<B::Matrix> {
        let quantised = self.quantised_matrix(name, shape, split)?;
        let matrix = match (quantised, self.weights) {
            (Some(matrix), _) => matrix,
            (None, Weights::Stored(checkpoint)) => {
                let tensor = self.fetch(checkpoint, name, shape, split)?;
                self.bring(tensor.span())?;
                self.backend.matrix(&tensor)?
            }
            (None, Weights::Random(dtype)) => {
                let normal = self.random(dtype, name, shape, split)?;
                self.report(normal.num_bytes())?;
                self.backend.random_matrix(&normal)?
            }
        };
        self.stream(AHEAD_BYTES)?;
        Ok(matrix)
    }

    /// Has the backend bring what it was given, but for the last `ahead_bytes`.
    fn stream(&mut self, ahead_bytes: u64) -> Result<()> {
        while let Some(num_bytes) = self.backend.advance(ahead_bytes)? {
            self.report(num_bytes as usize)?;
        }
        Ok(())
    }

    /// All weights are in place.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.stream(0)
    }

    /// The whole embedding table.
    pub(super) fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<B::Matrix> {
        let tensor = self.host(name, shape, Split::Replicated, RANDOM_EMBEDDING)?;
        self.bring(tensor.span())?;
        let table = self.backend.embedding(&tensor)?;
        self.stream(AHEAD_BYTES)?;
        Ok(table)
    }

    /// This rank's part of two matrices of one shape, by columns.
    pub(super) fn gate_up(
        &mut self,
        (gate, up): (&str, &str),
        shape: (usize, usize),
    ) -> Result<B::GateUp> {
        let quantised = self.quantised_gate_up((gate, up), shape)?;
        let pair = match (quantised, self.weights) {
            (Some(pair), _) => pair,
            (None, Weights::Stored(checkpoint)) => {
                same_dtype(checkpoint, gate, up)?;
                let gate = self.fetch(checkpoint, gate, shape, Split::Column)?;
                let up = self.fetch(checkpoint, up, shape, Split::Column)?;
                self.bring(gate.span())?;
                self.bring(up.span())?;
                self.backend.gate_up(&gate, &up)?
            }
            (None, Weights::Random(dtype)) => {
                let gate = self.random(dtype, gate, shape, Split::Column)?;
                let up = self.random(dtype, up, shape, Split::Column)?;
                self.report(2 * gate.num_bytes())?;
                self.backend.random_gate_up(&gate, &up)?
            }
        };
        self.stream(AHEAD_BYTES)?;
        Ok(pair)
    }

    /// The weight `name` of a norm over `len` elements.
    pub(super) fn norm(&mut self, name: &str, len: usize) -> Result<B::Vector> {
        self.vector((name, len), Split::Replicated, RANDOM_NORM)
    }

    /// This rank's part of bias `name` of `len` elements.
    pub(super) fn bias(&mut self, name: &str, len: usize, split: Split) -> Result<B::Vector> {
        self.vector((name, len), split, RANDOM_BIAS)
    }

    /// No backend streams these: they are small, and read at once.
    fn vector(
        &mut self,
        (name, len): (&str, usize),
        split: Split,
        random: (f32, f32),
    ) -> Result<B::Vector> {
        let tensor = match self.weights {
            Weights::Stored(checkpoint) => {
                let part = slice(split, len, 1, self.part, self.parts)?;
                checkpoint.small_tensor(name, len, 1, &part)?
            }
            Weights::Random(_) => self.host(name, (len, 1), split, random)?,
        };
        self.report(tensor.bytes().len())?;
        self.backend.vector(&tensor)
    }

    /// This rank's part of a tensor that is wanted in host memory: stored, or random with the given
    /// mean and deviation.
    fn host(
        &self,
        name: &str,
        shape: (usize, usize),
        split: Split,
        (mean, deviation): (f32, f32),
    ) -> Result<HostTensor> {
        match self.weights {
            Weights::Stored(checkpoint) => self.fetch(checkpoint, name, shape, split),
            Weights::Random(dtype) => {
                let normal = self.random(dtype, name, shape, split)?;
                Normal { mean, deviation, ..normal }.tensor()
            }
        }
    }

    /// What this rank's part of the random linear `name` is; whole tensors are the same on all ranks.
    fn random(
        &self,
        dtype: Dtype,
        name: &str,
        (rows, cols): (usize, usize),
        split: Split,
    ) -> Result<Normal> {
        let part = slice(split, rows, cols, self.part, self.parts)?;
        let index = if split == Split::Replicated { 0 } else { self.part };
        Ok(Normal {
            dtype,
            rows: part.num_rows(),
            cols: part.cols.len(),
            mean: 0.0,
            deviation: 1.0 / (cols as f32).sqrt(),
            seed: seed_of(name, index as u64),
        })
    }

    pub(super) fn report(&mut self, num_bytes: usize) -> Result<()> {
        if (self.progress)(num_bytes as u64) { Ok(()) } else { Err(Error::Cancelled) }
    }

    /// Brings the bytes of `span` into memory, and says so; a backend that streams does both itself.
    pub(super) fn bring(&mut self, span: &Span) -> Result<()> {
        if B::STREAMS {
            return Ok(());
        }
        for chunk in span.bytes().chunks(REPORT_BYTES) {
            touch(chunk);
            self.report(chunk.len())?;
        }
        Ok(())
    }

    fn fetch(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        (rows, cols): (usize, usize),
        split: Split,
    ) -> Result<HostTensor> {
        let part = slice(split, rows, cols, self.part, self.parts)?;
        match B::STREAMS {
            true => checkpoint.tensor_in_place(name, rows, cols, &part),
            false => checkpoint.tensor(name, rows, cols, &part),
        }
    }
}

/// `Error::Argument` unless both tensors are stored in one dtype.
fn same_dtype(checkpoint: &Checkpoint, a: &str, b: &str) -> Result<()> {
    let (first, second) = (checkpoint.shape(a)?.0, checkpoint.shape(b)?.0);
    if first == second {
        return Ok(());
    }
    let reason = format!(
        "`{a}` is stored as {}, `{b}` as {}: they must be of one dtype",
        first.name(),
        second.name()
    );
    Err(Error::Argument { argument: "checkpoint", reason })
}

/// Reads one byte of every page, so that a memory map is in memory before the first token.
fn touch(bytes: &[u8]) {
    let sum = bytes.iter().step_by(PAGE_BYTES).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    std::hint::black_box(sum);
}
