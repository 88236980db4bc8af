//! One CUDA device as the target of a model: can it run it, what fits, and its backend.

use serde_json::{Value, json};

use super::target::{Needs, unsupported};
use super::{FEWEST_PAGES, kv_token_bytes, limits};
use crate::backend::cuda::{Cuda, CudaSettings, Device, HEAD_DIMS, StepLimits};
use crate::batch::PAGE_TOKENS;
use crate::engine::EngineOptions;
use crate::engine::options::wrong;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::tensor::Dtype;

/// Device memory that goes to the driver: our context, recorded steps, rounding of allocations. The
/// shapes of 1.8B and less took 0.28 to 0.32 GiB more on an H200 than their parts (2026-11-24); the
/// rest is for more layers' recordings.
const RESERVE_BYTES: u64 = 576 << 20;

/// Multiprocessors that the sampling kernel's blocks need to run at once.
const MIN_SMS: u32 = 8;

/// A device that can run the model.
pub(super) struct Gpu {
    device: Device,
    dtype: Dtype,
    host_embedding: bool,
    /// Free before anything is allocated.
    pub(super) free_bytes: u64,
}

impl Gpu {
    /// The device that `options.devices` names (the first if none), if it can run the model.
    pub(super) fn choose(options: &EngineOptions, needs: &Needs<'_>) -> Result<Gpu> {
        let index = device_index(options)?;
        let config = needs.config;
        if !HEAD_DIMS.contains(&config.head_dim) {
            let reason = format!("heads of {} elements; on CUDA 64 and 128 work", config.head_dim);
            return Err(unsupported(needs, "kv_channels", reason));
        }
        if needs.dtype == Dtype::F32 {
            let reason = "f32 weights run on the CPU; on CUDA bf16 and f16 work".to_string();
            return Err(unsupported(needs, "torch_dtype", reason));
        }
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
        let device = Device::open(index)?;
        let needed = Cuda::block_shared_bytes(config.head_dim);
        if needed > device.block_shared_bytes || device.num_sms < MIN_SMS {
            let reason = format!(
                "{} multiprocessors with {} bytes of shared memory for a block; {MIN_SMS} with \
                 {needed} are needed",
                device.num_sms, device.block_shared_bytes
            );
            return Err(Error::NoDevice { device: format!("cuda:{index}"), reason });
        }
        let free_bytes = device.free_bytes()?;
        let mut gpu = Gpu { device, dtype: needs.dtype, host_embedding: false, free_bytes };
        gpu.host_embedding = gpu.choose_embedding(options, needs)?;
        let cache = options.kv_cache_tokens.max(FEWEST_PAGES * PAGE_TOKENS) as u64;
        let cache_bytes = cache.saturating_mul(gpu.kv_token_bytes(config));
        let least_bytes = gpu.least_bytes(options, needs).saturating_add(cache_bytes);
        if options.backend == "auto" && least_bytes > free_bytes {
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
            "auto" => Ok(self.least_bytes(options, needs).saturating_add(room) > self.free_bytes),
            other => Err(wrong("embedding", format!("`{other}` is not auto, device or host"))),
        }
    }

    /// Weights and workspace.
    fn least_bytes(&self, options: &EngineOptions, needs: &Needs<'_>) -> u64 {
        self.weight_bytes(needs).saturating_add(self.workspace_bytes(needs.config, options))
    }

    /// Weights on the device.
    pub(super) fn weight_bytes(&self, needs: &Needs<'_>) -> u64 {
        let elsewhere = if self.host_embedding { needs.embedding_bytes } else { 0 };
        needs.stored_bytes.saturating_sub(elsewhere)
    }

    /// Everything else on the device but the KV cache.
    pub(super) fn workspace_bytes(&self, config: &ModelConfig, options: &EngineOptions) -> u64 {
        let limits = limits(0, options);
        let heads = config.num_heads * config.head_dim;
        let qkv = heads + 2 * config.num_kv_heads * config.head_dim;
        // As `model::scratch` has them: f32 residual and delta; 16-bit normed, qkv, attended, hidden.
        let row = 8 * config.hidden_size
            + 2 * (config.hidden_size + qkv + heads + config.intermediate_size);
        let logits_row = 10 * config.hidden_size + 4 * config.vocab_size;
        let scratch = limits.max_tokens * row + limits.max_logits_rows * logits_row;
        scratch as u64
            + Cuda::workspace_bytes(
                &self.settings(config, options, config.vocab_size),
                &self.device,
            )
            + RESERVE_BYTES
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
        usize::try_from(self.free_bytes / page_bytes.max(1)).unwrap_or(usize::MAX)
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
        Cuda::new(self.device.clone(), self.settings(config, options, usable_ids))
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

/// The one index in `options.devices`; 0 if it is empty.
fn device_index(options: &EngineOptions) -> Result<usize> {
    let text = options.devices.trim();
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| wrong("devices", format!("`{text}` is not the index of one device")))
}
