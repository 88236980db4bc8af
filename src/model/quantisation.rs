//! `quantization_config` of config.json, or quantize_config.json -> a validated `QuantConfig`.
//!
//! Published checkpoints have both, with the same values; older ones only the second. What the
//! library cannot read is an error that names the key.

use std::path::Path;

use super::fields::Fields;
use crate::error::Result;
use crate::quant::{Bits, QuantConfig};

/// The object inside config.json.
pub(super) const KEY: &str = "quantization_config";
const FILE: &str = "quantize_config.json";

/// Largest group that makes sense; the published ones have 128 inputs.
const MAX_GROUP_INPUTS: u64 = 1 << 20;
/// Groups are whole numbers of these: so no word of codes belongs to two.
const GROUP_STEP: u64 = 32;

/// How the model in `folder` is quantised; none if it is not. `config` is its config.json.
pub(super) fn read(folder: &Path, config: &Fields) -> Result<Option<QuantConfig>> {
    let inner = config.object(KEY)?.map(|fields| one(&fields)).transpose()?;
    let path = folder.join(FILE);
    if !path.exists() {
        return Ok(inner);
    }
    let fields = Fields::open(&path)?;
    let outer = one(&fields)?;
    if let Some(inner) = inner
        && (inner.bits, inner.group_size) != (outer.bits, outer.group_size)
    {
        let differs = if inner.bits == outer.bits { "group_size" } else { "bits" };
        return Err(fields.unsupported(differs, format!("config.json's {KEY} says otherwise")));
    }
    Ok(inner.or(Some(outer)))
}

/// The settings of one object.
fn one(fields: &Fields) -> Result<QuantConfig> {
    if let Some(method) = fields.text("quant_method")?
        && method != "gptq"
    {
        return Err(fields.unsupported("quant_method", format!("`{method}` is not `gptq`")));
    }
    let bits = match fields.size(&["bits"], 0..=u64::MAX)? {
        4 => Bits::Four,
        8 => Bits::Eight,
        other => return Err(fields.unsupported("bits", format!("{other} is not 4 or 8"))),
    };
    let zero_offset = match fields.text("checkpoint_format")? {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            let reason = format!("`{other}` is not `gptq` or `gptq_v2`");
            return Err(fields.unsupported("checkpoint_format", reason));
        }
    };
    if fields.flag("is_marlin_format", false)? {
        return Err(fields.unsupported("is_marlin_format", "only false is"));
    }
    let group_size = group_size(fields)?;
    let (desc_act, symmetric) = (fields.flag("desc_act", false)?, fields.flag("sym", true)?);
    Ok(QuantConfig { bits, group_size, desc_act, symmetric, zero_offset })
}

/// Inputs of a group; -1 stands for all of them.
fn group_size(fields: &Fields) -> Result<Option<usize>> {
    const NAME: &str = "group_size";
    if fields.get(NAME).and_then(serde_json::Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    let size = fields.size(&[NAME], 0..=MAX_GROUP_INPUTS)?;
    if size == 0 || !(size as u64).is_multiple_of(GROUP_STEP) {
        let reason = format!("{size} is not -1 or a multiple of {GROUP_STEP}");
        return Err(fields.unsupported(NAME, reason));
    }
    Ok(Some(size))
}
