//! Loads one rank's share of a model's weights into a backend, reporting progress in bytes.

use crate::backend::Backend;
use crate::backend::random::{Normal, seed_of};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{self, LayerTensor};
use crate::checkpoint::shard::{Split, slice};
use crate::error::{Error, Result};
use crate::quant::QuantConfig;
use crate::tensor::{Dtype, HostTensor};

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

/// Reads tensors for one rank.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) weights: Weights<'a>,
    pub(super) quantisation: Option<QuantConfig>,
    pub(super) rank: usize,
    pub(super) world: usize,
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
        if let Some(matrix) = self.quantised_matrix(name, shape, split)? {
            return Ok(matrix);
        }
        match self.weights {
            Weights::Stored(checkpoint) => {
                let tensor = self.fetch(checkpoint, name, shape, split)?;
                self.backend.matrix(&tensor)
            }
            Weights::Random(dtype) => {
                let normal = self.random(dtype, name, shape, split)?;
                self.backend.random_matrix(&normal)
            }
        }
    }

    /// The whole embedding table.
    pub(super) fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<B::Matrix> {
        let tensor = self.host(name, shape, Split::Replicated, RANDOM_EMBEDDING)?;
        self.backend.embedding(&tensor)
    }

    /// This rank's part of two matrices of one shape, by columns.
    pub(super) fn gate_up(
        &mut self,
        (gate, up): (&str, &str),
        shape: (usize, usize),
    ) -> Result<B::GateUp> {
        if let Some(pair) = self.quantised_gate_up((gate, up), shape)? {
            return Ok(pair);
        }
        match self.weights {
            Weights::Stored(checkpoint) => {
                same_dtype(checkpoint, gate, up)?;
                let gate = self.fetch(checkpoint, gate, shape, Split::Column)?;
                let up = self.fetch(checkpoint, up, shape, Split::Column)?;
                self.backend.gate_up(&gate, &up)
            }
            Weights::Random(dtype) => {
                let gate = self.random(dtype, gate, shape, Split::Column)?;
                let up = self.random(dtype, up, shape, Split::Column)?;
                self.backend.random_gate_up(&gate, &up)
            }
        }
    }

    /// The weight `name` of a norm over `len` elements.
    pub(super) fn norm(&mut self, name: &str, len: usize) -> Result<B::Vector> {
        let tensor = self.host(name, (len, 1), Split::Replicated, RANDOM_NORM)?;
        self.backend.vector(&tensor)
    }

    /// This rank's part of bias `name` of `len` elements.
    pub(super) fn bias(&mut self, name: &str, len: usize, split: Split) -> Result<B::Vector> {
        let tensor = self.host(name, (len, 1), split, RANDOM_BIAS)?;
        self.backend.vector(&tensor)
    }

    /// This rank's part of a tensor that is wanted in host memory: stored, or random with the given
    /// mean and deviation.
    fn host(
        &mut self,
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
        &mut self,
        dtype: Dtype,
        name: &str,
        (rows, cols): (usize, usize),
        split: Split,
    ) -> Result<Normal> {
        let part = slice(split, rows, cols, self.rank, self.world)?;
        let rank = if split == Split::Replicated { 0 } else { self.rank };
        let normal = Normal {
            dtype,
            rows: part.num_rows(),
            cols: part.cols.len(),
            mean: 0.0,
            deviation: 1.0 / (cols as f32).sqrt(),
            seed: seed_of(name, rank as u64),
        };
        self.report(normal.num_bytes())?;
        Ok(normal)
    }

    pub(super) fn report(&mut self, num_bytes: usize) -> Result<()> {
        if (self.progress)(num_bytes as u64) { Ok(()) } else { Err(Error::Cancelled) }
    }

    /// Brings `bytes` into memory, and says so.
    pub(super) fn bring(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(REPORT_BYTES) {
            touch(chunk);
            self.report(chunk.len())?;
        }
        Ok(())
    }

    fn fetch(
        &mut self,
        checkpoint: &Checkpoint,
        name: &str,
        (rows, cols): (usize, usize),
        split: Split,
    ) -> Result<HostTensor> {
        let part = slice(split, rows, cols, self.rank, self.world)?;
        let tensor = checkpoint.tensor(name, rows, cols, &part)?;
        self.bring(tensor.bytes())?;
        Ok(tensor)
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
