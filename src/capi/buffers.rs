//! `qwen_buf`, `qwen_tokens` and `qwen_floats`: owned results of unknown length.

use std::ffi::c_char;

use super::arguments::free;
use super::guard::guard_value;

/// Bytes (text or JSON where the function that made them says so). Owned by the caller, immutable:
/// any thread may read it. Free it with qwen_buf_free.
pub struct qwen_buf {
    /// The bytes and one NUL.
    bytes: Vec<u8>,
}

impl qwen_buf {
    /// A buffer of `bytes`.
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> qwen_buf {
        let mut bytes = bytes.into();
        bytes.push(0);
        qwen_buf { bytes }
    }

    /// The bytes without the NUL.
    pub(super) fn content(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - 1]
    }

    /// The first byte; a NUL stands behind the last.
    pub(super) fn pointer(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }
}

/// The bytes. One NUL, not counted, stands behind the last, so that text without NULs inside is
/// also a C string. "" for NULL. Lives as long as the buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_buf_data(buf: *const qwen_buf) -> *const c_char {
    // SAFETY: the caller gives NULL or a live buffer.
    let buf = unsafe { buf.as_ref() };
    guard_value("qwen_buf_data", c"".as_ptr(), || buf.map_or(c"".as_ptr(), qwen_buf::pointer))
}

/// The number of bytes; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_buf_len(buf: *const qwen_buf) -> u64 {
    // SAFETY: the caller gives NULL or a live buffer.
    let buf = unsafe { buf.as_ref() };
    guard_value("qwen_buf_len", 0, || buf.map_or(0, |buf| buf.content().len() as u64))
}

/// Frees a buffer. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_buf_free(buf: *mut qwen_buf) {
    // SAFETY: the caller gives NULL or a buffer it owns, and uses it no more.
    unsafe { free("qwen_buf_free", buf) }
}

/// Token ids. Owned by the caller, immutable: any thread may read it. Free it with
/// qwen_tokens_free.
pub struct qwen_tokens {
    ids: Vec<u32>,
}

impl qwen_tokens {
    /// A list of `ids`.
    pub(super) fn new(ids: Vec<u32>) -> qwen_tokens {
        qwen_tokens { ids }
    }
}

/// The first id; NULL for NULL. Lives as long as the list.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokens_data(tokens: *const qwen_tokens) -> *const u32 {
    // SAFETY: the caller gives NULL or a live list.
    let tokens = unsafe { tokens.as_ref() };
    guard_value("qwen_tokens_data", std::ptr::null(), || {
        tokens.map_or(std::ptr::null(), |tokens| tokens.ids.as_ptr())
    })
}

/// The number of ids; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokens_len(tokens: *const qwen_tokens) -> u64 {
    // SAFETY: the caller gives NULL or a live list.
    let tokens = unsafe { tokens.as_ref() };
    guard_value("qwen_tokens_len", 0, || tokens.map_or(0, |tokens| tokens.ids.len() as u64))
}

/// Frees a list. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokens_free(tokens: *mut qwen_tokens) {
    // SAFETY: the caller gives NULL or a list it owns, and uses it no more.
    unsafe { free("qwen_tokens_free", tokens) }
}

/// Numbers. Owned by the caller, immutable: any thread may read it. Free it with qwen_floats_free.
pub struct qwen_floats {
    values: Vec<f32>,
}

impl qwen_floats {
    /// A list of `values`.
    pub(super) fn new(values: Vec<f32>) -> qwen_floats {
        qwen_floats { values }
    }
}

/// The first number; NULL for NULL. Lives as long as the list.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_floats_data(floats: *const qwen_floats) -> *const f32 {
    // SAFETY: the caller gives NULL or a live list.
    let floats = unsafe { floats.as_ref() };
    guard_value("qwen_floats_data", std::ptr::null(), || {
        floats.map_or(std::ptr::null(), |floats| floats.values.as_ptr())
    })
}

/// How many numbers there are; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_floats_len(floats: *const qwen_floats) -> u64 {
    // SAFETY: the caller gives NULL or a live list.
    let floats = unsafe { floats.as_ref() };
    guard_value("qwen_floats_len", 0, || floats.map_or(0, |floats| floats.values.len() as u64))
}

/// Frees a list. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_floats_free(floats: *mut qwen_floats) {
    // SAFETY: the caller gives NULL or a list it owns, and uses it no more.
    unsafe { free("qwen_floats_free", floats) }
}
