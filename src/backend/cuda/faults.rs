//! Failures on demand, for the tests: the n-th operation of a kind is not done, and reported as if
//! CUDA had refused it. Only with the cargo feature `test-hooks`, which no release has.

use cudarc::driver::sys::CUresult;

#[cfg(feature = "test-hooks")]
pub use armed::{arm, disarm};

/// Operations that can be made to fail, as errors name them.
pub const ALLOCATE: &str = "allocate device memory";
/// Launching one kernel of ours.
pub const LAUNCH: &str = "launch a kernel";
/// Launching one of cuBLAS's.
pub const MULTIPLY: &str = "multiply matrices";
/// Copying to the device.
pub const UPLOAD: &str = "copy to the device";
/// Beginning to record a step.
pub const RECORD: &str = "record a step";
/// Making a graph of what was recorded.
pub const INSTANTIATE: &str = "make a step's graph";
/// Launching a recorded step.
pub const REPLAY: &str = "launch a step";

/// Must this `operation` fail?
pub(super) fn is_due(operation: &'static str) -> bool {
    #[cfg(feature = "test-hooks")]
    return armed::is_due(operation);
    #[cfg(not(feature = "test-hooks"))]
    {
        let _ = operation;
        false
    }
}

/// Does `operation` by `call`, unless it must fail.
pub(super) fn attempt(operation: &'static str, call: impl FnOnce() -> CUresult) -> CUresult {
    match is_due(operation) {
        false => call(),
        true if operation == ALLOCATE => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        // It says that this launch cannot be done, and leaves the context as it was.
        true => CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    }
}

#[cfg(feature = "test-hooks")]
mod armed {
    use std::sync::atomic::{AtomicBool, Ordering};

    use parking_lot::Mutex;

    /// Is one to come?
    static ARMED: AtomicBool = AtomicBool::new(false);
    static NEXT: Mutex<Option<Fault>> = Mutex::new(None);

    #[derive(Clone, Copy)]
    struct Fault {
        operation: &'static str,
        /// How many of its kind are done before it.
        spared: u32,
    }

    /// The `nth` `operation` from now (1: the next one) in this process will fail, once. It replaces what
    /// was armed before.
    pub fn arm(operation: &'static str, nth: u32) {
        *NEXT.lock() = Some(Fault { operation, spared: nth.saturating_sub(1) });
        ARMED.store(true, Ordering::Release);
    }

    /// Whether what was armed has come; no more will.
    pub fn disarm() -> bool {
        ARMED.store(false, Ordering::Release);
        NEXT.lock().take().is_none()
    }

    /// Must this `operation` fail?
    pub(in super::super) fn is_due(operation: &'static str) -> bool {
        ARMED.load(Ordering::Relaxed) && strike(operation)
    }

    #[cold]
    fn strike(operation: &'static str) -> bool {
        let mut next = NEXT.lock();
        match next.as_mut().filter(|fault| fault.operation == operation) {
            None => false,
            Some(fault) if fault.spared > 0 => {
                fault.spared -= 1;
                false
            }
            Some(_) => {
                *next = None;
                true
            }
        }
    }
}

#[cfg(all(test, feature = "test-hooks"))]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_armed_fails_once() {
        arm(LAUNCH, 2);
        let found = [LAUNCH, REPLAY, LAUNCH, LAUNCH].map(is_due);
        assert_eq!(found, [false, false, true, false]);
        assert!(disarm());
        arm(REPLAY, 1);
        assert!(!is_due(LAUNCH) && !disarm() && !is_due(REPLAY));
        arm(ALLOCATE, 1);
        let success = || CUresult::CUDA_SUCCESS;
        assert_eq!(attempt(ALLOCATE, success), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(attempt(ALLOCATE, success), CUresult::CUDA_SUCCESS);
        assert!(disarm());
    }
}
