//! The host program's own use of CUDA: its current context is the same after each call of the library,
//! and inside each callback.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};

use cudarc::driver::sys::CUcontext;
use qwen::capi::codes::QWEN_CONTINUE;
use qwen::capi::engine::{
    qwen_engine, qwen_engine_estimate_json, qwen_engine_free, qwen_engine_open, qwen_load_progress,
};
use qwen::capi::event::qwen_event;
use qwen::capi::options::{
    qwen_options, qwen_options_free, qwen_options_merge_json, qwen_options_new,
};
use qwen::capi::session::{qwen_session_chat, qwen_session_free, qwen_session_new};

use crate::device::gpu;
use crate::host::{HostContext, current};
use crate::opened::{Folder, SMALL};

const OPTIONS: &str = r#"{"backend": "cuda", "weights": "random", "kv_cache_tokens": 2048}"#;
const REPLY: &str = r#"{"max_tokens": 5, "ignore_eos": true}"#;

/// What a call made, where it succeeded.
fn made<T>(call: impl FnOnce(Option<&mut MaybeUninit<*mut T>>) -> i32) -> *mut T {
    let mut out = MaybeUninit::new(null_mut());
    assert_eq!(call(Some(&mut out)), 0);
    // SAFETY: initialised above, and set by the call.
    unsafe { out.assume_init() }
}

/// Options of one kind with the values in `json`.
fn options(kind: &CStr, json: &str) -> *mut qwen_options {
    let kind_len = kind.to_bytes().len() as u64;
    // SAFETY: a text with its length.
    let options = made(|out| unsafe { qwen_options_new(kind.as_ptr(), kind_len, out, None) });
    // SAFETY: live options, a text with its length.
    let status =
        unsafe { qwen_options_merge_json(options, json.as_ptr().cast(), json.len() as u64, None) };
    assert_eq!(status, 0);
    options
}

/// What the callbacks are told: whose context they must find, and how often they ran.
struct Witness {
    want: CUcontext,
    calls: usize,
}

impl Witness {
    fn see(user: *mut c_void) -> i32 {
        // SAFETY: the test passes its witness, and touches it only between calls.
        let witness = unsafe { &mut *user.cast::<Witness>() };
        assert_eq!(current(), witness.want, "in a callback");
        witness.calls += 1;
        QWEN_CONTINUE
    }
}

unsafe extern "C" fn on_progress(_: *const qwen_load_progress, user: *mut c_void) -> i32 {
    Witness::see(user)
}

unsafe extern "C" fn on_event(_: *const qwen_event, user: *mut c_void) -> i32 {
    Witness::see(user)
}

fn open(folder: &[u8], options: *const qwen_options, user: *mut c_void) -> *mut qwen_engine {
    let (path, len) = (folder.as_ptr().cast(), folder.len() as u64);
    // SAFETY: a path with its length, live options, a callback with its data.
    made(|out| unsafe { qwen_engine_open(path, len, options, Some(on_progress), user, out, None) })
}

/// One question to a new session.
fn chat(engine: *const qwen_engine, options: *const qwen_options, user: *mut c_void) {
    // SAFETY: a live engine.
    let session = made(|out| unsafe { qwen_session_new(engine, null(), out, None) });
    let text = c"Hello.";
    // SAFETY: a live session and options, a text with its length, a callback with its data.
    let status = unsafe {
        qwen_session_chat(session, text.as_ptr(), 6, options, Some(on_event), user, None)
    };
    assert_eq!(status, 0);
    // SAFETY: made above, freed once.
    unsafe { qwen_session_free(session) };
}

/// Everything a host does with an engine, on a thread whose context is `want` all the time.
fn life(folder: &Folder, want: CUcontext) {
    let path = folder.path().as_os_str().as_bytes();
    let (engine_options, reply_options) =
        (options(c"engine", OPTIONS), options(c"generation", REPLY));
    let mut witness = Witness { want, calls: 0 };
    let user = (&raw mut witness).cast::<c_void>();
    let (start, len) = (path.as_ptr().cast(), path.len() as u64);
    // SAFETY: a path with its length, live options.
    let json =
        made(|out| unsafe { qwen_engine_estimate_json(start, len, engine_options, out, None) });
    assert_eq!(current(), want, "after an estimate");
    let engine = open(path, engine_options, user);
    assert_eq!(current(), want, "after open");
    chat(engine, reply_options, user);
    assert_eq!(current(), want, "after a chat");
    // SAFETY: made above, each freed once.
    unsafe {
        qwen_engine_free(engine);
        qwen::capi::buffers::qwen_buf_free(json);
        qwen_options_free(engine_options);
        qwen_options_free(reply_options);
    }
    assert_eq!(current(), want, "after close");
    // Progress, the beginning, text and the end at least.
    assert!(witness.calls >= 4, "{} callbacks", witness.calls);
}

#[test]
fn the_callers_context_is_left_as_it_was() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("caller", &SMALL);
    let own = HostContext::new();
    assert_eq!(current(), own.raw());
    life(&folder, own.raw());
}

#[test]
fn a_caller_without_a_context_has_none_afterwards() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("no-caller", &SMALL);
    assert!(current().is_null());
    life(&folder, null_mut());
}
