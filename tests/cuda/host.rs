//! The host program's own use of CUDA, beside the library's: a context on device 0, and what is current.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUcontext, CUresult};

/// A context of the host program's, current on the thread that made it. It ends when dropped.
pub(crate) struct HostContext(CUcontext);

impl HostContext {
    /// Makes one. There must be a device 0, and the driver initialised.
    pub(crate) fn new() -> HostContext {
        let mut context = null_mut();
        // SAFETY: writes one handle; device 0 is there.
        succeeded(unsafe { sys::cuCtxCreate_v4(&mut context, null_mut(), 0, 0) });
        assert!(!context.is_null());
        HostContext(context)
    }

    pub(crate) fn raw(&self) -> CUcontext {
        self.0
    }

    /// Bytes that the device has free.
    pub(crate) fn free_bytes(&self) -> u64 {
        assert_eq!(current(), self.0, "another context is current");
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers about the current context's device.
        succeeded(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) });
        free as u64
    }

    /// Allocates so many bytes, which go with the context.
    pub(crate) fn allocate(&self, len_bytes: usize) {
        let mut address = 0;
        // SAFETY: writes one address.
        succeeded(unsafe { sys::cuMemAlloc_v2(&mut address, len_bytes) });
    }
}

impl Drop for HostContext {
    fn drop(&mut self) {
        // SAFETY: made in `new`, not used any more; it ends being current, too.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.0) };
    }
}

/// The calling thread's context; NULL if it has none.
pub(crate) fn current() -> CUcontext {
    let mut context = null_mut();
    // SAFETY: writes one handle; the driver is initialised.
    succeeded(unsafe { sys::cuCtxGetCurrent(&mut context) });
    context
}

fn succeeded(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}
