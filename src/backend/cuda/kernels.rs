//! The compiled kernels: fatbins inside the library, loaded into a context, found by name.

use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};

use super::driver::{Context, check, no_device};
use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One kernel, ready to be launched.
#[derive(Clone, Copy)]
pub(super) struct Kernel(pub(super) sys::CUfunction);

// SAFETY: a handle that any thread may use with its context.
unsafe impl Send for Kernel {}
// SAFETY: as above; it never changes.
unsafe impl Sync for Kernel {}

/// Every kernel of the library, in one context.
pub(super) struct Kernels {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<String, sys::CUfunction>,
    /// The loaded code was compiled for Hopper (and not, say, from PTX of an older target).
    is_hopper: bool,
}

// SAFETY: modules and functions are handles that any thread may use with their context.
unsafe impl Send for Kernels {}

impl Kernels {
    /// Loads all fatbins. `Error::NoDevice` where none of them has code that the device can run.
    pub(super) fn load(context: &Arc<Context>) -> Result<Kernels> {
        context.enter()?;
        let mut kernels = Kernels {
            context: Arc::clone(context),
            modules: Vec::new(),
            functions: HashMap::new(),
            is_hopper: context.device.capability.0 == 9,
        };
        for (_, fatbin) in FATBINS {
            kernels.load_module(fatbin)?;
        }
        Ok(kernels)
    }

    fn load_module(&mut self, fatbin: &'static [u8]) -> Result<()> {
        let mut module = null_mut();
        // SAFETY: a fatbin that nvcc wrote, in memory for ever; writes one handle.
        let result = unsafe { sys::cuModuleLoadData(&mut module, fatbin.as_ptr().cast()) };
        check(result, "load kernels").map_err(|error| {
            no_device(self.context.device.index, format!("its kernels do not load: {error}"))
        })?;
        self.modules.push(module);
        let mut count = 0;
        // SAFETY: writes one integer about a module just loaded.
        check(unsafe { sys::cuModuleGetFunctionCount(&mut count, module) }, "count kernels")?;
        let mut functions = vec![null_mut(); count as usize];
        // SAFETY: writes `count` handles into a vector of that length.
        let result =
            unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) };
        check(result, "list kernels")?;
        for function in functions {
            self.add(function)?;
        }
        Ok(())
    }

    fn add(&mut self, function: sys::CUfunction) -> Result<()> {
        let mut name = std::ptr::null();
        // SAFETY: writes a pointer to the module's own string.
        check(unsafe { sys::cuFuncGetName(&mut name, function) }, "name a kernel")?;
        // SAFETY: NUL-terminated, alive as long as the module.
        let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: forces a lazily loaded function to be loaded now, so that no step pays for it.
        check(unsafe { sys::cuFuncLoad(function) }, "load a kernel")?;
        let mut ptx = 0;
        let which = Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
        // SAFETY: writes one integer about a loaded function.
        check(unsafe { sys::cuFuncGetAttribute(&mut ptx, which, function) }, "ask of a kernel")?;
        self.is_hopper &= ptx >= 90;
        self.functions.insert(name, function);
        Ok(())
    }

    /// Has this context code that uses Hopper's own instructions?
    pub(super) fn is_hopper(&self) -> bool {
        self.is_hopper
    }

    /// The kernel called `name`, allowed `shared_bytes` of dynamic shared memory.
    pub(super) fn get(&self, name: &str, shared_bytes: usize) -> Result<Kernel> {
        let function = *self.functions.get(name).ok_or_else(|| Error::EngineFailed {
            reason: format!("a bug in the library: no kernel `{name}`"),
        })?;
        if shared_bytes > 48 << 10 {
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a loaded function of this context.
            let result = unsafe { sys::cuFuncSetAttribute(function, which, shared_bytes as i32) };
            check(result, "give a kernel shared memory")?;
        }
        Ok(Kernel(function))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _ = self.context.enter();
        for module in self.modules.drain(..) {
            // SAFETY: loaded here, unloaded once, after the stream that used it was waited for.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}
