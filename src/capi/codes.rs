//! Status codes and other constants of the C ABI, and the names of the codes.
//!
//! Not the map from an error to a code: that is `Error::status`, whose values these repeat as
//! literals (the header generator reads literals only). The assertions below keep the two equal.

use std::ffi::c_char;

use crate::error::status;

/// The ABI this header describes; `qwen_abi_version()` is the library's. Grows only when an
/// exported function is taken away or changes its meaning, and the soname grows with it.
pub const QWEN_ABI_VERSION: u32 = 1;

/// As the length of a string argument: the string ends at its first NUL.
pub const QWEN_CSTR: u64 = u64::MAX;

/// Success.
pub const QWEN_OK: i32 = 0;
/// A required pointer was NULL. Codes 1 to 99: the caller's mistake.
pub const QWEN_E_NULL: i32 = 1;
/// An argument has a value that can never work.
pub const QWEN_E_ARG: i32 = 2;
/// Text is not UTF-8; the detail has the offset of the first bad byte.
pub const QWEN_E_UTF8: i32 = 3;
/// An option is unknown, of the wrong type or out of range; the detail has its key.
pub const QWEN_E_OPTION: i32 = 4;
/// The call does not fit the object's present state.
pub const QWEN_E_STATE: i32 = 5;
/// Another thread is using an object that serves one thread at a time.
pub const QWEN_E_BUSY: i32 = 6;
/// A callback called back into the object that is calling it.
pub const QWEN_E_REENTRANT: i32 = 7;
/// The engine was shut down.
pub const QWEN_E_CLOSED: i32 = 8;
/// The program was compiled for another ABI than the library's.
pub const QWEN_E_ABI_MISMATCH: i32 = 9;
/// The process is a fork of the one that opened the engine.
pub const QWEN_E_FORKED: i32 = 10;
/// A callback returned a value other than QWEN_CONTINUE, QWEN_STOP and QWEN_CANCEL.
pub const QWEN_E_CALLBACK: i32 = 11;
/// The host has too little memory; the detail has the bytes. Codes 100 to 199: a limit was met.
pub const QWEN_E_OOM_HOST: i32 = 100;
/// A device has too little memory.
pub const QWEN_E_OOM_DEVICE: i32 = 101;
/// The request can never fit the context or the KV cache; the detail has the numbers.
pub const QWEN_E_CONTEXT_FULL: i32 = 102;
/// Too many requests are waiting; try again later.
pub const QWEN_E_QUEUE_FULL: i32 = 103;
/// Nothing happened in the time allowed; nothing was lost. Also of a request that waited for longer than
/// its queue_timeout_ms.
pub const QWEN_E_TIMEOUT: i32 = 104;
/// The request did not end within its deadline_ms. What was generated until then was told.
pub const QWEN_E_DEADLINE: i32 = 105;
/// The request, or the loading, was cancelled.
pub const QWEN_E_CANCELLED: i32 = 106;
/// There is nothing more to come.
pub const QWEN_E_END: i32 = 107;
/// A file or folder does not exist. Codes 200 to 299: the model's files.
pub const QWEN_E_NOT_FOUND: i32 = 200;
/// The operating system refused to open, read or map a file.
pub const QWEN_E_IO: i32 = 201;
/// A file, or a saved session, contradicts its format; the detail has the path, and the tensor and offset
/// if known.
pub const QWEN_E_CORRUPT: i32 = 202;
/// A sound file asks for something this library does not do.
pub const QWEN_E_UNSUPPORTED: i32 = 203;
/// Saved state belongs to another model, or was saved in another version of its format; the detail says
/// which.
pub const QWEN_E_STATE_MISMATCH: i32 = 204;
/// The engine stopped working; open a new one. Codes 300 to 399: the engine or a device.
pub const QWEN_E_ENGINE_FAILED: i32 = 300;
/// The device asked for does not exist here.
pub const QWEN_E_NO_DEVICE: i32 = 301;
/// A device reported an error.
pub const QWEN_E_DEVICE: i32 = 302;
/// The model gave no finite numbers for this request, as a damaged checkpoint does. The engine goes
/// on; the detail has the position of the token.
pub const QWEN_E_NOT_FINITE: i32 = 303;
/// A bug in this library, caught at its edge. Codes from 900: our mistake.
pub const QWEN_E_PANIC: i32 = 900;

/// A callback's result: go on.
pub const QWEN_CONTINUE: i32 = 0;
/// A callback's result, and a way to cancel: end the reply here and keep it.
pub const QWEN_STOP: i32 = 1;
/// A callback's result, and a way to cancel: end the reply here and forget it.
pub const QWEN_CANCEL: i32 = 2;

/// `(code, name)` of every status. The names are C strings.
const NAMES: &[(i32, &std::ffi::CStr)] = &[
    (QWEN_OK, c"QWEN_OK"),
    (QWEN_E_NULL, c"QWEN_E_NULL"),
    (QWEN_E_ARG, c"QWEN_E_ARG"),
    (QWEN_E_UTF8, c"QWEN_E_UTF8"),
    (QWEN_E_OPTION, c"QWEN_E_OPTION"),
    (QWEN_E_STATE, c"QWEN_E_STATE"),
    (QWEN_E_BUSY, c"QWEN_E_BUSY"),
    (QWEN_E_REENTRANT, c"QWEN_E_REENTRANT"),
    (QWEN_E_CLOSED, c"QWEN_E_CLOSED"),
    (QWEN_E_ABI_MISMATCH, c"QWEN_E_ABI_MISMATCH"),
    (QWEN_E_FORKED, c"QWEN_E_FORKED"),
    (QWEN_E_CALLBACK, c"QWEN_E_CALLBACK"),
    (QWEN_E_OOM_HOST, c"QWEN_E_OOM_HOST"),
    (QWEN_E_OOM_DEVICE, c"QWEN_E_OOM_DEVICE"),
    (QWEN_E_CONTEXT_FULL, c"QWEN_E_CONTEXT_FULL"),
    (QWEN_E_QUEUE_FULL, c"QWEN_E_QUEUE_FULL"),
    (QWEN_E_TIMEOUT, c"QWEN_E_TIMEOUT"),
    (QWEN_E_DEADLINE, c"QWEN_E_DEADLINE"),
    (QWEN_E_CANCELLED, c"QWEN_E_CANCELLED"),
    (QWEN_E_END, c"QWEN_E_END"),
    (QWEN_E_NOT_FOUND, c"QWEN_E_NOT_FOUND"),
    (QWEN_E_IO, c"QWEN_E_IO"),
    (QWEN_E_CORRUPT, c"QWEN_E_CORRUPT"),
    (QWEN_E_UNSUPPORTED, c"QWEN_E_UNSUPPORTED"),
    (QWEN_E_STATE_MISMATCH, c"QWEN_E_STATE_MISMATCH"),
    (QWEN_E_ENGINE_FAILED, c"QWEN_E_ENGINE_FAILED"),
    (QWEN_E_NO_DEVICE, c"QWEN_E_NO_DEVICE"),
    (QWEN_E_DEVICE, c"QWEN_E_DEVICE"),
    (QWEN_E_NOT_FINITE, c"QWEN_E_NOT_FINITE"),
    (QWEN_E_PANIC, c"QWEN_E_PANIC"),
];

/// The same codes in the same order, as `error` has them.
const CODES: &[i32] = &[
    status::OK,
    status::E_NULL,
    status::E_ARG,
    status::E_UTF8,
    status::E_OPTION,
    status::E_STATE,
    status::E_BUSY,
    status::E_REENTRANT,
    status::E_CLOSED,
    status::E_ABI_MISMATCH,
    status::E_FORKED,
    status::E_CALLBACK,
    status::E_OOM_HOST,
    status::E_OOM_DEVICE,
    status::E_CONTEXT_FULL,
    status::E_QUEUE_FULL,
    status::E_TIMEOUT,
    status::E_DEADLINE,
    status::E_CANCELLED,
    status::E_END,
    status::E_NOT_FOUND,
    status::E_IO,
    status::E_CORRUPT,
    status::E_UNSUPPORTED,
    status::E_STATE_MISMATCH,
    status::E_ENGINE_FAILED,
    status::E_NO_DEVICE,
    status::E_DEVICE,
    status::E_NOT_FINITE,
    status::E_PANIC,
];

const _: () = {
    assert!(NAMES.len() == CODES.len());
    let mut index = 0;
    while index < CODES.len() {
        assert!(NAMES[index].0 == CODES[index]);
        index += 1;
    }
};

/// The name of a status code, such as "QWEN_E_UTF8"; "QWEN_E_UNKNOWN" for a code this library does
/// not know. Never NULL; NUL-terminated; valid for ever. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_status_name(status: i32) -> *const c_char {
    let known = NAMES.iter().find(|(code, _)| *code == status);
    known.map_or(c"QWEN_E_UNKNOWN", |(_, name)| name).as_ptr()
}
