//! `qwen_error`: an owned error with a code, a sentence and detail JSON.

use std::ffi::{CString, c_char};

use super::arguments::free;
use super::guard::guard_value;
use crate::error::{Error, status};

/// Why a call failed. Made by the library where a call was given a place for it, owned by the
/// caller, immutable: any thread may read it. Free it with qwen_error_free.
pub struct qwen_error {
    code: i32,
    message: CString,
    detail: CString,
}

impl qwen_error {
    /// The C object of `error`.
    pub(super) fn new(error: &Error) -> qwen_error {
        qwen_error {
            code: error.status(),
            message: c_string(error.to_string()),
            detail: c_string(error.detail().to_string()),
        }
    }

    /// Gives the object of `error` to the caller.
    pub(super) fn into_raw(error: Error) -> *mut qwen_error {
        Box::into_raw(Box::new(qwen_error::new(&error)))
    }
}

/// `text` with a NUL at its end; inner NULs, which only a caller's own text can bring, are shown.
fn c_string(text: String) -> CString {
    CString::new(text).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0");
        CString::new(text).unwrap_or_default()
    })
}

/// The status code of the error; QWEN_OK for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_error_code(error: *const qwen_error) -> i32 {
    // SAFETY: the caller gives NULL or a live error.
    let error = unsafe { error.as_ref() };
    guard_value("qwen_error_code", status::E_PANIC, || error.map_or(status::OK, |e| e.code))
}

/// One sentence for people, in UTF-8, NUL-terminated; "" for NULL. Lives as long as the error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_error_message(error: *const qwen_error) -> *const c_char {
    // SAFETY: the caller gives NULL or a live error.
    let error = unsafe { error.as_ref() };
    guard_value("qwen_error_message", c"".as_ptr(), || error.map_or(c"", |e| &e.message).as_ptr())
}

/// The error's data for programs, a JSON object (the key, path, tensor, offset, bytes...), in
/// UTF-8, NUL-terminated; "{}" for NULL. Lives as long as the error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_error_detail_json(error: *const qwen_error) -> *const c_char {
    // SAFETY: the caller gives NULL or a live error.
    let error = unsafe { error.as_ref() };
    guard_value("qwen_error_detail_json", c"{}".as_ptr(), || {
        error.map_or(c"{}", |e| &e.detail).as_ptr()
    })
}

/// Frees an error. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_error_free(error: *mut qwen_error) {
    // SAFETY: the caller gives NULL or an error it owns, and uses it no more.
    unsafe { free("qwen_error_free", error) }
}
