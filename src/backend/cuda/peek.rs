//! What tests and measurements look at and no step does: contents of activation buffers, from and to
//! the host; how products are computed; what quantised weights have become.

use super::buffer::{DeviceBuffer, GateUp, PackedMatrix, Storage, Weight};
use super::memory::{DeviceMemory, PinnedMemory};
use super::{Cuda, load};
use crate::error::Result;

impl Cuda {
    /// Puts `data` `[rows, cols]` into `buffer`, rounded to its precision. For tests.
    pub fn write(&mut self, buffer: &mut DeviceBuffer, data: &[f32]) -> Result<()> {
        buffer.set_rows(data.len() / buffer.cols());
        let mut host = PinnedMemory::new(self.context(), data.len() * 4, "a buffer's contents")?;
        self.launcher.flush()?;
        let bytes = load::encode(data, buffer.element(self.settings.dtype));
        host.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        buffer.memory.upload(&self.launcher.stream, 0, &host, 0..bytes.len())?;
        self.launcher.stream.wait()
    }

    /// A line for each product that cuBLAS has computed: its shape, which algorithm was chosen, and the
    /// times that chose it. For measurements.
    pub fn products(&self) -> Vec<String> {
        self.gemm.report()
    }

    /// The rows in use of `buffer`. For tests.
    pub fn read(&self, buffer: &DeviceBuffer) -> Result<Vec<f32>> {
        let dtype = buffer.element(self.settings.dtype);
        self.launcher.flush()?;
        let len = buffer.rows() * buffer.cols() * dtype.size_bytes();
        let mut host = PinnedMemory::new(self.context(), len, "a buffer's contents")?;
        buffer.memory.download(&self.launcher.stream, &mut host, len)?;
        self.launcher.stream.wait()?;
        Ok(crate::tensor::decode_f32(dtype, &host.bytes_mut()[..len]))
    }

    /// The packed bytes of a quantised matrix. For tests.
    pub fn packed_bytes(&self, weight: &Weight) -> Result<Vec<u8>> {
        self.bytes_of(&packed(weight).memory)
    }

    /// The bytes of a matrix of 16-bit elements in device memory. For tests.
    pub fn plain_bytes(&self, weight: &Weight) -> Result<Vec<u8>> {
        match &weight.plain().storage {
            Storage::Device(memory) => self.bytes_of(memory),
            Storage::Host { .. } => unreachable!("a test of a matrix on the host"),
        }
    }

    /// Which input each packed one is, if another than its place says. For tests.
    pub fn input_order(&self, weight: &Weight) -> Result<Option<Vec<u32>>> {
        let Some(order) = &packed(weight).order else { return Ok(None) };
        let bytes = self.bytes_of(order)?;
        let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(words.collect()))
    }

    /// A quantised matrix as it is dequantised on the device: `[rows, packed inputs]`. For tests.
    pub fn dequantised(&mut self, weight: &Weight) -> Result<Vec<f32>> {
        let Cuda { launcher, quant, .. } = self;
        let form = &packed(weight).form;
        let len = form.rows * form.cols * 2;
        let mut host = PinnedMemory::new(launcher.stream.context(), len, "a matrix")?;
        if let Some(quant) = quant {
            quant.dequantise(launcher, packed(weight))?;
            quant.dense_memory().download(&launcher.stream, &mut host, len)?;
        }
        launcher.stream.wait()?;
        Ok(crate::tensor::decode_f32(crate::tensor::Dtype::F16, host.bytes_mut()))
    }

    fn bytes_of(&self, memory: &DeviceMemory) -> Result<Vec<u8>> {
        let len = memory.len_bytes();
        let mut host = PinnedMemory::new(self.context(), len, "a matrix")?;
        memory.download(&self.launcher.stream, &mut host, len)?;
        self.launcher.stream.wait()?;
        Ok(host.bytes_mut().to_vec())
    }
}

impl GateUp {
    /// Both as one matrix.
    pub fn matrix(&self) -> &Weight {
        &self.0
    }

    /// The same, owned.
    pub fn into_matrix(self) -> Weight {
        self.0
    }
}

fn packed(weight: &Weight) -> &PackedMatrix {
    match weight {
        Weight::Packed(matrix) => matrix,
        Weight::Plain(_) => unreachable!("a test of a plain matrix"),
    }
}
