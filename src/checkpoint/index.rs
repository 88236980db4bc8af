//! Which files make up a checkpoint: the index of a sharded one, or the single file.
//!
//! Reads `model.safetensors.index.json` and hands on file names that cannot leave the folder.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::files;
use super::header::Pairs;
use crate::error::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The largest published index is under 100 kB.
const LIMIT_INDEX_BYTES: usize = 64 << 20;

/// File name -> the tensors that the index says it holds (none are named without an index).
pub(super) type Layout = BTreeMap<String, Vec<String>>;

/// The layout of `folder`. An index wins over a single file, as in the format's other readers.
pub(super) fn layout(folder: &Path) -> Result<Layout> {
    let path = folder.join(INDEX);
    if !path.exists() {
        return Ok(Layout::from([(SINGLE.to_string(), Vec::new())]));
    }
    let json = files::read_small(&path, LIMIT_INDEX_BYTES, "the index of a checkpoint")?;
    let index: RawIndex = serde_json::from_slice(&json).map_err(|error| Error::Corrupt {
        path: path.clone(),
        tensor: None,
        offset_bytes: Some(files::json_offset(&json, &error)),
        reason: format!("bad JSON: {error}"),
    })?;
    let mut layout = Layout::new();
    let mut pairs = index.weight_map.0;
    pairs.sort();
    for (position, (tensor, file)) in pairs.iter().enumerate() {
        if position > 0 && pairs[position - 1].0 == *tensor {
            return Err(fault(&path, tensor, "is listed twice".to_string()));
        }
        if !is_plain_name(file) {
            return Err(fault(&path, tensor, format!("`{file}` is not a file of the folder")));
        }
        layout.entry(file.clone()).or_default().push(tensor.clone());
    }
    if layout.is_empty() {
        return Err(Error::corrupt(&path, "`weight_map` is empty"));
    }
    Ok(layout)
}

/// Whether `file` is one plain name: no separator, no root, no `..`.
fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let plain = matches!(parts.next(), Some(Component::Normal(name)) if name == file);
    plain && parts.next().is_none() && !file.contains(['\\', '\0'])
}

fn fault(path: &Path, tensor: &str, reason: String) -> Error {
    Error::Corrupt {
        path: path.to_path_buf(),
        tensor: Some(tensor.to_string()),
        offset_bytes: None,
        reason,
    }
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Pairs<String>,
}
