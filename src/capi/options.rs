//! `qwen_options`: a set of string-keyed options.
//!
//! What the keys are stands in `keys`. Setters check at once, so that a wrong key is reported where
//! it is set; what depends on the model is checked when an object is made from the options.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::arguments::{Handle, Out, free, handle, text};
use super::buffers::qwen_buf;
use super::errors::qwen_error;
use super::fields;
use super::guard::guard;
use super::keys::{self, Kind};
use crate::engine::{EngineOptions, GenerationParams, LogHook};
use crate::error::{Error, Result};

/// Options of one kind: "engine", "generation" or "session". Any thread may use it at any time.
/// What is made from options copies them: later changes touch nothing that exists. Free it with
/// qwen_options_free.
pub struct qwen_options(Arc<Options>);

/// The inside of `qwen_options`.
pub(super) struct Options {
    kind: Kind,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: Map<String, Value>,
    log: Option<LogHook>,
}

impl Handle for qwen_options {
    type Inside = Arc<Options>;
    fn inside(&self) -> &Arc<Options> {
        &self.0
    }
}

impl Options {
    /// These options, if they are of `kind`.
    pub(super) fn expect(&self, kind: Kind) -> Result<&Options> {
        if self.kind == kind {
            return Ok(self);
        }
        let reason = format!("{} options given where {} go", self.kind.name(), kind.name());
        Err(Error::Argument { argument: "options", reason })
    }

    fn set(&self, name: &str, value: Value) -> Result<()> {
        let key = keys::find(self.kind, name)?;
        let value = key.check(value)?;
        self.state.lock().values.insert(key.name.to_string(), value);
        Ok(())
    }

    /// Has engines log to `hook`; the hook before it.
    pub(super) fn set_log(&self, hook: LogHook) -> Option<LogHook> {
        self.state.lock().log.replace(hook)
    }

    /// All of `object` or nothing; null takes a key back to its default.
    fn merge(&self, object: Map<String, Value>) -> Result<()> {
        let mut state = self.state.lock();
        let mut values = state.values.clone();
        for (name, value) in object {
            let key = keys::find(self.kind, &name)?;
            match value {
                Value::Null => values.remove(key.name),
                value => values.insert(key.name.to_string(), key.check(value)?),
            };
        }
        state.values = values;
        Ok(())
    }
}

/// Engine options and log hook of a handle that may be absent.
pub(super) fn engine_options(
    options: Option<Arc<Options>>,
) -> Result<(EngineOptions, Option<LogHook>)> {
    let mut made = EngineOptions::default();
    let Some(options) = options else { return Ok((made, None)) };
    let state = options.expect(Kind::Engine)?.state.lock();
    fields::set_engine(&mut made, &state.values);
    Ok((made, state.log.clone()))
}

/// Generation parameters of a handle that may be absent, over the checkpoint's `defaults`.
pub(super) fn generation_params(
    options: Option<Arc<Options>>,
    mut defaults: GenerationParams,
) -> Result<GenerationParams> {
    if let Some(options) = options {
        let state = options.expect(Kind::Generation)?.state.lock();
        fields::set_generation(&mut defaults, &state.values);
    }
    Ok(defaults)
}

/// The system message of a handle that may be absent.
pub(super) fn session_system(options: Option<Arc<Options>>) -> Result<Option<String>> {
    let Some(options) = options else { return Ok(None) };
    let state = options.expect(Kind::Session)?.state.lock();
    Ok(state.values.get("system").and_then(Value::as_str).map(str::to_string))
}

/// The kind called (`kind`, `kind_len`).
///
/// # Safety
/// As for `text`.
unsafe fn kind_of(kind: *const c_char, kind_len: u64) -> Result<Kind> {
    // SAFETY: as this function's caller promises.
    let name = unsafe { text("kind", kind, kind_len) }?;
    let reason = || "wants engine, generation or session".to_string();
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| Error::Argument { argument: "kind", reason: reason() })
}

/// Makes an empty set of options; `kind` is "engine", "generation" or "session". The caller frees
/// `options`. Any thread.
///
/// Errors: QWEN_E_ARG for another kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_new(
    kind: *const c_char,
    kind_len: u64,
    options: Option<&mut MaybeUninit<*mut qwen_options>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_new", err, || {
        let options = Out::new("options", options)?;
        // SAFETY: the caller gives a text as the header says.
        let kind = unsafe { kind_of(kind, kind_len) }?;
        options.give(qwen_options(Arc::new(Options { kind, state: Mutex::default() })));
        Ok(())
    })
}

/// Sets a whole-number option, or a true-or-false one with 1 or 0. Any thread.
///
/// Errors: QWEN_E_OPTION for an unknown key, a wrong type or a value out of range (the detail has
/// key and reason); QWEN_E_UTF8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_set_i64(
    options: *mut qwen_options,
    key: *const c_char,
    key_len: u64,
    value: i64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_set_i64", err, || {
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        // SAFETY: the caller gives a text as the header says.
        options.set(unsafe { text("key", key, key_len) }?, json!(value))
    })
}

/// Sets a number option. Errors and threads as for qwen_options_set_i64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_set_f64(
    options: *mut qwen_options,
    key: *const c_char,
    key_len: u64,
    value: f64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_set_f64", err, || {
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        // SAFETY: the caller gives a text as the header says.
        options.set(unsafe { text("key", key, key_len) }?, json!(value))
    })
}

/// Sets a text option, or a list option to a list of this one text. Errors and threads as for
/// qwen_options_set_i64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_set_str(
    options: *mut qwen_options,
    key: *const c_char,
    key_len: u64,
    value: *const c_char,
    value_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_set_str", err, || {
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        // SAFETY: the caller gives a text as the header says.
        let value = unsafe { text("value", value, value_len) }?;
        // SAFETY: the caller gives a text as the header says.
        options.set(unsafe { text("key", key, key_len) }?, json!(value))
    })
}

/// Sets every key of a JSON object, or none if one is refused; null takes a key back to its
/// default. Generation keys have the names of OpenAI's chat API where it has them. Any thread.
///
/// Errors: QWEN_E_ARG for text that is not a JSON object; otherwise as for qwen_options_set_i64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_merge_json(
    options: *mut qwen_options,
    json: *const c_char,
    json_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_merge_json", err, || {
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        // SAFETY: the caller gives a text as the header says.
        let json = unsafe { text("json", json, json_len) }?;
        let object = serde_json::from_str(json).map_err(|error| {
            let reason = format!("wants a JSON object: {error}");
            Error::Argument { argument: "json", reason }
        })?;
        options.merge(object)
    })
}

/// The options set so far, as a JSON object. The caller frees `json`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_get_json(
    options: *const qwen_options,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_get_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { handle("options", options) }?;
        let values = Value::Object(options.state.lock().values.clone());
        json.give(qwen_buf::new(values.to_string()));
        Ok(())
    })
}

/// Describes every key of a kind, as JSON: `{"kind", "options": [{"key", "type", "minimum",
/// "maximum", "choices", "default", "about"}...]}`; "above" instead of "minimum" where that number
/// itself is not allowed. The default "checkpoint" stands for what the
/// checkpoint's generation_config.json says. The caller frees `json`. Any thread.
///
/// Errors: QWEN_E_ARG for an unknown kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_describe_json(
    kind: *const c_char,
    kind_len: u64,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_options_describe_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives a text as the header says.
        let kind = unsafe { kind_of(kind, kind_len) }?;
        let keys = keys::KEYS.iter().filter(|key| key.kind == kind);
        let options: Vec<Value> = keys.map(keys::Key::describe).collect();
        let description = json!({ "kind": kind.name(), "options": options });
        json.give(qwen_buf::new(description.to_string()));
        Ok(())
    })
}

/// Frees options. What was made from them stays. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_options_free(options: *mut qwen_options) {
    // SAFETY: the caller gives NULL or options it owns, and uses them no more.
    unsafe { free("qwen_options_free", options) }
}
