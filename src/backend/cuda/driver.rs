//! The CUDA driver, checked: is it there, which devices, a context of our own, a stream, events.
//!
//! Libraries are opened at run time. The binding crate panics where one is missing, so presence is
//! probed before its first call. An engine makes a context of its own rather than taking the
//! device's primary one, so that neither disturbs the other's settings and memory, and a reset of one is
//! none of the other's. A fault inside a kernel goes further than a context: after it CUDA refuses all
//! new work in the process (seen on an H200, 2026-11-24). It is a status, and the CPU goes on.

use std::ffi::{CStr, c_int};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::cublaslt;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::error::{Error, Result};

/// The oldest driver that runs what the kernels are compiled with.
const MIN_DRIVER: c_int = 13_000;

const OUT_OF_MEMORY: i32 = CUresult::CUDA_ERROR_OUT_OF_MEMORY as i32;

/// `Ok` when a driver call succeeded. `what` says what was being done.
pub(super) fn check(result: CUresult, what: &'static str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Device { operation: what, code: result as i32, reason: describe(result) })
}

/// CUDA's own words for a result.
fn describe(result: CUresult) -> String {
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: both calls write a pointer to a static string, or fail and leave NULL.
    let found = unsafe {
        sys::cuGetErrorName(result, &mut name) == CUresult::CUDA_SUCCESS
            && sys::cuGetErrorString(result, &mut text) == CUresult::CUDA_SUCCESS
    };
    if !found || name.is_null() || text.is_null() {
        return format!("CUDA error {}", result as i32);
    }
    // SAFETY: CUDA's static, NUL-terminated strings.
    let (name, text) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(text)) };
    format!("{}: {}", name.to_string_lossy(), text.to_string_lossy())
}

/// Why device `index` cannot be used, or nothing if it can.
pub(super) fn no_device(index: usize, reason: impl Into<String>) -> Error {
    Error::NoDevice { device: format!("cuda:{index}"), reason: reason.into() }
}

/// A CUDA device that can be used.
#[derive(Debug, Clone)]
pub struct Device {
    /// CUDA's index of it.
    pub index: usize,
    /// As its maker calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Shared memory that a block can have.
    pub block_shared_bytes: usize,
    /// Version of the driver, as CUDA writes it: 1000 * major + 10 * minor.
    pub driver: u32,
    handle: sys::CUdevice,
}

impl Device {
    /// Device `index`, if driver, libraries and the device itself are there and new enough;
    /// `Error::NoDevice` says which is not.
    pub fn open(index: usize) -> Result<Device> {
        // SAFETY: loads libraries (their initialisers run) and asks for nothing else.
        let (cuda, blas) = unsafe { (sys::is_culib_present(), cublaslt::sys::is_culib_present()) };
        if !cuda {
            let reason = "libcuda.so.1 does not load: no NVIDIA driver here (a container must be \
                          started with its GPUs)";
            return Err(no_device(index, reason));
        }
        let driver = driver_version(index)?;
        if driver < MIN_DRIVER {
            let (have, want) = (version(driver), version(MIN_DRIVER));
            let reason = format!("the driver supports CUDA {have}, {want} or newer is needed");
            return Err(no_device(index, reason));
        }
        if !blas {
            let reason = "cuBLAS (libcublasLt) is not on the library path; the CUDA toolkit, PyTorch \
                          and the PyPI package nvidia-cublas have it";
            return Err(no_device(index, reason));
        }
        let handle = device_handle(index)?;
        let attribute = |which| attribute(handle, which);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let (major, minor) = capability;
            let reason = format!("its compute capability is {major}.{minor}, 8.0 is the least");
            return Err(no_device(index, reason));
        }
        Ok(Device {
            index,
            name: device_name(handle)?,
            capability,
            num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            block_shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )? as usize,
            driver: driver as u32,
            handle,
        })
    }
}

impl Device {
    /// A new context on it; none where there is no room for one.
    pub fn context(&self) -> Result<Option<Arc<Context>>> {
        match Context::new(self.clone()) {
            Ok(context) => Ok(Some(context)),
            Err(Error::Device { code, .. }) if code == OUT_OF_MEMORY => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes of its memory that a new context finds free.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context()?.map_or(Ok(0), |context| context.free_bytes())
    }

    /// Can it read and write `other`'s memory?
    pub(super) fn reaches(&self, other: &Device) -> Result<bool> {
        let mut can = 0;
        // SAFETY: writes one integer about two devices that exist.
        let result = unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.handle, other.handle) };
        check(result, "ask whether devices reach each other")?;
        Ok(can != 0)
    }
}

fn version(number: c_int) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

fn driver_version(index: usize) -> Result<c_int> {
    let mut number = 0;
    // SAFETY: writes one integer; needs no initialisation.
    let result = unsafe { sys::cuDriverGetVersion(&mut number) };
    check(result, "ask for the driver's version").map_err(|e| no_device(index, e.to_string()))?;
    Ok(number)
}

fn device_handle(index: usize) -> Result<sys::CUdevice> {
    // SAFETY: initialises the driver; may be called again.
    let result = unsafe { sys::cuInit(0) };
    check(result, "initialise CUDA").map_err(|e| no_device(index, e.to_string()))?;
    let (mut count, mut handle) = (0, 0);
    // SAFETY: writes one integer.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "count devices")?;
    if index >= count as usize {
        return Err(no_device(index, format!("CUDA devices here: {count}, numbered from 0")));
    }
    // SAFETY: writes one handle; the index is in range.
    check(unsafe { sys::cuDeviceGet(&mut handle, index as c_int) }, "open a device")?;
    Ok(handle)
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: writes one integer about a device that exists.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }, "ask for an attribute")?;
    Ok(value as u32)
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut bytes = [0_u8; 256];
    // SAFETY: writes at most 256 bytes, NUL included.
    let result =
        unsafe { sys::cuDeviceGetName(bytes.as_mut_ptr().cast(), bytes.len() as c_int, device) };
    check(result, "ask for a device's name")?;
    let name = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

/// A context of this library's own on one device. It ends with the last `Arc`.
pub struct Context {
    pub(super) device: Device,
    handle: sys::CUcontext,
}

// SAFETY: a CUDA context may be current on any thread, on several at a time.
unsafe impl Send for Context {}
// SAFETY: as above; its handle never changes.
unsafe impl Sync for Context {}

impl Context {
    /// Makes a context on `device`. The calling thread's own stays as it was (see `CallerContext`).
    pub fn new(device: Device) -> Result<Arc<Context>> {
        let mut handle = null_mut();
        // Waiting threads sleep: a library must not burn a core of its host's.
        let flags = sys::CUctx_flags_enum::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: writes one handle; the device exists.
        let result = unsafe { sys::cuCtxCreate_v4(&mut handle, null_mut(), flags, device.handle) };
        check(result, "make a context")?;
        let mut made = null_mut();
        // SAFETY: takes the context made just now off this thread's stack again.
        check(unsafe { sys::cuCtxPopCurrent_v2(&mut made) }, "leave the new context")?;
        Ok(Arc::new(Context { device, handle }))
    }

    pub(super) fn raw(&self) -> sys::CUcontext {
        self.handle
    }

    /// Has the calling thread use this context: before any other call on it.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the handle lives as long as self.
        check(unsafe { sys::cuCtxSetCurrent(self.handle) }, "enter the context")
    }

    /// Waits for all work in it, whatever becomes of that: before memory is freed.
    pub(super) fn finish(&self) {
        let _ = self.enter();
        // SAFETY: only waits; the context is current.
        let _ = unsafe { sys::cuCtxSynchronize() };
    }

    /// Free bytes of device memory.
    pub fn free_bytes(&self) -> Result<u64> {
        Ok(self.memory()?.0)
    }

    /// Free and total bytes of device memory.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers about the current context's device.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "ask for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing made in it is left: everything holds an Arc. A poisoned context reports
        // an error here, which says nothing new.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.handle) };
    }
}

/// Gives a thread of the host program its own CUDA context back when dropped. Whatever enters a context
/// of ours on such a thread holds one.
pub struct CallerContext {
    /// What the caller had; `None` where the driver is not loaded.
    saved: Option<sys::CUcontext>,
}

impl CallerContext {
    /// Notes the calling thread's context.
    pub fn save() -> CallerContext {
        CallerContext { saved: current_context() }
    }

    /// Runs `work`, which is the caller's, in the caller's context.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let ours = current_context();
        make_current(self.saved);
        let result = work();
        make_current(ours);
        result
    }
}

impl Drop for CallerContext {
    fn drop(&mut self) {
        make_current(self.saved);
    }
}

fn make_current(context: Option<sys::CUcontext>) {
    if let Some(context) = context {
        // SAFETY: a context that was current on this thread before, or none.
        let _ = unsafe { sys::cuCtxSetCurrent(context) };
    }
}

/// The calling thread's context (NULL: none); nothing where there is no usable driver.
fn current_context() -> Option<sys::CUcontext> {
    // SAFETY: loads the library if it is there.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut context = null_mut();
    // SAFETY: writes one handle; before the driver is initialised it fails, and there is none.
    let result = unsafe { sys::cuCtxGetCurrent(&mut context) };
    Some(if result == CUresult::CUDA_SUCCESS { context } else { null_mut() })
}

/// A mark in a stream's queue, to sleep until it is reached; the device notes when that is.
pub(super) struct Mark {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Mark {}

impl Mark {
    pub(super) fn new(context: &Arc<Context>) -> Result<Mark> {
        let mut event = null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32;
        context.enter()?;
        // SAFETY: writes one handle.
        check(unsafe { sys::cuEventCreate(&mut event, flags) }, "make an event")?;
        Ok(Mark { context: Arc::clone(context), event })
    }

    /// Puts it behind all work so far.
    pub(super) fn set(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are alive.
        check(unsafe { sys::cuEventRecord(self.event, stream.handle) }, "record an event")
    }

    /// Sleeps until all work before it is done; the first error of that work.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the handle lives as long as self.
        check(unsafe { sys::cuEventSynchronize(self.event) }, "run a step")
    }

    /// Is all work before it done? Also if it was never set.
    pub(super) fn is_reached(&self) -> Result<bool> {
        // SAFETY: the handle lives as long as self.
        let result = unsafe { sys::cuEventQuery(self.event) };
        if result == CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        check(result, "run a step").map(|()| true)
    }

    /// Microseconds of the device's clock since it reached `earlier`. Both have been waited for.
    pub(super) fn us_since(&self, earlier: &Mark) -> Result<f32> {
        let mut elapsed_ms = 0.0;
        // SAFETY: both handles are alive; writes one number.
        let result =
            unsafe { sys::cuEventElapsedTime_v2(&mut elapsed_ms, earlier.event, self.event) };
        check(result, "time work")?;
        Ok(elapsed_ms * 1000.0)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made here, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

/// A queue of work on a device; its work runs in order.
pub(super) struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
    /// The end of the queue, for `wait`.
    end: Mark,
}

// SAFETY: a stream may be used from any thread, by one at a time (`&mut` or a single owner).
unsafe impl Send for Stream {}

impl Stream {
    /// A new, empty queue.
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream> {
        let end = Mark::new(context)?;
        let mut handle = null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the context is current.
        check(unsafe { sys::cuStreamCreate(&mut handle, flags) }, "make a stream")?;
        Ok(Stream { context: Arc::clone(context), handle, end })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.handle
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whatever is queued from now on begins after all that stood before `mark` when it was last set, on
    /// any stream; at once if it never was.
    pub(super) fn after(&self, mark: &Mark) -> Result<()> {
        // SAFETY: both handles are alive; CUDA keeps what it needs of the event.
        let result = unsafe { sys::cuStreamWaitEvent(self.handle, mark.event, 0) };
        check(result, "order two streams")
    }

    /// Sleeps until all work so far is done; the first error of that work.
    pub(super) fn wait(&self) -> Result<()> {
        self.end.set(self)?;
        self.end.wait()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made here; work that is still queued is finished by CUDA first.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.handle);
            let _ = sys::cuStreamDestroy_v2(self.handle);
        }
    }
}
