//! One CUDA device as the target of a model: can it run it, what fits, and its backend.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::stages::Stages;
use super::target::{Needs, unsupported};
use super::{FEWEST_PAGES, kv_token_bytes, limits};
use crate::backend::cuda::{
    Context, Cuda, CudaSettings, Device, Footprint, HEAD_DIMS, QuantLimits, StepLimits,
    WeightBytes, has_nccl, packed_bytes,
};
use crate::batch::PAGE_TOKENS;
use crate::engine::EngineOptions;
use crate::engine::options::wrong;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::tensor::Dtype;

/// Prompt tokens of a step when nothing else is said: enough rows to keep the arithmetic busy.
pub(super) const CHUNK_TOKENS: usize = 2048;

/// Multiprocessors that the sampling kernel's blocks need to run at once.
const MIN_SMS: u32 = 8;

/// A device that can run the model.
pub(super) struct Gpu {
    device: Device,
    dtype: Dtype,
    host_embedding: bool,
    /// The engine's; none where there is no room for one.
    context: Option<Arc<Context>>,
    /// What it finds free before anything is allocated.
    free_bytes: u64,
    stages: Mutex<Stages>,
}

impl Gpu {
    /// The device that `options.devices` names (the first if none), if it can run the model.
    pub(super) fn choose(options: &EngineOptions, needs: &Needs<'_>) -> Result<Gpu> {
        let index = device_index(options)?;
        let config = needs.config;
        let mut options = options.clone();
        if options.prefill_chunk_tokens == 0 {
            options.prefill_chunk_tokens = CHUNK_TOKENS;
        }
        let options = &options;
        if !HEAD_DIMS.contains(&config.head_dim) {
            let reason = format!("heads of {} elements; on CUDA 64 and 128 work", config.head_dim);
            return Err(unsupported(needs, "kv_channels", reason));
        }
        check_dtype(needs)?;
        let odd = |size: usize| !size.is_multiple_of(8);
        for (field, size) in
            [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)]
        {
            if odd(size) {
                let reason = format!("on CUDA, sizes must be multiples of 8; this one is {size}");
                return Err(unsupported(needs, field, reason));
            }
        }
        if options.tensor_parallel > 1 {
            let reason = "one device runs one rank: must be 1 on CUDA".to_string();
            return Err(wrong("tensor_parallel", reason));
        }
        let mut stages = Stages::begin();
        let device = Device::open(index)?;
        stages.end("driver");
        let needed = Cuda::block_shared_bytes(config.head_dim);
        if needed > device.block_shared_bytes || device.num_sms < MIN_SMS {
            let reason = format!(
                "{} multiprocessors with {} bytes of shared memory for a block; {MIN_SMS} with \
                 {needed} are needed",
                device.num_sms, device.block_shared_bytes
            );
            return Err(Error::NoDevice { device: format!("cuda:{index}"), reason });
        }
        let context = device.context()?;
        let free_bytes = context.as_ref().map_or(Ok(0), |context| context.free_bytes())?;
        stages.end("context");
        let mut gpu = Gpu {
            device,
            dtype: needs.dtype,
            host_embedding: false,
            context,
            free_bytes,
            stages: Mutex::new(stages),
        };
        gpu.host_embedding = gpu.choose_embedding(options, needs)?;
        let cache = options.kv_cache_tokens.max(FEWEST_PAGES * PAGE_TOKENS) as u64;
        let cache_bytes = cache.saturating_mul(gpu.kv_token_bytes(config));
        let least_bytes = gpu.least_bytes(options, needs).saturating_add(cache_bytes);
        if options.backend == "auto" && least_bytes > gpu.free_bytes() {
            let reason = "the model does not fit its free memory".to_string();
            return Err(Error::NoDevice { device: gpu.name(), reason });
        }
        Ok(gpu)
    }

    /// Where the embedding table goes. `auto`: to the host if the device could not hold two long
    /// sequences beside it.
    fn choose_embedding(&self, options: &EngineOptions, needs: &Needs<'_>) -> Result<bool> {
        let two_long = (options.context_tokens(needs.config) as u64).saturating_mul(2);
        let room = two_long.saturating_mul(self.kv_token_bytes(needs.config));
        match options.embedding.as_str() {
            "device" => Ok(false),
            "host" => Ok(true),
            "auto" => Ok(self.least_bytes(options, needs).saturating_add(room) > self.free_bytes()),
            other => Err(wrong("embedding", format!("`{other}` is not auto, device or host"))),
        }
    }

    /// Weights and workspace.
    fn least_bytes(&self, options: &EngineOptions, needs: &Needs<'_>) -> u64 {
        self.weight_bytes(needs.config).saturating_add(self.workspace_bytes(needs.config, options))
    }

    /// Weights on the device.
    pub(super) fn weight_bytes(&self, config: &ModelConfig) -> u64 {
        let mut taken = Footprint::default();
        taken.add(1, self.weights(config).num_bytes());
        taken.num_bytes()
    }

    fn weights(&self, config: &ModelConfig) -> WeightBytes {
        let (layers, hidden) = (config.num_layers, config.hidden_size);
        let tables = if self.host_embedding { 1 } else { 2 };
        let mut taken = WeightBytes::default();
        taken.add_matrices(tables, config.vocab_size, hidden, self.dtype);
        for (rows, cols) in linears(config) {
            let Some(format) = &config.quantisation else {
                taken.add_matrices(layers, rows, cols, self.dtype);
                continue;
            };
            let (weights, order) = packed_bytes(format, rows, cols);
            taken.add(layers, weights);
            taken.add(if order > 0 { layers } else { 0 }, order);
        }
        taken.add_vectors(2 * layers + 1, hidden);
        taken.add_vectors(layers, qkv_cols(config));
        taken
    }

    /// Everything else on the device but the KV cache.
    pub(super) fn workspace_bytes(&self, config: &ModelConfig, options: &EngineOptions) -> u64 {
        let limits = limits(0, options);
        let (tokens, rows, hidden) =
            (limits.max_tokens, limits.max_logits_rows, config.hidden_size);
        let heads = config.num_heads * config.head_dim;
        let mut taken = Footprint::default();
        // As `model::scratch` has them: f32 of the residual and what is added to it, 16 bits between.
        taken.add_matrices(2, tokens, hidden, Dtype::F32);
        for cols in [hidden, qkv_cols(config), heads, config.intermediate_size] {
            taken.add_matrices(1, tokens, cols, self.dtype);
        }
        taken.add_matrices(2, rows, hidden, Dtype::F32);
        taken.add_matrices(1, rows, hidden, self.dtype);
        taken.add_matrices(1, rows, config.vocab_size, Dtype::F32);
        let settings = self.settings(config, options, config.vocab_size);
        Cuda::add_workspace(&mut taken, &settings, &self.device);
        let overhead = Cuda::overhead_bytes(&settings, config.num_layers);
        taken.num_bytes().saturating_add(overhead)
    }

    /// Free before anything is allocated.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    fn settings(
        &self,
        config: &ModelConfig,
        options: &EngineOptions,
        usable_ids: usize,
    ) -> CudaSettings {
        let limits = limits(0, options);
        let cache_pages = self.cache_pages(config, options);
        CudaSettings {
            dtype: self.dtype,
            limits: StepLimits {
                max_tokens: limits.max_tokens,
                max_sequences: limits.max_logits_rows,
                max_pages: options.context_tokens(config).div_ceil(PAGE_TOKENS).min(cache_pages),
                cache_pages,
                head_dim: config.head_dim,
                usable_ids,
            },
            mlp_width: config.intermediate_size,
            weight_bytes: self.weights(config).num_bytes(),
            quantised: config.quantisation.map(|format| QuantLimits::of(&format, &linears(config))),
            host_embedding: self.host_embedding,
            autotune: options.autotune,
        }
    }

    /// Pages of the cache: as asked, or at most what would fill the device's free memory.
    fn cache_pages(&self, config: &ModelConfig, options: &EngineOptions) -> usize {
        if options.kv_cache_tokens > 0 {
            return options.kv_cache_tokens.div_ceil(PAGE_TOKENS);
        }
        let page_bytes = self.kv_token_bytes(config).saturating_mul(PAGE_TOKENS as u64);
        usize::try_from(self.free_bytes() / page_bytes.max(1)).unwrap_or(usize::MAX)
    }

    fn kv_token_bytes(&self, config: &ModelConfig) -> u64 {
        kv_token_bytes(config, self.dtype.size_bytes())
    }

    /// A backend on the device, its workspaces taken.
    pub(super) fn backend(
        &self,
        config: &ModelConfig,
        options: &EngineOptions,
        usable_ids: usize,
    ) -> Result<Cuda> {
        let settings = self.settings(config, options, usable_ids);
        let mut stages = self.stages.lock();
        stages.skip();
        let cuda = match &self.context {
            Some(context) => Cuda::in_context(Arc::clone(context), settings),
            None => Cuda::new(self.device.clone(), settings),
        };
        stages.end("kernels and memory");
        cuda
    }

    /// How long these took.
    pub(super) fn stages(&self) -> String {
        self.stages.lock().to_string()
    }

    pub(super) fn name(&self) -> String {
        format!("cuda:{}", self.device.index)
    }

    pub(super) fn info(&self) -> Value {
        let (major, minor) = self.device.capability;
        json!({
            "name": "cuda",
            "device": self.device.index,
            "device_name": self.device.name,
            "compute_capability": format!("{major}.{minor}"),
            "driver": self.device.driver,
            "embedding": if self.host_embedding { "host" } else { "device" },
        })
    }
}

/// Columns of queries, keys and values together.
fn qkv_cols(config: &ModelConfig) -> usize {
    (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
}

/// Outputs and inputs of the linears of a layer, gate and up as one.
fn linears(config: &ModelConfig) -> [(usize, usize); 4] {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let heads = config.num_heads * config.head_dim;
    [(qkv_cols(config), hidden), (hidden, heads), (2 * width, hidden), (hidden, width)]
}

/// Weights of 16 bits, or codes among those of f16: the scales are f16, and so is what is multiplied.
fn check_dtype(needs: &Needs<'_>) -> Result<()> {
    let name = needs.dtype.name();
    let reason = match needs.config.quantisation {
        Some(_) if needs.dtype == Dtype::F16 => return Ok(()),
        Some(format) => format!("{} among {name} weights: on CUDA f16 works", format.name()),
        None if needs.dtype != Dtype::F32 => return Ok(()),
        None => "f32 weights run on the CPU; on CUDA bf16 and f16 work".to_string(),
    };
    Err(unsupported(needs, "torch_dtype", reason))
}

/// `0` or, as errors and estimates write it, `cuda:0`.
fn parse_index(text: &str) -> Option<usize> {
    text.strip_prefix("cuda:").unwrap_or(text).parse().ok()
}

/// The one index in `options.devices`; 0 if it is empty.
fn device_index(options: &EngineOptions) -> Result<usize> {
    let text = options.devices.trim();
    if text.is_empty() {
        return Ok(0);
    }
    let indices: Vec<Option<usize>> =
        text.split(',').map(|part| parse_index(part.trim())).collect();
    match indices[..] {
        [Some(index)] => Ok(index),
        [] | [_] => {
            Err(wrong("devices", format!("`{text}` is not the index of a device, such as 0")))
        }
        _ if indices.contains(&None) => {
            Err(wrong("devices", format!("`{text}` is not a list of devices' indices")))
        }
        _ => {
            let nccl = if has_nccl() { "is" } else { "is not" };
            let reason = format!(
                "`{text}`: an engine runs on one device so far; name one (NCCL, which several will \
                 need, {nccl} on the library path)"
            );
            Err(wrong("devices", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_of(devices: &str) -> Result<usize> {
        let devices = devices.to_string();
        device_index(&EngineOptions { devices, ..EngineOptions::default() })
    }

    #[test]
    fn one_device_is_an_index_and_none_the_first() {
        assert_eq!(["", " ", "0", "cuda:3"].map(index_of), [Ok(0), Ok(0), Ok(0), Ok(3)]);
        for devices in ["x", "-1", "0,x", ",", "0,", "1 2"] {
            let refused = index_of(devices);
            assert!(matches!(refused, Err(Error::Option { .. })), "{devices}: {refused:?}");
        }
    }

    #[test]
    fn several_devices_are_refused() {
        match index_of("0, 1") {
            Err(Error::Option { reason, .. }) => assert!(reason.contains("one device"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
