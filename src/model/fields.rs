//! Reading typed, bounded values out of a JSON object; every error names file and key.
//!
//! Shared by `config` and `generation`. Knows no key by itself. A key that is `null` counts as
//! absent, as Python writes unset values so.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::files;
use crate::error::{Error, Result};

/// The published files are under 3 kB.
const LIMIT_BYTES: usize = 4 << 20;

/// The object in a JSON file, or one inside it.
pub(super) struct Fields {
    path: PathBuf,
    object: Map<String, Value>,
    /// What stands before a key in an error: empty, or `outer.`.
    prefix: String,
}

impl Fields {
    /// Reads the JSON object in the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Fields> {
        let json = files::read_small(path, LIMIT_BYTES, "a configuration file")?;
        let value: Value = serde_json::from_slice(&json).map_err(|error| Error::Corrupt {
            path: path.to_path_buf(),
            tensor: None,
            offset_bytes: Some(files::json_offset(&json, &error)),
            reason: format!("bad JSON: {error}"),
        })?;
        match value {
            Value::Object(object) => {
                Ok(Fields { path: path.to_path_buf(), object, prefix: String::new() })
            }
            _ => Err(Error::corrupt(path, "the file is not a JSON object")),
        }
    }

    /// The object under `key`.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong_type(key, "an object"))?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Fields { path: self.path.clone(), object: object.clone(), prefix }))
    }

    /// The value of `key`, unless absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The integer under the first of `keys` (spellings of one thing) that is there.
    pub(super) fn integer(&self, keys: &[&str], range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, self.get(key)?))) else {
            return Ok(None);
        };
        let number = self.as_integer(key, value)?;
        if !range.contains(&number) {
            return Err(self.unsupported(key, format!("{number} is outside {range:?}")));
        }
        Ok(Some(number))
    }

    /// As `integer`, for a size that must be there.
    pub(super) fn size(&self, keys: &[&str], range: RangeInclusive<u64>) -> Result<usize> {
        let number = self.integer(keys, range)?;
        let number = number.ok_or_else(|| {
            let key = keys.first().copied().unwrap_or_default();
            Error::corrupt(&self.path, format!("`{}{key}` is missing", self.prefix))
        })?;
        usize::try_from(number).map_err(|_| self.wrong_type(keys[0], "a size of this machine"))
    }

    /// The number under `key`; `default` where it is absent.
    pub(super) fn number(
        &self,
        key: &str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_f64().ok_or_else(|| self.wrong_type(key, "a number"))?;
        if !range.contains(&number) {
            return Err(self.unsupported(key, format!("{number} is outside {range:?}")));
        }
        Ok(number)
    }

    /// The truth value under `key`; `default` where it is absent.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong_type(key, "true or false"))
    }

    /// The text under `key`.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong_type(key, "text"))
    }

    /// The list under `key`.
    pub(super) fn list(&self, key: &str) -> Result<Option<&[Value]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_array().map(|list| Some(&list[..])).ok_or_else(|| self.wrong_type(key, "a list"))
    }

    /// `value`, found under `key`, as an integer that is not negative. Whole floats count, as
    /// Python's JSON writes them after arithmetic.
    pub(super) fn as_integer(&self, key: &str, value: &Value) -> Result<u64> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let whole = |number: &f64| number.fract() == 0.0 && (0.0..EXACT).contains(number);
        let from_float = || value.as_f64().filter(whole).map(|number| number as u64);
        value
            .as_u64()
            .or_else(from_float)
            .ok_or_else(|| self.wrong_type(key, "an integer from 0 up"))
    }

    /// `value`, found under `key`, as a token id.
    pub(super) fn as_token(&self, key: &str, value: &Value) -> Result<u32> {
        let number = self.as_integer(key, value)?;
        u32::try_from(number).map_err(|_| self.wrong_type(key, "a token id"))
    }

    /// A legal value that the library does not serve.
    pub(super) fn unsupported(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            field: format!("{}{key}", self.prefix),
            reason: reason.into(),
        }
    }

    fn wrong_type(&self, key: &str, expected: &str) -> Error {
        Error::corrupt(&self.path, format!("`{}{key}` is not {expected}", self.prefix))
    }
}
