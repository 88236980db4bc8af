//! Weights from host memory to the device, in the form that products want them: queued in the uploader,
//! which brings them. Quantised ones are put together in `pack`.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Cuda;
use super::buffer::{DeviceMatrix, DeviceVector, Storage, half_offset};
use super::launch::Launcher;
use super::memory::{DeviceMemory, PinnedMemory};
use super::upload::{Target, Uploader};
use crate::backend::random::Normal;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

/// Rows of gate, then of up, that lie side by side.
const INTERLEAVE_ROWS: usize = 8;

impl Uploader {
    /// A matrix as it is.
    pub(super) fn matrix(
        &mut self,
        launcher: &Launcher,
        source: &HostTensor,
        dtype: Dtype,
    ) -> Result<DeviceMatrix> {
        same_dtype(source, dtype)?;
        let len = source.span().num_bytes();
        let memory = Arc::new(self.weight_memory(len)?);
        self.copy(source.span(), &memory, Target::one(0, len))?;
        self.settle(launcher)?;
        Ok(device_matrix(memory, source.rows(), source.cols()))
    }

    /// Two matrices of one shape, rows interleaved in eights, the first one's first.
    pub(super) fn interleaved(
        &mut self,
        launcher: &Launcher,
        (first, second): (&HostTensor, &HostTensor),
        dtype: Dtype,
    ) -> Result<DeviceMatrix> {
        same_dtype(first, dtype)?;
        same_dtype(second, dtype)?;
        let (rows, cols) = (first.rows(), first.cols());
        assert!(
            rows.is_multiple_of(INTERLEAVE_ROWS) && (second.rows(), second.cols()) == (rows, cols)
        );
        let width = INTERLEAVE_ROWS * cols * dtype.size_bytes();
        let len = 2 * first.span().num_bytes();
        let memory = Arc::new(self.weight_memory(len)?);
        for (source, offset) in [(first, 0), (second, width)] {
            self.copy(source.span(), &memory, Target { offset, width, pitch: 2 * width })?;
        }
        self.settle(launcher)?;
        Ok(device_matrix(memory, 2 * rows, cols))
    }

    /// A vector as f32 and in `dtype`; on its way when this returns.
    pub(super) fn vector(
        &mut self,
        launcher: &Launcher,
        source: &HostTensor,
        dtype: Dtype,
    ) -> Result<DeviceVector> {
        let len = source.rows() * source.cols();
        let values = source.to_f32();
        let mut bytes = encode(&values, Dtype::F32);
        bytes.resize(half_offset(len), 0);
        // The second copy is exact where the vector is stored in `dtype`, as published ones are.
        bytes.extend(encode(&values, dtype));
        let memory = self.weight_memory(bytes.len())?;
        self.send_now(launcher, &bytes, &memory, 0)?;
        Ok(DeviceVector { memory, len })
    }

    /// A matrix of random numbers, made on the device.
    pub(super) fn random_matrix(
        &mut self,
        launcher: &Launcher,
        normal: &Normal,
    ) -> Result<DeviceMatrix> {
        let memory = self.weight_memory(normal.num_bytes())?;
        launcher.random_normal(memory.address(), normal, 0)?;
        Ok(device_matrix(Arc::new(memory), normal.rows, normal.cols))
    }

    /// Two of one shape, interleaved as `interleaved` has them.
    pub(super) fn random_interleaved(
        &mut self,
        launcher: &Launcher,
        (first, second): (&Normal, &Normal),
    ) -> Result<DeviceMatrix> {
        let (rows, cols) = (first.rows, first.cols);
        assert!(rows.is_multiple_of(INTERLEAVE_ROWS) && (second.rows, second.cols) == (rows, cols));
        let memory = self.weight_memory(2 * first.num_bytes())?;
        let group = INTERLEAVE_ROWS * cols;
        let group_bytes = (group * first.dtype.size_bytes()) as u64;
        launcher.random_normal(memory.address(), first, group)?;
        launcher.random_normal(memory.address() + group_bytes, second, group)?;
        Ok(device_matrix(Arc::new(memory), 2 * rows, cols))
    }

    /// A matrix in pinned host memory that the device reads in place.
    pub(super) fn host_matrix(
        &mut self,
        launcher: &Launcher,
        source: &HostTensor,
        dtype: Dtype,
    ) -> Result<DeviceMatrix> {
        same_dtype(source, dtype)?;
        let len = source.span().num_bytes();
        let memory = PinnedMemory::new(launcher.stream.context(), len, "the embedding table")?;
        let address = memory.device_address()?;
        let memory = Arc::new(Mutex::new(memory));
        self.keep(source.span(), &memory)?;
        self.settle(launcher)?;
        let storage = Storage::Host { address, _memory: memory };
        Ok(DeviceMatrix { storage, rows: source.rows(), cols: source.cols() })
    }
}

impl Cuda {
    /// The uploader, what it queues its work with, and the dtype of weights.
    pub(super) fn uploader(&mut self) -> Result<(&mut Uploader, &Launcher, Dtype)> {
        let Cuda { uploader, launcher, settings, .. } = self;
        Ok((uploader.as_mut().ok_or_else(late_weights)?, launcher, settings.dtype))
    }

    /// All weights are in place, and what loading took beside them goes back.
    pub(super) fn end_load(&mut self) -> Result<()> {
        if let Some(uploader) = &mut self.uploader {
            uploader.finish(&self.launcher)?;
            self.load_report = uploader.report();
        }
        self.launcher.stream.wait()?;
        self.uploader = None;
        Ok(())
    }
}

fn device_matrix(memory: Arc<DeviceMemory>, rows: usize, cols: usize) -> DeviceMatrix {
    DeviceMatrix { storage: Storage::Device(memory), rows, cols }
}

/// The error of weights that come when the cache is made.
pub(super) fn late_weights() -> Error {
    let reason = "a bug in the library: weights after loading".to_string();
    Error::EngineFailed { reason }
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
