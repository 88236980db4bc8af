//! Zeroed memory in huge pages, for what is read as a stream: small pages cost an address lookup
//! every 4 KiB, and the prefetchers of the core stop at their ends.

use std::marker::PhantomData;

use memmap2::MmapMut;

use super::element::Stored;
use crate::error::{Error, Result};

/// `len` elements, zero at first. The operating system hands out its pages as they are first used:
/// a large cache costs nothing until it fills.
pub(super) struct Huge<T: Stored> {
    memory: MmapMut,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Stored> Huge<T> {
    /// `purpose` is what an error says the memory was for.
    pub(super) fn zeroed(len: usize, purpose: &'static str) -> Result<Huge<T>> {
        let bytes = len.saturating_mul(size_of::<T>());
        // A map of no bytes is an error to the system.
        let memory = MmapMut::map_anon(bytes.max(1)).map_err(|_| Error::OutOfHostMemory {
            purpose,
            needed_bytes: bytes as u64,
            available_bytes: None,
        })?;
        #[cfg(target_os = "linux")]
        // Only speed depends on it: some systems are built without huge pages.
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Huge { memory, len, element: PhantomData })
    }

    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: the map holds `len` elements, aligned to a page, and every bit pattern is a `T`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        self.memory.as_mut_ptr().cast()
    }
}
