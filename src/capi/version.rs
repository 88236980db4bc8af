//! Versions: of the library, of the ABI, of the build.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use serde_json::json;

use super::arguments::Out;
use super::buffers::qwen_buf;
use super::codes::QWEN_ABI_VERSION;
use super::errors::qwen_error;
use super::guard::guard;
use crate::error::Error;

/// The version with a NUL, as C wants it.
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// The ABI of the library that is loaded. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_abi_version() -> u32 {
    QWEN_ABI_VERSION
}

/// Is the loaded library good for a program compiled with this header? Call it once at start:
/// `qwen_check_abi(QWEN_ABI_VERSION, &err)`. Any thread.
///
/// Errors: QWEN_E_ABI_MISMATCH, with both numbers in the detail.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_check_abi(
    abi_version: u32,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_check_abi", err, || {
        if abi_version == QWEN_ABI_VERSION {
            return Ok(());
        }
        Err(Error::AbiMismatch { library: QWEN_ABI_VERSION, program: abi_version })
    })
}

/// The version of the library that is loaded, such as "1.2.3". NUL-terminated; valid for ever. Any
/// thread.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_version() -> *const c_char {
    VERSION.as_ptr()
}

/// How the library was built, as a JSON object: version, abi_version, target, profile, and
/// cuda: whether it can use a GPU. The caller frees `json`. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn qwen_build_info_json(
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_build_info_json", err, || {
        let json = Out::new("json", json)?;
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "abi_version": QWEN_ABI_VERSION,
            "target": env!("QWEN_BUILD_TARGET"),
            "profile": env!("QWEN_BUILD_PROFILE"),
            "cuda": cfg!(feature = "cuda"),
        });
        json.give(qwen_buf::new(info.to_string()));
        Ok(())
    })
}
