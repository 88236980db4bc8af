//! Loads one rank's share of a checkpoint into a backend, reporting progress in bytes.

use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::shard::{Split, slice};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

/// Called with the bytes made ready since the last call; `false` cancels the load.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Distance between touched bytes: the smallest page of any machine.
const PAGE_BYTES: usize = 4096;
/// Bytes touched between two reports of progress.
const REPORT_BYTES: usize = 16 << 20;

/// Reads tensors for one rank.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) checkpoint: &'a Checkpoint,
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
        let tensor = self.fetch(name, shape, split)?;
        self.backend.matrix(&tensor)
    }

    /// The whole embedding table.
    pub(super) fn embedding(&mut self, name: &str, shape: (usize, usize)) -> Result<B::Matrix> {
        let tensor = self.fetch(name, shape, Split::Replicated)?;
        self.backend.embedding(&tensor)
    }

    /// This rank's part of two matrices of one shape, by columns.
    pub(super) fn gate_up(
        &mut self,
        (gate, up): (&str, &str),
        shape: (usize, usize),
    ) -> Result<B::GateUp> {
        self.same_dtype(gate, up)?;
        let gate = self.fetch(gate, shape, Split::Column)?;
        let up = self.fetch(up, shape, Split::Column)?;
        self.backend.gate_up(&gate, &up)
    }

    /// This rank's part of vector `name` of `len` elements.
    pub(super) fn vector(&mut self, name: &str, len: usize, split: Split) -> Result<B::Vector> {
        let tensor = self.fetch(name, (len, 1), split)?;
        self.backend.vector(&tensor)
    }

    /// Stored dtype of `name`.
    pub(super) fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.checkpoint.shape(name)?.0)
    }

    /// `Error::Argument` unless both tensors are stored in one dtype.
    fn same_dtype(&self, a: &str, b: &str) -> Result<()> {
        let (first, second) = (self.dtype(a)?, self.dtype(b)?);
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

    fn fetch(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        split: Split,
    ) -> Result<HostTensor> {
        let part = slice(split, rows, cols, self.rank, self.world)?;
        let tensor = self.checkpoint.tensor(name, rows, cols, &part)?;
        for chunk in tensor.bytes().chunks(REPORT_BYTES) {
            touch(chunk);
            if !(self.progress)(chunk.len() as u64) {
                return Err(Error::Cancelled);
            }
        }
        Ok(tensor)
    }
}

/// Reads one byte of every page, so that a memory map is in memory before the first token.
fn touch(bytes: &[u8]) {
    let sum = bytes.iter().step_by(PAGE_BYTES).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    std::hint::black_box(sum);
}
