//! Device memory and pinned host memory, owned; and copies between them.
//!
//! All of it is taken when an engine is opened; no step allocates.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{Context, Stream, check};
use super::faults::{self, ALLOCATE, UPLOAD};
use crate::error::{Error, Result};

/// Rows of bytes in device memory: `height` of them, `width` bytes each, which begin `pitch` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) offset: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pitch: usize,
}

impl Rows {
    /// `len` bytes from `offset` on.
    pub(super) fn one(offset: usize, len: usize) -> Rows {
        Rows { offset, width: len, height: 1, pitch: len }
    }

    /// Bytes of all rows.
    pub(super) fn num_bytes(&self) -> usize {
        self.width * self.height
    }

    /// Where the last one ends.
    pub(super) fn end(&self) -> usize {
        self.offset + self.height.saturating_sub(1) * self.pitch + self.width
    }
}

/// Device memory as CUDA gave it.
struct Allocation {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
}

/// Bytes on a device: an allocation, or a part of one, which is freed with the last of its parts. Not
/// initialised unless it says so.
pub(super) struct DeviceMemory {
    allocation: Arc<Allocation>,
    address: sys::CUdeviceptr,
    len_bytes: usize,
}

impl DeviceMemory {
    /// `len_bytes` on the context's device; `Error::OutOfDeviceMemory` names `purpose`.
    pub(super) fn new(
        context: &Arc<Context>,
        len_bytes: usize,
        purpose: &'static str,
    ) -> Result<DeviceMemory> {
        context.enter()?;
        let mut address = 0;
        // CUDA refuses a length of 0.
        let result = faults::attempt(ALLOCATE, || {
            // SAFETY: writes one address.
            unsafe { sys::cuMemAlloc_v2(&mut address, len_bytes.max(16)) }
        });
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfDeviceMemory {
                device: format!("cuda:{}", context.device.index),
                purpose,
                needed_bytes: len_bytes as u64,
                available_bytes: context.memory().map_or(0, |(free, _)| free),
            });
        }
        check(result, ALLOCATE)?;
        let allocation = Arc::new(Allocation { context: Arc::clone(context), address });
        Ok(DeviceMemory { allocation, address, len_bytes })
    }

    /// The same, all bytes zero.
    pub(super) fn zeroed(
        stream: &Stream,
        len_bytes: usize,
        purpose: &'static str,
    ) -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(stream.context(), len_bytes, purpose)?;
        memory.clear(stream)?;
        Ok(memory)
    }

    /// Bytes `range` of it.
    pub(super) fn part(&self, range: Range<usize>) -> DeviceMemory {
        assert!(range.start <= range.end && range.end <= self.len_bytes, "outside the memory");
        DeviceMemory {
            allocation: Arc::clone(&self.allocation),
            address: self.address + range.start as u64,
            len_bytes: range.len(),
        }
    }

    /// Queues zeros for all of it.
    pub(super) fn clear(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the whole of an allocation that is alive; its users are in the same queue.
        let result = unsafe { sys::cuMemsetD8Async(self.address, 0, self.len_bytes, stream.raw()) };
        check(result, "clear device memory")
    }

    /// Queues `word` for all of its whole words.
    pub(super) fn fill(&self, stream: &Stream, word: u32) -> Result<()> {
        let words = self.len_bytes / 4;
        // SAFETY: the same.
        let result = unsafe { sys::cuMemsetD32Async(self.address, word, words, stream.raw()) };
        check(result, "fill device memory")
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Queues a copy of the bytes `range` of `from` to `offset` bytes into this memory. The pinned
    /// memory must not change until the stream has passed the copy.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        offset: usize,
        from: &PinnedMemory,
        range: Range<usize>,
    ) -> Result<()> {
        assert!(offset + range.len() <= self.len_bytes && range.end <= from.len_bytes);
        let to = self.address + offset as u64;
        let start = from.start.cast::<u8>().wrapping_add(range.start).cast();
        let result = faults::attempt(UPLOAD, || {
            // SAFETY: both ranges are inside their allocations (checked above).
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, start, range.len(), stream.raw()) }
        });
        check(result, UPLOAD)
    }

    /// Queues a copy of bytes that lie together in `from`, from `start` on, to `rows` of this memory. The
    /// pinned memory must not change until the stream has passed the copy.
    pub(super) fn upload_rows(
        &self,
        stream: &Stream,
        rows: Rows,
        from: &PinnedMemory,
        start: usize,
    ) -> Result<()> {
        assert!(rows.end() <= self.len_bytes && start + rows.num_bytes() <= from.len_bytes);
        assert!(rows.height < 2 || rows.pitch >= rows.width, "rows that overlap");
        if rows.num_bytes() == 0 {
            return Ok(());
        }
        let to = self.address + rows.offset as u64;
        let start = from.start.cast::<u8>().wrapping_add(start).cast::<c_void>();
        let result = faults::attempt(UPLOAD, || match rows.height {
            // SAFETY: both ranges are inside their allocations (checked above).
            1 => unsafe { sys::cuMemcpyHtoDAsync_v2(to, start, rows.width, stream.raw()) },
            _ => {
                let copy = strided_copy(to, start, &rows);
                // SAFETY: the same, of every row.
                unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream.raw()) }
            }
        });
        check(result, UPLOAD)
    }

    /// Queues a copy of the first `len_bytes` to pinned memory.
    pub(super) fn download(
        &self,
        stream: &Stream,
        to: &mut PinnedMemory,
        len_bytes: usize,
    ) -> Result<()> {
        assert!(len_bytes <= self.len_bytes && len_bytes <= to.len_bytes);
        // SAFETY: both ranges are inside their allocations (checked above).
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.start.cast(), self.address, len_bytes, stream.raw())
        };
        check(result, "copy from the device")
    }
}

/// Rows that lie together at `start` on the host, to where `rows` are from device address `to` on.
fn strided_copy(to: sys::CUdeviceptr, start: *const c_void, rows: &Rows) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: start,
        srcDevice: 0,
        srcArray: null_mut(),
        srcPitch: rows.width,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: null_mut(),
        dstDevice: to,
        dstArray: null_mut(),
        dstPitch: rows.pitch,
        WidthInBytes: rows.width,
        Height: rows.height,
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Whatever still uses the memory, where a load was given up half-way.
        self.context.finish();
        // SAFETY: allocated here, freed once. In a poisoned context the call fails, and the memory
        // goes with the context.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Page-locked host memory, mapped into the device's address space. Zero at first.
pub(super) struct PinnedMemory {
    context: Arc<Context>,
    start: *mut c_void,
    len_bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// `len_bytes` of it; `Error::OutOfHostMemory` names `purpose`.
    pub(super) fn new(
        context: &Arc<Context>,
        len_bytes: usize,
        purpose: &'static str,
    ) -> Result<PinnedMemory> {
        context.enter()?;
        let mut start = null_mut();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: writes one address.
        let result = unsafe { sys::cuMemHostAlloc(&mut start, len_bytes.max(16), flags) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfHostMemory {
                purpose,
                needed_bytes: len_bytes as u64,
                available_bytes: None,
            });
        }
        check(result, "allocate pinned memory")?;
        let mut memory = PinnedMemory { context: Arc::clone(context), start, len_bytes };
        memory.bytes_mut().fill(0);
        Ok(memory)
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Its address on the device.
    pub(super) fn device_address(&self) -> Result<u64> {
        let mut address = 0;
        // SAFETY: writes one address; the memory was allocated as mapped.
        let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.start, 0) };
        check(result, "map pinned memory")?;
        Ok(address)
    }

    /// The memory. No copy from or to it may be under way.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this length, initialised in `new`, borrowed with self.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len_bytes) }
    }

    /// The first `len` elements as 32-bit words.
    pub(super) fn words(&self, len: usize) -> &[u32] {
        assert!(len * 4 <= self.len_bytes);
        // SAFETY: page-aligned, initialised, long enough.
        unsafe { std::slice::from_raw_parts(self.start.cast(), len) }
    }

    /// The same, which the device and any thread may read and write at any time.
    pub(super) fn atomics(&self, len: usize) -> &[AtomicU32] {
        assert!(len * 4 <= self.len_bytes);
        // SAFETY: page-aligned, initialised, long enough; an AtomicU32 is a u32 by its layout, and
        // whoever uses these uses nothing else of the memory.
        unsafe { std::slice::from_raw_parts(self.start.cast(), len) }
    }

    /// The same, to be written.
    pub(super) fn words_mut(&mut self, len: usize) -> &mut [u32] {
        assert!(len * 4 <= self.len_bytes);
        // SAFETY: page-aligned, initialised, long enough.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), len) }
    }
}

impl AsMut<[u8]> for PinnedMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated here, freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.start) };
    }
}
