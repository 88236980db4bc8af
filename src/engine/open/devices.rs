//! Which devices an engine runs on, how many ranks it so has, and how they share the model: what the
//! options say, before anybody has looked for a device.

use crate::checkpoint::shard::{Division, check_quantised_world};
use crate::engine::EngineOptions;
use crate::engine::options::wrong;
use crate::error::Result;
use crate::model::config::ModelConfig;

/// How `options.tensor_parallel` ranks share the model, if they can: whole layers evenly, which devices
/// may do otherwise.
pub(super) fn division(options: &EngineOptions, config: &ModelConfig) -> Result<Division> {
    let world = options.tensor_parallel;
    match options.split.as_str() {
        "tensors" => {
            let heads = (config.num_heads, config.num_kv_heads, config.head_dim);
            let unit = config.quantisation.map_or(1, |format| format.undivided_inputs());
            check_quantised_world(heads, config.intermediate_size, unit, world)?;
            Ok(Division::Tensors)
        }
        "layers" => Division::of_layers(config.num_layers, &vec![1; world]),
        other => Err(wrong("split", format!("`{other}` is not tensors or layers"))),
    }
}

/// Ranks that share the model: as many as devices are named, or as `tensor_parallel` says.
pub(super) fn num_ranks(options: &EngineOptions) -> Result<usize> {
    // The CPU backends know no devices.
    if options.backend.starts_with("cpu") {
        return Ok(options.tensor_parallel);
    }
    match (named_devices(options)?.len(), options.tensor_parallel) {
        (0, ranks) => Ok(ranks),
        (devices, 1) => Ok(devices),
        (devices, ranks) if devices == ranks => Ok(ranks),
        (devices, ranks) => {
            let reason = format!("must be 1 or {devices}, the number of devices, is {ranks}");
            Err(wrong("tensor_parallel", reason))
        }
    }
}

/// The indices in `options.devices`, each once: none if it is empty.
pub(super) fn named_devices(options: &EngineOptions) -> Result<Vec<usize>> {
    let text = options.devices.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    // As errors and estimates write them, too.
    let list = text.strip_prefix("cuda:").unwrap_or(text);
    let parse = |part: &str| part.strip_prefix("cuda:").unwrap_or(part).parse().ok();
    let indices: Option<Vec<usize>> = list.split(',').map(|part| parse(part.trim())).collect();
    let Some(indices) = indices else {
        let reason = format!("`{text}` is no list of devices' indices, such as 0 or 0,1");
        return Err(wrong("devices", reason));
    };
    for (at, index) in indices.iter().enumerate() {
        if indices[..at].contains(index) {
            let reason = format!("`{text}` names device {index} twice");
            return Err(wrong("devices", reason));
        }
    }
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn options(devices: &str, tensor_parallel: usize) -> EngineOptions {
        EngineOptions { devices: devices.to_string(), tensor_parallel, ..EngineOptions::default() }
    }

    #[test]
    fn devices_are_indices() {
        for (text, indices) in [
            ("", vec![]),
            (" ", vec![]),
            ("0", vec![0]),
            ("cuda:3", vec![3]),
            ("0, 1", vec![0, 1]),
            ("cuda:2,0,cuda:1", vec![2, 0, 1]),
        ] {
            assert_eq!(named_devices(&options(text, 1)), Ok(indices), "{text}");
        }
        for text in ["x", "-1", "0,x", ",", "0,", "1 2", "0,1,0", "cuda:"] {
            let refused = named_devices(&options(text, 1));
            assert!(
                matches!(&refused, Err(Error::Option { key, .. }) if key == "devices"),
                "{text}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_rank_is_on_each_device() {
        for (devices, given, ranks) in
            [("", 1, 1), ("", 4, 4), ("3", 1, 1), ("0,1", 1, 2), ("0,1", 2, 2)]
        {
            assert_eq!(num_ranks(&options(devices, given)), Ok(ranks), "{devices} {given}");
        }
        let refused = num_ranks(&options("0,1", 3));
        assert!(matches!(&refused, Err(Error::Option { key, .. }) if key == "tensor_parallel"));
        let cpu = EngineOptions { backend: "cpu".to_string(), ..options("0,1", 3) };
        assert_eq!(num_ranks(&cpu), Ok(3));
    }
}
