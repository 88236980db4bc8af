//! The log hook: how an engine's log lines reach the host.

use std::ffi::{CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::arguments::handle;
use super::errors::qwen_error;
use super::guard::guard;
use super::keys::Kind;
use super::options::qwen_options;
use crate::engine::{LogHook, LogLevel};
use crate::error::Error;

/// Log level: the engine cannot go on.
pub const QWEN_LOG_ERROR: i32 = 1;
/// Log level: something is not as it should be.
pub const QWEN_LOG_WARN: i32 = 2;
/// Log level: what the engine does, in a few lines.
pub const QWEN_LOG_INFO: i32 = 3;
/// Log level: what the engine does, in detail.
pub const QWEN_LOG_DEBUG: i32 = 4;

/// Receives one whole log line: its level, the part of the library it comes from (NUL-terminated),
/// and the message (`message_len` bytes of UTF-8, a NUL behind them). Called on any thread, also on
/// several at once; it must not call the engine that logs. Both texts live until it returns.
pub type qwen_log_fn = Option<
    unsafe extern "C" fn(
        level: i32,
        target: *const c_char,
        message: *const c_char,
        message_len: u64,
        user: *mut c_void,
    ),
>;

/// Releases a callback's `user`.
pub type qwen_destroy_fn = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// Sends the log lines of engines opened with these engine options to `on_line`, up to `level`
/// (QWEN_LOG_*). Without it an engine logs nowhere. `destroy` (or NULL) is called once with `user`,
/// on any thread, when neither options nor engines need it any more; not if this call fails. Any
/// thread.
///
/// Errors: QWEN_E_ARG for an unknown level or options of another kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_set_log(
    options: *mut qwen_options,
    level: i32,
    on_line: qwen_log_fn,
    user: *mut c_void,
    destroy: qwen_destroy_fn,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_set_log", err, || {
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        let on_line = on_line.ok_or(Error::Null { argument: "on_line" })?;
        if !(QWEN_LOG_ERROR..=QWEN_LOG_DEBUG).contains(&level) {
            let reason = format!("{level} is no log level");
            return Err(Error::Argument { argument: "level", reason });
        }
        options.expect(Kind::Engine)?;
        let target = LogTarget { on_line, user, destroy };
        let hook: LogHook = Arc::new(move |line_level: LogLevel, room: &str, message: &str| {
            if line_level as i32 <= level {
                target.send(line_level as i32, room, message);
            }
        });
        // The hook before is dropped with no lock held: that may call the caller's code.
        drop(options.set_log(hook));
        Ok(())
    })
}

/// Where log lines go.
struct LogTarget {
    on_line: unsafe extern "C" fn(i32, *const c_char, *const c_char, u64, *mut c_void),
    user: *mut c_void,
    destroy: qwen_destroy_fn,
}

// SAFETY: the header says that the callback is called on any thread, so `user` is made for that.
unsafe impl Send for LogTarget {}
// SAFETY: as above; also on several threads at once.
unsafe impl Sync for LogTarget {}

impl LogTarget {
    fn send(&self, level: i32, room: &str, message: &str) {
        let room = CString::new(room).unwrap_or_default();
        let mut line = Vec::with_capacity(message.len() + 1);
        line.extend_from_slice(message.as_bytes());
        line.push(0);
        let len = message.len() as u64;
        // SAFETY: both texts end in NUL and live through the call; `user` is the caller's own.
        unsafe { (self.on_line)(level, room.as_ptr(), line.as_ptr().cast(), len, self.user) };
    }
}

impl Drop for LogTarget {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the last use of `user`; the header promises the caller this one call.
            unsafe { destroy(self.user) };
        }
    }
}
