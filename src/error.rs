//! The one error type of the library, and the one map from an error to a C status code.
//!
//! What it is: a closed enum whose variants carry the data a caller needs to act (the key, the
//! tensor, the path, the offset, the bytes). What it is not: a place for free text without data.
//! Every room returns it; only `capi` turns it into a status, a sentence and detail JSON.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Result of every fallible function in the library.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, by theme. Cloneable, so that one engine failure can end many
/// requests with the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the variants are described, their fields' names say the rest")]
pub enum Error {
    // --- the caller's mistake (status 1-99) ---
    /// A required pointer was NULL.
    Null { argument: &'static str },
    /// An argument had a value that can never work.
    Argument { argument: &'static str, reason: String },
    /// Text was not UTF-8; `offset` is the first bad byte.
    Utf8 { argument: &'static str, offset: usize },
    /// An option key was unknown, or its value had the wrong type or was out of range.
    Option { key: String, reason: String },
    /// The call does not fit the object's present state (for example regenerate with no history).
    State { reason: String },
    /// Another thread is using an object that allows one user at a time.
    Busy { object: &'static str },
    /// A callback called back into the object that is calling it.
    Reentrant { object: &'static str },
    /// The object was shut down.
    Closed { object: &'static str },
    /// The program was compiled against another ABI number.
    AbiMismatch { library: u32, program: u32 },
    /// The process forked after the engine was opened.
    Forked,
    /// A callback returned a value that is not one of the documented ones.
    Callback { returned: i32 },

    // --- a limit was met (status 100-199) ---
    /// The host has too little memory.
    OutOfHostMemory { purpose: &'static str, needed_bytes: u64, available_bytes: Option<u64> },
    /// A device has too little memory.
    OutOfDeviceMemory {
        device: String,
        purpose: &'static str,
        needed_bytes: u64,
        available_bytes: u64,
    },
    /// The request can never fit the context or the KV cache.
    ContextFull { needed_tokens: u64, available_tokens: u64 },
    /// The engine's waiting queue is full.
    QueueFull { limit_requests: u64 },
    /// Nothing happened within the time the caller allowed; nothing was lost.
    Timeout { timeout_ms: u64 },
    /// A request did not end by the time its owner gave it.
    Deadline { deadline_ms: u64 },
    /// The request was cancelled.
    Cancelled,
    /// There is nothing more to come.
    End,

    // --- the model's files (status 200-299) ---
    /// A file or folder is not there.
    NotFound { path: PathBuf },
    /// The operating system refused an operation.
    Io { path: PathBuf, operation: &'static str, os_code: Option<i32>, reason: String },
    /// A file's contents contradict its format.
    Corrupt { path: PathBuf, tensor: Option<String>, offset_bytes: Option<u64>, reason: String },
    /// A well-formed file asks for something the library does not do; `field` names it.
    Unsupported { path: PathBuf, field: String, reason: String },
    /// Saved state is sound and belongs elsewhere: `saved` is its `property`, and not `here`.
    StateMismatch { property: &'static str, saved: String, here: String },

    // --- the engine or a device (status 300-399) ---
    /// The engine stopped working; a new one can be opened.
    EngineFailed { reason: String },
    /// The requested device does not exist here, or cannot be used.
    NoDevice { device: String, reason: String },
    /// A device reported an error; `code` is its own (CUDA's or cuBLAS's).
    Device { operation: &'static str, code: i32, reason: String },
    /// The model's logits for one request are no finite numbers; the engine goes on.
    NotFinite { position: u64 },

    // --- our mistake (status 900+) ---
    /// A bug in the library, caught at the boundary.
    Panic { reason: String },
}

/// C status codes. Never renumbered, never reused; the header repeats them as `QWEN_*`.
#[expect(missing_docs, reason = "the header describes each code")]
pub mod status {
    /// Success.
    pub const OK: i32 = 0;
    pub const E_NULL: i32 = 1;
    pub const E_ARG: i32 = 2;
    pub const E_UTF8: i32 = 3;
    pub const E_OPTION: i32 = 4;
    pub const E_STATE: i32 = 5;
    pub const E_BUSY: i32 = 6;
    pub const E_REENTRANT: i32 = 7;
    pub const E_CLOSED: i32 = 8;
    pub const E_ABI_MISMATCH: i32 = 9;
    pub const E_FORKED: i32 = 10;
    pub const E_CALLBACK: i32 = 11;
    pub const E_OOM_HOST: i32 = 100;
    pub const E_OOM_DEVICE: i32 = 101;
    pub const E_CONTEXT_FULL: i32 = 102;
    pub const E_QUEUE_FULL: i32 = 103;
    pub const E_TIMEOUT: i32 = 104;
    pub const E_DEADLINE: i32 = 105;
    pub const E_CANCELLED: i32 = 106;
    pub const E_END: i32 = 107;
    pub const E_NOT_FOUND: i32 = 200;
    pub const E_IO: i32 = 201;
    pub const E_CORRUPT: i32 = 202;
    pub const E_UNSUPPORTED: i32 = 203;
    pub const E_STATE_MISMATCH: i32 = 204;
    pub const E_ENGINE_FAILED: i32 = 300;
    pub const E_NO_DEVICE: i32 = 301;
    pub const E_DEVICE: i32 = 302;
    pub const E_NOT_FINITE: i32 = 303;
    pub const E_PANIC: i32 = 900;
}

impl Error {
    /// The C status code of this error.
    pub fn status(&self) -> i32 {
        match self {
            Error::Null { .. } => status::E_NULL,
            Error::Argument { .. } => status::E_ARG,
            Error::Utf8 { .. } => status::E_UTF8,
            Error::Option { .. } => status::E_OPTION,
            Error::State { .. } => status::E_STATE,
            Error::Busy { .. } => status::E_BUSY,
            Error::Reentrant { .. } => status::E_REENTRANT,
            Error::Closed { .. } => status::E_CLOSED,
            Error::AbiMismatch { .. } => status::E_ABI_MISMATCH,
            Error::Forked => status::E_FORKED,
            Error::Callback { .. } => status::E_CALLBACK,
            Error::OutOfHostMemory { .. } => status::E_OOM_HOST,
            Error::OutOfDeviceMemory { .. } => status::E_OOM_DEVICE,
            Error::ContextFull { .. } => status::E_CONTEXT_FULL,
            Error::QueueFull { .. } => status::E_QUEUE_FULL,
            Error::Timeout { .. } => status::E_TIMEOUT,
            Error::Deadline { .. } => status::E_DEADLINE,
            Error::Cancelled => status::E_CANCELLED,
            Error::End => status::E_END,
            Error::NotFound { .. } => status::E_NOT_FOUND,
            Error::Io { .. } => status::E_IO,
            Error::Corrupt { .. } => status::E_CORRUPT,
            Error::Unsupported { .. } => status::E_UNSUPPORTED,
            Error::StateMismatch { .. } => status::E_STATE_MISMATCH,
            Error::EngineFailed { .. } => status::E_ENGINE_FAILED,
            Error::NoDevice { .. } => status::E_NO_DEVICE,
            Error::Device { .. } => status::E_DEVICE,
            Error::NotFinite { .. } => status::E_NOT_FINITE,
            Error::Panic { .. } => status::E_PANIC,
        }
    }

    /// The data of this error as a JSON object, for machines; `Display` is for people.
    pub fn detail(&self) -> Value {
        match self {
            Error::Null { argument } => json!({ "argument": argument }),
            Error::Argument { argument, reason } => {
                json!({ "argument": argument, "reason": reason })
            }
            Error::Utf8 { argument, offset } => json!({ "argument": argument, "offset": offset }),
            Error::Option { key, reason } => json!({ "key": key, "reason": reason }),
            Error::State { reason } | Error::EngineFailed { reason } | Error::Panic { reason } => {
                json!({ "reason": reason })
            }
            Error::Busy { object } | Error::Reentrant { object } | Error::Closed { object } => {
                json!({ "object": object })
            }
            Error::AbiMismatch { library, program } => {
                json!({ "library": library, "program": program })
            }
            Error::Callback { returned } => json!({ "returned": returned }),
            Error::OutOfHostMemory { purpose, needed_bytes, available_bytes } => json!({
                "purpose": purpose, "needed_bytes": needed_bytes, "available_bytes": available_bytes
            }),
            Error::OutOfDeviceMemory { device, purpose, needed_bytes, available_bytes } => json!({
                "device": device, "purpose": purpose, "needed_bytes": needed_bytes,
                "available_bytes": available_bytes
            }),
            Error::ContextFull { needed_tokens, available_tokens } => {
                json!({ "needed_tokens": needed_tokens, "available_tokens": available_tokens })
            }
            Error::QueueFull { limit_requests } => json!({ "limit_requests": limit_requests }),
            Error::Timeout { timeout_ms } => json!({ "timeout_ms": timeout_ms }),
            Error::Deadline { deadline_ms } => json!({ "deadline_ms": deadline_ms }),
            Error::Forked | Error::Cancelled | Error::End => json!({}),
            Error::NotFound { path } => json!({ "path": path.to_string_lossy() }),
            Error::Io { path, operation, os_code, reason } => json!({
                "path": path.to_string_lossy(), "operation": operation,
                "os_code": os_code, "reason": reason
            }),
            Error::Corrupt { path, tensor, offset_bytes, reason } => json!({
                "path": path.to_string_lossy(), "tensor": tensor,
                "offset_bytes": offset_bytes, "reason": reason
            }),
            Error::Unsupported { path, field, reason } => json!({
                "path": path.to_string_lossy(), "field": field, "reason": reason
            }),
            Error::StateMismatch { property, saved, here } => {
                json!({ "property": property, "saved": saved, "here": here })
            }
            Error::NoDevice { device, reason } => json!({ "device": device, "reason": reason }),
            Error::Device { operation, code, reason } => {
                json!({ "operation": operation, "code": code, "reason": reason })
            }
            Error::NotFinite { position } => json!({ "position": position }),
        }
    }

    /// An operating-system failure at `path` while doing `operation`.
    pub fn io(path: &Path, operation: &'static str, error: &std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::NotFound {
            return Error::NotFound { path: path.to_path_buf() };
        }
        Error::Io {
            path: path.to_path_buf(),
            operation,
            os_code: error.raw_os_error(),
            reason: error.to_string(),
        }
    }

    /// The failure of a read of bytes that the file at `path` had when it was opened.
    pub fn read(path: &Path, error: &std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::corrupt(path, "the file shrank while it was read")
            }
            _ => Error::io(path, "read", error),
        }
    }

    /// A malformed file, with no particular tensor or offset to blame.
    pub fn corrupt(path: &Path, reason: impl Into<String>) -> Error {
        Error::Corrupt {
            path: path.to_path_buf(),
            tensor: None,
            offset_bytes: None,
            reason: reason.into(),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Null { argument } => write!(f, "argument `{argument}` is NULL"),
            Error::Argument { argument, reason } => write!(f, "argument `{argument}`: {reason}"),
            Error::Utf8 { argument, offset } => {
                write!(f, "argument `{argument}` is not UTF-8: bad byte at offset {offset}")
            }
            Error::Option { key, reason } => write!(f, "option `{key}`: {reason}"),
            Error::State { reason } => write!(f, "{reason}"),
            Error::Busy { object } => write!(f, "the {object} is in use by another thread"),
            Error::Reentrant { object } => {
                write!(f, "a callback called back into the {object} that is calling it")
            }
            Error::Closed { object } => write!(f, "the {object} is shut down"),
            Error::AbiMismatch { library, program } => {
                write!(f, "the library has ABI {library}, the program was built for ABI {program}")
            }
            Error::Forked => {
                write!(f, "the process forked after the engine was opened: open a new one")
            }
            Error::Callback { returned } => {
                write!(f, "the callback returned {returned}, which means nothing")
            }
            Error::OutOfHostMemory { purpose, needed_bytes, available_bytes } => {
                write!(f, "out of host memory for {purpose}: {needed_bytes} bytes needed")?;
                available_bytes.map_or(Ok(()), |bytes| write!(f, ", {bytes} available"))
            }
            Error::OutOfDeviceMemory { device, purpose, needed_bytes, available_bytes } => write!(
                f,
                "out of memory on `{device}` for {purpose}: {needed_bytes} bytes needed, \
                 {available_bytes} available"
            ),
            Error::ContextFull { needed_tokens, available_tokens } => write!(
                f,
                "the request needs {needed_tokens} tokens of context, {available_tokens} can be had"
            ),
            Error::QueueFull { limit_requests } => {
                write!(f, "the queue is full: {limit_requests} requests are waiting")
            }
            Error::Timeout { timeout_ms } => write!(f, "it did not happen within {timeout_ms} ms"),
            Error::Deadline { deadline_ms } => {
                write!(f, "the request did not end within {deadline_ms} ms")
            }
            Error::Cancelled => write!(f, "the request was cancelled"),
            Error::End => write!(f, "there is nothing more to come"),
            Error::NotFound { path } => write!(f, "{}: not found", path.display()),
            Error::Io { path, operation, reason, .. } => {
                write!(f, "{}: cannot {operation}: {reason}", path.display())
            }
            Error::Corrupt { path, tensor, offset_bytes, reason } => {
                write!(f, "{}{}: {reason}", path.display(), place(tensor, *offset_bytes))
            }
            Error::Unsupported { path, field, reason } => {
                write!(f, "{}: `{field}` is not supported: {reason}", path.display())
            }
            Error::StateMismatch { property, saved, here } => {
                write!(f, "the saved state has another {property}: {saved}, which is {here} here")
            }
            Error::EngineFailed { reason } => write!(f, "the engine failed: {reason}"),
            Error::NoDevice { device, reason } => write!(f, "no device `{device}`: {reason}"),
            Error::Device { operation, reason, .. } => {
                write!(f, "the device failed to {operation}: {reason}")
            }
            Error::NotFinite { position } => {
                write!(f, "the model's logits for token {position} are not finite numbers")
            }
            Error::Panic { reason } => write!(f, "a bug in libqwen: {reason}"),
        }
    }
}

/// Where in a file, as far as it is known.
fn place(tensor: &Option<String>, offset_bytes: Option<u64>) -> String {
    let tensor = tensor.as_ref().map(|tensor| format!(": tensor `{tensor}`"));
    let offset = offset_bytes.map(|offset| format!(": at byte {offset}"));
    [tensor, offset].into_iter().flatten().collect()
}

impl std::error::Error for Error {}
