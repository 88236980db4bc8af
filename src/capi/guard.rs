//! The edge that no panic crosses: `guard` wraps every export that returns a status, `guard_value`
//! every export that cannot fail.
//!
//! It also owns the panic hook. The default hook prints to standard error, which belongs to the
//! host, so the first guarded call installs one that stays silent for panics under a guard and on
//! the library's own threads (all named "qwen-..."), and otherwise does what the hook before it
//! did.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::errors::qwen_error;
use crate::error::{Error, Result, status};

thread_local! {
    /// How many guards this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Where the last silent panic of this thread came from ("file:line").
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `body` as the export `name`: a panic becomes `Error::Panic`, an error becomes its status
/// and, where the caller gave a place for it, an error object.
pub(super) fn guard(
    name: &'static str,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
    body: impl FnOnce() -> Result<()>,
) -> i32 {
    let result = caught(name, body).unwrap_or_else(Err);
    let Some(err) = err else {
        return result.map_or_else(|error| error.status(), |()| status::OK);
    };
    match result {
        Ok(()) => {
            err.write(std::ptr::null_mut());
            status::OK
        }
        Err(error) => {
            let code = error.status();
            err.write(qwen_error::into_raw(error));
            code
        }
    }
}

/// Runs `body` as the export `name`, which has no way to report; `fallback` stands in for a panic.
pub(super) fn guard_value<T>(name: &'static str, fallback: T, body: impl FnOnce() -> T) -> T {
    caught(name, body).unwrap_or(fallback)
}

fn caught<T>(name: &'static str, body: impl FnOnce() -> T) -> Result<T> {
    silence_panics();
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(feature = "test-hooks")]
        super::hooks::trip(name);
        body()
    }));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    outcome.map_err(|payload| Error::Panic { reason: describe(name, payload) })
}

fn describe(name: &str, payload: Box<dyn Any + Send>) -> String {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    if message.is_none() {
        // A payload of an unknown type might panic again when it is dropped.
        std::mem::forget(payload);
    }
    let place = PLACE.with(|place| std::mem::take(&mut *place.borrow_mut()));
    let message = message.unwrap_or_else(|| "no message".to_string());
    format!("{name}: panic at {place}: {message}")
}

fn silence_panics() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !is_ours() {
                return previous(info);
            }
            let place = info
                .location()
                .map(|at| format!("{}:{}", at.file(), at.line()))
                .unwrap_or_default();
            // A thread that is ending has no thread-locals any more; then the place is lost.
            let _ = PLACE.try_with(|slot| slot.replace(place));
        }));
    });
}

/// Does the current thread run the library's code for the library's sake?
fn is_ours() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
        || std::thread::current().name().is_some_and(|name| name.starts_with("qwen-"))
}
