//! CUDA devices as the target of a model, a rank on each: can they run it, what fits, and their backends.
//!
//! Estimates are those of the fullest device: the one that has room for the fewest tokens beside its share
//! of the model. All have caches for as many tokens.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::devices::named_devices;
use super::stages::Stages;
use super::target::{Needs, unsupported};
use super::{FEWEST_PAGES, kv_token_bytes, limits};
use crate::backend::cuda::{
    Context, Cuda, CudaSettings, Device, Footprint, Group, GroupShape, HEAD_DIMS, MAX_WORLD,
    QuantLimits, StepLimits, WeightBytes, packed_bytes,
};
use crate::batch::PAGE_TOKENS;
use crate::checkpoint::shard::{Division, Share};
use crate::engine::EngineOptions;
use crate::engine::options::wrong;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::tensor::Dtype;

/// Prompt tokens of a step when nothing else is said: enough rows to keep the arithmetic busy. Quantised
/// weights are dequantised once for each step: on an H200 a prompt of 6,144 tokens takes Qwen-72B Int8
/// 1.58 s in steps of 2,048, 1.52 s in steps of 4,096 and 1.48 s in one (2026-11-29).
pub(super) fn chunk_tokens(config: &ModelConfig) -> usize {
    if config.quantisation.is_some() { 4096 } else { 2048 }
}

/// Multiprocessors that the sampling kernel's blocks need to run at once.
const MIN_SMS: u32 = 8;

/// Devices that can run the model.
pub(super) struct Gpu {
    /// Rank r is on the r-th.
    devices: Vec<Device>,
    dtype: Dtype,
    host_embedding: bool,
    /// The engine's; none where there is no room for one.
    contexts: Vec<Option<Arc<Context>>>,
    /// What is free before anything is allocated, on each device.
    free_bytes: Vec<u64>,
    division: Division,
    /// The rank with the fullest device.
    fullest: usize,
    stages: Mutex<Stages>,
}

impl Gpu {
    /// The devices that `options.devices` names (the first ones if none), if they can run the model, of
    /// which each gets a share.
    pub(super) fn choose(options: &EngineOptions, needs: &Needs<'_>) -> Result<Gpu> {
        let mut indices = named_devices(options)?;
        if indices.is_empty() {
            indices = (0..options.tensor_parallel).collect();
        }
        let world = indices.len();
        if world > MAX_WORLD {
            let reason = format!("{world} devices: at most {MAX_WORLD} work together");
            let is_named = !options.devices.trim().is_empty();
            return Err(wrong(if is_named { "devices" } else { "tensor_parallel" }, reason));
        }
        let mut options = options.clone();
        if options.prefill_chunk_tokens == 0 {
            options.prefill_chunk_tokens = chunk_tokens(needs.config);
        }
        let options = &options;
        check_shape(needs, world)?;
        let mut stages = Stages::begin();
        let head_dim = needs.config.head_dim;
        let devices = indices.into_iter().map(|index| open_device(index, head_dim));
        let devices = devices.collect::<Result<Vec<_>>>()?;
        stages.end("driver");
        let contexts = devices.iter().map(Device::context).collect::<Result<Vec<_>>>()?;
        let free = |context: &Option<Arc<Context>>| {
            context.as_ref().map_or(Ok(0), |context| context.free_bytes())
        };
        let free_bytes = contexts.iter().map(free).collect::<Result<_>>()?;
        stages.end("context");
        let mut gpu = Gpu {
            devices,
            dtype: needs.dtype,
            host_embedding: false,
            contexts,
            free_bytes,
            division: needs.division.clone(),
            fullest: 0,
            stages: Mutex::new(stages),
        };
        gpu.divide(needs.config, options)?;
        gpu.host_embedding = gpu.choose_embedding(options, needs)?;
        gpu.divide(needs.config, options)?;
        let cache = options.kv_cache_tokens.max(FEWEST_PAGES * PAGE_TOKENS) as u64;
        let cache_bytes = cache.saturating_mul(gpu.kv_token_bytes(needs.config, gpu.fullest));
        let least_bytes = gpu.least_bytes(needs.config, options, gpu.fullest);
        let least_bytes = least_bytes.saturating_add(cache_bytes);
        if options.backend == "auto" && least_bytes > gpu.free_bytes() {
            let reason = "the model does not fit its free memory".to_string();
            return Err(Error::NoDevice { device: gpu.name(), reason });
        }
        Ok(gpu)
    }

    fn world(&self) -> usize {
        self.devices.len()
    }

    /// Gives each device as many layers as it has room for, where they are given out whole, and finds
    /// the fullest.
    fn divide(&mut self, config: &ModelConfig, options: &EngineOptions) -> Result<()> {
        let world = self.world();
        if self.division != Division::Tensors {
            // What there is besides comes first.
            self.division = Division::Layers(vec![0; world]);
            let least = |rank| self.least_bytes(config, options, rank);
            let room = |rank: usize| self.free_bytes[rank].saturating_sub(least(rank));
            let rooms: Vec<u64> = (0..world).map(room).collect();
            self.division = Division::of_layers(config.num_layers, &rooms)?;
        }
        let tokens = |rank: &usize| {
            let least_bytes = self.least_bytes(config, options, *rank);
            let room = i128::from(self.free_bytes[*rank]) - i128::from(least_bytes);
            room.div_euclid(i128::from(self.kv_token_bytes(config, *rank).max(1)))
        };
        self.fullest = (0..world).min_by_key(tokens).unwrap_or(0);
        Ok(())
    }

    pub(super) fn division(&self) -> &Division {
        &self.division
    }

    /// The rank with the fullest device.
    pub(super) fn fullest(&self) -> usize {
        self.fullest
    }

    /// The model as the device of `rank` has it, but for the vocabulary.
    fn share(&self, config: &ModelConfig, rank: usize) -> ModelConfig {
        share(config, &self.division, (rank, self.world()))
    }

    /// What devices exchange; none where there is one.
    fn group_shape(&self, config: &ModelConfig, options: &EngineOptions) -> Option<GroupShape> {
        if self.world() == 1 {
            return None;
        }
        let logits_cols = self.division.logits_cols(config.vocab_size, self.world());
        let is_summed = self.division == Division::Tensors;
        let max_tokens = if is_summed { limits(0, options).max_tokens } else { 0 };
        Some(GroupShape { hidden_size: config.hidden_size, logits_cols, max_tokens })
    }

    /// Where the embedding table goes. `auto`: to the host if the device could not hold a sequence of the
    /// longest beside it.
    fn choose_embedding(&self, options: &EngineOptions, needs: &Needs<'_>) -> Result<bool> {
        let longest = options.context_tokens(needs.config) as u64;
        let room = longest.saturating_mul(self.kv_token_bytes(needs.config, self.fullest));
        let least_bytes = self.least_bytes(needs.config, options, self.fullest);
        match options.embedding.as_str() {
            "device" => Ok(false),
            "host" => Ok(true),
            "auto" => Ok(least_bytes.saturating_add(room) > self.free_bytes()),
            other => Err(wrong("embedding", format!("`{other}` is not auto, device or host"))),
        }
    }

    /// Weights and workspace of a rank.
    fn least_bytes(&self, config: &ModelConfig, options: &EngineOptions, rank: usize) -> u64 {
        let weights = self.weight_bytes(config, rank);
        weights.saturating_add(self.workspace_bytes(config, options, rank))
    }

    /// Weights on the device of `rank`.
    pub(super) fn weight_bytes(&self, config: &ModelConfig, rank: usize) -> u64 {
        let mut taken = Footprint::default();
        taken.add(1, self.weights(config, rank).num_bytes());
        taken.num_bytes()
    }

    fn weights(&self, config: &ModelConfig, rank: usize) -> WeightBytes {
        let part = self.division.share(config.num_layers, rank, self.world());
        let (vocab_size, lm_head_rows) = (config.vocab_size, part.logits_cols(config.vocab_size));
        let config = &self.share(config, rank);
        let (layers, hidden) = (config.num_layers, config.hidden_size);
        let tables = usize::from(part.is_first() && !self.host_embedding);
        let mut taken = WeightBytes::default();
        taken.add_matrices(tables, vocab_size, hidden, self.dtype);
        taken.add_matrices(1, lm_head_rows, hidden, self.dtype);
        for (rows, cols) in linears(config) {
            let Some(format) = &config.quantisation else {
                taken.add_matrices(layers, rows, cols, self.dtype);
                continue;
            };
            let (weights, order) = packed_bytes(format, rows, cols);
            taken.add(layers, weights);
            taken.add(if order > 0 { layers } else { 0 }, order);
        }
        taken.add_vectors(2 * layers + usize::from(part.is_last()), hidden);
        taken.add_vectors(layers, qkv_cols(config));
        taken
    }

    /// Everything else on the device of `rank` but the KV cache.
    pub(super) fn workspace_bytes(
        &self,
        config: &ModelConfig,
        options: &EngineOptions,
        rank: usize,
    ) -> u64 {
        let (limits, world) = (limits(0, options), self.world());
        let shape = self.group_shape(config, options);
        let settings = self.settings(config, options, (rank, config.vocab_size));
        let part = self.division.share(config.num_layers, rank, world);
        let config = &self.share(config, rank);
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
        taken.add_matrices(1, rows, part.logits_cols(config.vocab_size), Dtype::F32);
        Cuda::add_workspace(&mut taken, &settings, &self.devices[rank], shape.as_ref());
        let overhead = Cuda::overhead_bytes(&settings, config.num_layers, world);
        taken.num_bytes().saturating_add(overhead)
    }

    /// Free before anything is allocated, on the fullest device.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes[self.fullest]
    }

    fn settings(
        &self,
        config: &ModelConfig,
        options: &EngineOptions,
        (rank, usable_ids): (usize, usize),
    ) -> CudaSettings {
        let limits = limits(0, options);
        let weight_bytes = self.weights(config, rank).num_bytes();
        let cache_pages = self.cache_pages(config, options);
        let config = &self.share(config, rank);
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
            weight_bytes,
            quantised: config.quantisation.map(|format| QuantLimits::of(&format, &linears(config))),
            host_embedding: self.host_embedding,
            autotune: options.autotune,
        }
    }

    /// Pages of the cache: as asked, or at most what would fill all devices' free memory.
    fn cache_pages(&self, config: &ModelConfig, options: &EngineOptions) -> usize {
        if options.kv_cache_tokens > 0 {
            return options.kv_cache_tokens.div_ceil(PAGE_TOKENS);
        }
        let token_bytes = kv_token_bytes(config, self.dtype.size_bytes());
        let page_bytes = token_bytes.saturating_mul(PAGE_TOKENS as u64);
        let free_bytes = self.free_bytes.iter().copied().fold(0, u64::saturating_add);
        usize::try_from(free_bytes / page_bytes.max(1)).unwrap_or(usize::MAX)
    }

    /// On the device of `rank`.
    pub(super) fn kv_token_bytes(&self, config: &ModelConfig, rank: usize) -> u64 {
        kv_token_bytes(&self.share(config, rank), self.dtype.size_bytes())
    }

    /// The devices tied together; none where there is one.
    pub(super) fn group(
        &self,
        config: &ModelConfig,
        options: &EngineOptions,
    ) -> Result<Option<Arc<Group>>> {
        let Some(shape) = self.group_shape(config, options) else { return Ok(None) };
        let contexts = (0..self.world()).map(|rank| self.context(rank)).collect::<Result<_>>()?;
        Group::new(contexts, shape).map(Some)
    }

    /// A backend for rank `rank`, its workspaces taken.
    pub(super) fn backend(
        &self,
        (group, rank): (Option<&Arc<Group>>, usize),
        config: &ModelConfig,
        options: &EngineOptions,
        usable_ids: usize,
    ) -> Result<Cuda> {
        let settings = self.settings(config, options, (rank, usable_ids));
        // Others are made meanwhile.
        let mut stages = (rank == 0).then(|| self.stages.lock());
        stages.iter_mut().for_each(|stages| stages.skip());
        let cuda = match group {
            Some(group) => Cuda::in_group(group, rank, settings),
            None => Cuda::in_context(&self.context(0)?, settings),
        };
        stages.iter_mut().for_each(|stages| stages.end("kernels and memory"));
        cuda
    }

    /// The engine's context on the device of rank `rank`.
    fn context(&self, rank: usize) -> Result<Arc<Context>> {
        match &self.contexts[rank] {
            Some(context) => Ok(Arc::clone(context)),
            None => Context::new(self.devices[rank].clone()),
        }
    }

    /// How long these took.
    pub(super) fn stages(&self) -> String {
        self.stages.lock().to_string()
    }

    /// As `cuda:0`, or `cuda:0,1`.
    pub(super) fn name(&self) -> String {
        let indices: Vec<String> = self.devices.iter().map(|d| d.index.to_string()).collect();
        format!("cuda:{}", indices.join(","))
    }

    /// The same of the fullest device.
    pub(super) fn fullest_name(&self) -> String {
        format!("cuda:{}", self.devices[self.fullest].index)
    }

    pub(super) fn info(&self) -> Value {
        let first = &self.devices[0];
        let (major, minor) = first.capability;
        json!({
            "name": "cuda",
            "device": first.index,
            "devices": self.devices.iter().map(|device| device.index).collect::<Vec<_>>(),
            "device_name": first.name,
            "compute_capability": format!("{major}.{minor}"),
            "driver": first.driver,
            "embedding": if self.host_embedding { "host" } else { "device" },
        })
    }
}

/// The model as `rank` of `world` has it, but for the vocabulary.
fn share(config: &ModelConfig, division: &Division, (rank, world): (usize, usize)) -> ModelConfig {
    let Share { layers, parts, .. } = division.share(config.num_layers, rank, world);
    ModelConfig {
        num_layers: layers.len(),
        num_heads: config.num_heads / parts,
        num_kv_heads: config.num_kv_heads / parts,
        intermediate_size: config.intermediate_size / parts,
        ..config.clone()
    }
}

/// Sizes and dtypes that the kernels take.
fn check_shape(needs: &Needs<'_>, world: usize) -> Result<()> {
    let config = &share(needs.config, needs.division, (0, world));
    if !HEAD_DIMS.contains(&config.head_dim) {
        let reason = format!("heads of {} elements; on CUDA 64 and 128 work", config.head_dim);
        return Err(unsupported(needs, "kv_channels", reason));
    }
    check_dtype(needs)?;
    let sizes =
        [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)];
    let Some((field, size)) = sizes.into_iter().find(|(_, size)| !size.is_multiple_of(8)) else {
        return Ok(());
    };
    let is_divided = world > 1 && *needs.division == Division::Tensors;
    let of = if is_divided { " on each device" } else { "" };
    let reason = format!("on CUDA, sizes must be multiples of 8; this one is {size}{of}");
    Err(unsupported(needs, field, reason))
}

/// Device `index`, if it can run kernels for heads of `head_dim`.
fn open_device(index: usize, head_dim: usize) -> Result<Device> {
    let device = Device::open(index)?;
    let needed = Cuda::block_shared_bytes(head_dim);
    if needed > device.block_shared_bytes || device.num_sms < MIN_SMS {
        let reason = format!(
            "{} multiprocessors with {} bytes of shared memory for a block; {MIN_SMS} with \
             {needed} are needed",
            device.num_sms, device.block_shared_bytes
        );
        return Err(Error::NoDevice { device: format!("cuda:{index}"), reason });
    }
    Ok(device)
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
