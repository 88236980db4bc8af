//! Where the weights of an engine come from: a checkpoint's files, mapped or copied, or nowhere
//! (random numbers, for measuring a shape).

use std::path::Path;

use super::target::Target;
use crate::checkpoint::names::{self, LayerTensor};
use crate::checkpoint::{Checkpoint, Source};
use crate::engine::options::wrong;
use crate::engine::{EngineOptions, Estimate};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::{Weights, quantised_bytes};
use crate::tensor::Dtype;

/// The value of option `weights` for which no weight file is read.
const RANDOM: &str = "random";

/// The weights of a model, before they are loaded.
pub(super) struct ModelWeights {
    /// None for random weights.
    checkpoint: Option<Checkpoint>,
    pub(super) dtype: Dtype,
    pub(super) total_bytes: u64,
}

impl ModelWeights {
    /// Opens the files in `folder`, unless the options ask for random weights. Reads headers only.
    pub(super) fn open(
        folder: &Path,
        options: &EngineOptions,
        config: &ModelConfig,
    ) -> Result<ModelWeights> {
        if options.weights == RANDOM {
            let dtype = ModelConfig::declared_dtype(folder)?;
            let element_bytes = dtype.size_bytes() as u64;
            let total_bytes = match &config.quantisation {
                Some(format) => quantised_bytes(config, format, element_bytes),
                None => config.num_parameters() * element_bytes,
            };
            return Ok(ModelWeights { checkpoint: None, dtype, total_bytes });
        }
        let checkpoint = Checkpoint::open(folder)?;
        Weights::Stored(&checkpoint).check_quantisation(config)?;
        check_layers(folder, &checkpoint, config)?;
        let dtype = Weights::Stored(&checkpoint).dtype()?;
        let total_bytes = checkpoint.total_bytes();
        Ok(ModelWeights { checkpoint: Some(checkpoint), dtype, total_bytes })
    }

    /// What the model loads.
    pub(super) fn source(&self) -> Weights<'_> {
        self.checkpoint.as_ref().map_or(Weights::Random(self.dtype), Weights::Stored)
    }

    /// Reads the files into memory if `source` says so; `progress` as for `copy_to_memory`.
    pub(super) fn bring(
        &mut self,
        source: Source,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        match &mut self.checkpoint {
            Some(checkpoint) if source == Source::Copy => checkpoint.copy_to_memory(progress),
            _ => Ok(()),
        }
    }

    /// The value of option `weights` that came to be.
    pub(super) fn name(&self, source: Source) -> &'static str {
        match (&self.checkpoint, source) {
            (None, _) => RANDOM,
            (Some(_), Source::Copy) => "copy",
            (Some(_), Source::Map) => "map",
        }
    }
}

/// Every tensor is there before the first one is read, and no layer is left out silently: that would be
/// another model.
fn check_layers(folder: &Path, checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    for index in 0..config.num_layers {
        for tensor in LayerTensor::ALL {
            let name = names::layer(index, tensor);
            checkpoint.check_present(&name)?;
        }
    }
    for name in [names::EMBEDDING, names::FINAL_NORM, names::LM_HEAD] {
        checkpoint.shape(name)?;
    }
    let beyond = names::layer(config.num_layers, LayerTensor::QkvWeight);
    if !checkpoint.contains(&beyond) && !checkpoint.has_codes(&beyond) {
        return Ok(());
    }
    let reason = format!("num_hidden_layers is {}, but `{beyond}` is there", config.num_layers);
    Err(Error::corrupt(&folder.join("config.json"), reason))
}

/// `auto` copies where that leaves half of the free memory free: a copy in huge pages is read
/// faster than a mapped file. Ranks that share its tensors map it, and copy what they must cut; a GPU
/// has its own copy.
pub(super) fn source(
    options: &EngineOptions,
    target: &Target,
    estimate: &Estimate,
) -> Result<Source> {
    let is_small = super::needed_bytes(estimate) <= estimate.available_bytes / 2;
    let is_whole = options.tensor_parallel == 1 || options.split == "layers";
    match options.weights.as_str() {
        "auto" if is_small && is_whole && target.is_host() => Ok(Source::Copy),
        "auto" | "map" | RANDOM => Ok(Source::Map),
        // A GPU has its own copy: one more on the host would help nobody.
        "copy" if target.is_host() => Ok(Source::Copy),
        "copy" => Ok(Source::Map),
        other => Err(wrong("weights", format!("`{other}` is not auto, map, copy or random"))),
    }
}
