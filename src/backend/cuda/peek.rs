//! What tests and measurements look at and no step does: contents of activation buffers, from and to
//! the host; how products are computed.

use super::buffer::DeviceBuffer;
use super::memory::PinnedMemory;
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
}
