//! Fault injection for the tests; compiled only with the cargo feature `test-hooks`, which no
//! release has. A test arms one export by name, and its next call panics inside the guard.

use std::ffi::{CStr, c_char};
use std::sync::Mutex;

static ARMED: Mutex<Option<String>> = Mutex::new(None);

/// Makes the next call of the export called `name` (NUL-terminated) panic. NULL disarms.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_test_panic(name: *const c_char) {
    let name = (!name.is_null()).then(|| {
        // SAFETY: the test passes a NUL-terminated string.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    });
    *ARMED.lock().unwrap_or_else(|poison| poison.into_inner()) = name;
}

/// Panics if `name` is armed, and disarms it.
#[allow(clippy::panic, reason = "the fault that is injected")]
pub(super) fn trip(name: &str) {
    let mut armed = ARMED.lock().unwrap_or_else(|poison| poison.into_inner());
    if armed.as_deref() == Some(name) {
        *armed = None;
        drop(armed);
        std::panic::panic_any(format!("injected into {name}"));
    }
}
