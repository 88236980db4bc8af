//! Weights from host memory to the device: through two pinned blocks, so that the next piece is
//! copied by the processor while the last one travels. Quantised ones are put together in `pack`.

use std::sync::Arc;

use super::Cuda;
use super::buffer::{DeviceMatrix, DeviceVector, Storage, half_offset};
use super::driver::{Context, Stream};
use super::launch::Launcher;
use super::memory::{DeviceMemory, PinnedMemory};
use crate::backend::random::Normal;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

/// Of a pinned block, and of the staging memory.
pub(super) const BLOCK_BYTES: usize = 64 << 20;
/// Rows of gate, then of up, that lie side by side.
const INTERLEAVE_ROWS: usize = 8;

/// Two pinned blocks and which is next.
pub(super) struct Uploader {
    context: Arc<Context>,
    blocks: [PinnedMemory; 2],
    next: usize,
    /// A block on the device, from which weights are packed.
    staging: Option<DeviceMemory>,
}

impl Uploader {
    /// Device memory it needs: none, but for `take_staging`. Pinned memory: two blocks.
    pub(super) fn new(context: &Arc<Context>) -> Result<Uploader> {
        let block = || PinnedMemory::new(context, BLOCK_BYTES, "upload of weights");
        let (context, blocks) = (Arc::clone(context), [block()?, block()?]);
        Ok(Uploader { context, blocks, next: 0, staging: None })
    }

    /// The staging memory, a block long; made if it is not there.
    pub(super) fn take_staging(&mut self) -> Result<DeviceMemory> {
        match self.staging.take() {
            Some(memory) => Ok(memory),
            None => DeviceMemory::new(&self.context, BLOCK_BYTES, "upload of weights"),
        }
    }

    /// Keeps it for the next matrix.
    pub(super) fn keep_staging(&mut self, memory: DeviceMemory) {
        self.staging = Some(memory);
    }

    /// Gives it back, so that there is never more than weights beside it.
    pub(super) fn free_staging(&mut self) {
        self.staging = None;
    }

    /// A matrix as it is.
    pub(super) fn matrix(
        &mut self,
        stream: &Stream,
        source: &HostTensor,
        dtype: Dtype,
    ) -> Result<DeviceMatrix> {
        same_dtype(source, dtype)?;
        let bytes = source.bytes();
        let mut memory = DeviceMemory::new(&self.context, bytes.len(), "weights")?;
        for (index, piece) in bytes.chunks(BLOCK_BYTES).enumerate() {
            self.send(stream, &mut memory, index * BLOCK_BYTES, |block| {
                block[..piece.len()].copy_from_slice(piece);
                piece.len()
            })?;
        }
        Ok(DeviceMatrix {
            storage: Storage::Device(memory),
            rows: source.rows(),
            cols: source.cols(),
        })
    }

    /// Two matrices of one shape, rows interleaved in eights, the first one's first.
    pub(super) fn interleaved(
        &mut self,
        stream: &Stream,
        (first, second): (&HostTensor, &HostTensor),
        dtype: Dtype,
    ) -> Result<DeviceMatrix> {
        same_dtype(first, dtype)?;
        same_dtype(second, dtype)?;
        let (rows, cols) = (first.rows(), first.cols());
        assert!(
            rows.is_multiple_of(INTERLEAVE_ROWS) && (second.rows(), second.cols()) == (rows, cols)
        );
        let group_bytes = INTERLEAVE_ROWS * cols * dtype.size_bytes();
        let mut memory = DeviceMemory::new(&self.context, 2 * first.bytes().len(), "weights")?;
        let groups_a_block = (BLOCK_BYTES / (2 * group_bytes)).max(1);
        let groups: Vec<(&[u8], &[u8])> =
            first.bytes().chunks(group_bytes).zip(second.bytes().chunks(group_bytes)).collect();
        for (index, some) in groups.chunks(groups_a_block).enumerate() {
            let offset = index * groups_a_block * 2 * group_bytes;
            self.send(stream, &mut memory, offset, |block| {
                for ((a, b), to) in some.iter().zip(block.chunks_mut(2 * group_bytes)) {
                    to[..group_bytes].copy_from_slice(a);
                    to[group_bytes..2 * group_bytes].copy_from_slice(b);
                }
                some.len() * 2 * group_bytes
            })?;
        }
        Ok(DeviceMatrix { storage: Storage::Device(memory), rows: 2 * rows, cols })
    }

    /// A vector as f32 and in `dtype`.
    pub(super) fn vector(
        &mut self,
        stream: &Stream,
        source: &HostTensor,
        dtype: Dtype,
    ) -> Result<DeviceVector> {
        let len = source.rows() * source.cols();
        let halves = half_offset(len);
        let values = source.to_f32();
        // The second copy is exact where the vector is stored in `dtype`, as published ones are.
        let rounded = encode(&values, dtype);
        let bytes = halves + rounded.len();
        let mut memory = DeviceMemory::new(&self.context, bytes, "weights")?;
        self.send(stream, &mut memory, 0, |block| {
            for (to, x) in block.chunks_exact_mut(4).zip(&values) {
                to.copy_from_slice(&x.to_le_bytes());
            }
            block[halves..bytes].copy_from_slice(&rounded);
            bytes
        })?;
        Ok(DeviceVector { memory, len })
    }

    /// Fills the next block with `fill` (which says how many bytes) and queues its copy, after all that
    /// was queued before has been done.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        to: &mut DeviceMemory,
        offset: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<()> {
        let block = &mut self.blocks[self.next];
        let len = fill(block.bytes_mut());
        // The copy queued before this one reads the other block, which is filled next.
        stream.wait()?;
        to.upload(stream, offset, block, 0..len)?;
        self.next = 1 - self.next;
        Ok(())
    }
}

impl Cuda {
    /// The uploader, and the stream that its copies go to.
    pub(super) fn uploader(&mut self) -> Result<(&mut Uploader, &Stream)> {
        let Cuda { uploader, launcher, .. } = self;
        Ok((uploader.as_mut().ok_or_else(late_weights)?, &launcher.stream))
    }
}

/// The error of weights that come when the cache is made.
pub(super) fn late_weights() -> Error {
    let reason = "a bug in the library: weights after loading".to_string();
    Error::EngineFailed { reason }
}

/// A matrix of random numbers, made on the device.
pub(super) fn random_matrix(launcher: &Launcher, normal: &Normal) -> Result<DeviceMatrix> {
    let context = launcher.stream.context();
    let memory = DeviceMemory::new(context, normal.num_bytes(), "weights")?;
    launcher.random_normal(memory.address(), normal, 0)?;
    Ok(DeviceMatrix { storage: Storage::Device(memory), rows: normal.rows, cols: normal.cols })
}

/// Two of one shape, interleaved as `Uploader::interleaved` has them.
pub(super) fn random_interleaved(
    launcher: &Launcher,
    (first, second): (&Normal, &Normal),
) -> Result<DeviceMatrix> {
    let (rows, cols) = (first.rows, first.cols);
    assert!(rows.is_multiple_of(INTERLEAVE_ROWS) && (second.rows, second.cols) == (rows, cols));
    let context = launcher.stream.context();
    let memory = DeviceMemory::new(context, 2 * first.num_bytes(), "weights")?;
    let group = INTERLEAVE_ROWS * cols;
    let group_bytes = (group * first.dtype.size_bytes()) as u64;
    launcher.random_normal(memory.address(), first, group)?;
    launcher.random_normal(memory.address() + group_bytes, second, group)?;
    Ok(DeviceMatrix { storage: Storage::Device(memory), rows: 2 * rows, cols })
}

/// A matrix in pinned host memory that the device reads in place.
pub(super) fn host_matrix(
    context: &Arc<Context>,
    source: &HostTensor,
    dtype: Dtype,
) -> Result<DeviceMatrix> {
    same_dtype(source, dtype)?;
    let mut memory = PinnedMemory::new(context, source.bytes().len(), "the embedding table")?;
    memory.bytes_mut()[..source.bytes().len()].copy_from_slice(source.bytes());
    let address = memory.device_address()?;
    Ok(DeviceMatrix {
        storage: Storage::Host { address, _memory: memory },
        rows: source.rows(),
        cols: source.cols(),
    })
}

fn same_dtype(source: &HostTensor, dtype: Dtype) -> Result<()> {
    if source.dtype() == dtype {
        return Ok(());
    }
    let (have, want) = (source.dtype().name(), dtype.name());
    let reason = format!("holds a tensor in {have} among {want}: the CUDA backend wants one dtype");
    Err(Error::Argument { argument: "checkpoint", reason })
}

/// `data` as little-endian elements of `dtype`.
pub(super) fn encode(data: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => data.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F16 => data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}
