//! Pointers in, results out: how exports read what C gave them and hand back what they made.
//!
//! The functions here that read through a pointer are `unsafe`; what they rely on is the header's
//! contract: a pointer is NULL, or it points to what its comment says for as long as it says.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::time::Duration;

use super::codes::QWEN_CSTR;
use crate::error::{Error, Result};

/// An out-pointer, already set to NULL, that takes ownership of a result to the caller.
pub(super) struct Out<'a, T> {
    place: &'a mut MaybeUninit<*mut T>,
}

impl<'a, T> Out<'a, T> {
    /// Clears the caller's variable, before anything else can fail.
    pub(super) fn new(
        argument: &'static str,
        place: Option<&'a mut MaybeUninit<*mut T>>,
    ) -> Result<Out<'a, T>> {
        let place = place.ok_or(Error::Null { argument })?;
        place.write(std::ptr::null_mut());
        Ok(Out { place })
    }

    /// Gives `value` to the caller, who frees it.
    pub(super) fn give(self, value: T) {
        self.place.write(Box::into_raw(Box::new(value)));
    }
}

/// A handle type: what its C pointer points to shares its inside with running calls.
pub(super) trait Handle {
    /// The shared inside.
    type Inside: Clone;
    /// The inside of this handle.
    fn inside(&self) -> &Self::Inside;
}

/// The inside of a required handle.
///
/// # Safety
/// `pointer` is NULL or a live handle of this type.
pub(super) unsafe fn handle<T: Handle>(
    argument: &'static str,
    pointer: *const T,
) -> Result<T::Inside> {
    // SAFETY: as this function's caller promises.
    unsafe { optional(pointer) }.ok_or(Error::Null { argument })
}

/// The inside of a handle that may be NULL.
///
/// # Safety
/// `pointer` is NULL or a live handle of this type.
pub(super) unsafe fn optional<T: Handle>(pointer: *const T) -> Option<T::Inside> {
    // SAFETY: as this function's caller promises.
    unsafe { pointer.as_ref() }.map(|handle| handle.inside().clone())
}

/// Takes back and drops what `Out::give` gave; NULL is nothing.
///
/// # Safety
/// `pointer` is NULL or came from `Out::give`, and is not used again.
pub(super) unsafe fn free<T>(name: &'static str, pointer: *mut T) {
    if pointer.is_null() {
        return;
    }
    // SAFETY: as this function's caller promises.
    let owned = unsafe { Box::from_raw(pointer) };
    super::guard::guard_value(name, (), move || drop(owned));
}

/// The bytes at `(pointer, len)`. NULL is legal with length 0 only.
///
/// # Safety
/// `pointer` is NULL or points to `len` readable bytes, or to a NUL-terminated string where `len`
/// is `QWEN_CSTR`; they stay unchanged while the result lives.
pub(super) unsafe fn bytes<'a>(
    argument: &'static str,
    pointer: *const c_char,
    len: u64,
) -> Result<&'a [u8]> {
    if pointer.is_null() {
        return if len == 0 { Ok(&[]) } else { Err(Error::Null { argument }) };
    }
    if len == QWEN_CSTR {
        // SAFETY: as this function's caller promises.
        return Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes());
    }
    // SAFETY: as this function's caller promises; `array` checks the length.
    unsafe { array(argument, pointer.cast(), len) }
}

/// The text at `(pointer, len)`, proven to be UTF-8.
///
/// # Safety
/// As for `bytes`.
pub(super) unsafe fn text<'a>(
    argument: &'static str,
    pointer: *const c_char,
    len: u64,
) -> Result<&'a str> {
    // SAFETY: as this function's caller promises.
    let bytes = unsafe { bytes(argument, pointer, len) }?;
    std::str::from_utf8(bytes)
        .map_err(|error| Error::Utf8 { argument, offset: error.valid_up_to() })
}

/// The path at `(pointer, len)`: any bytes but NUL, as the system has it.
///
/// # Safety
/// As for `bytes`.
pub(super) unsafe fn path(
    argument: &'static str,
    pointer: *const c_char,
    len: u64,
) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: as this function's caller promises.
    let bytes = unsafe { bytes(argument, pointer, len) }?;
    if bytes.is_empty() || bytes.contains(&0) {
        let reason = "a path is not empty and has no NUL byte".to_string();
        return Err(Error::Argument { argument, reason });
    }
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

/// The `len` elements at `pointer`. NULL is legal with length 0 only.
///
/// # Safety
/// `pointer` is NULL or points to `len` readable elements, unchanged while the result lives.
pub(super) unsafe fn array<'a, T>(
    argument: &'static str,
    pointer: *const T,
    len: u64,
) -> Result<&'a [T]> {
    if pointer.is_null() {
        return if len == 0 { Ok(&[]) } else { Err(Error::Null { argument }) };
    }
    let size_bytes = len.checked_mul(size_of::<T>() as u64);
    if size_bytes.is_none_or(|size| size > isize::MAX as u64) || !pointer.is_aligned() {
        let reason = format!("{len} elements at {pointer:p} cannot exist");
        return Err(Error::Argument { argument, reason });
    }
    // SAFETY: not NULL, aligned, no longer than the address space; the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len as usize) })
}

/// A timeout in milliseconds; negative means for ever.
pub(super) fn timeout(timeout_ms: i64) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}

/// Has a struct of the caller's, of `given_bytes` by its own word, room for ours?
pub(super) fn check_struct_size(
    argument: &'static str,
    given_bytes: u32,
    size_bytes: usize,
) -> Result<()> {
    if given_bytes as usize >= size_bytes {
        return Ok(());
    }
    let reason = format!("struct_size {given_bytes} is too small");
    Err(Error::Argument { argument, reason })
}

/// Only the bits of `known` may be set in `flags`.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<()> {
    if flags & !known == 0 {
        return Ok(());
    }
    let reason = format!("unknown bits {:#x}", flags & !known);
    Err(Error::Argument { argument: "flags", reason })
}
