//! Where a model will run: the choice of a backend, what it takes of which memory, and the making of
//! its ranks.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use super::{Plan, kv_token_bytes, limits};
use crate::backend::comm::{Comm, Solo, Threads};
use crate::backend::cpu::fast::{Fast, Isa, MAX_HEAD_DIM};
use crate::backend::cpu::reference::Reference;
use crate::checkpoint::shard::Division;
use crate::engine::EngineOptions;
use crate::engine::memory::available_bytes;
use crate::engine::options::wrong;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::{Model, Placement, Progress, Rank};
use crate::tensor::Dtype;

#[cfg(feature = "cuda")]
pub(super) use crate::backend::cuda::CallerContext;
#[cfg(feature = "cuda")]
use crate::backend::cuda::Group;

/// Without CUDA there is no context of the caller's to keep.
#[cfg(not(feature = "cuda"))]
pub(super) struct CallerContext;

#[cfg(not(feature = "cuda"))]
impl CallerContext {
    pub(super) fn save() -> CallerContext {
        CallerContext
    }

    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// A backend, and the device it will use.
pub(super) enum Target {
    Fast,
    Reference,
    #[cfg(feature = "cuda")]
    Cuda(Box<Gpu>),
}

/// What is known of a model when its target is chosen.
pub(super) struct Needs<'a> {
    pub(super) folder: &'a Path,
    pub(super) config: &'a ModelConfig,
    #[cfg(feature = "cuda")]
    pub(super) dtype: Dtype,
    /// How ranks share it; whole layers evenly.
    pub(super) division: &'a Division,
    /// Bytes of all tensors.
    pub(super) stored_bytes: u64,
}

impl Target {
    /// As `options.backend` says. `auto` takes a GPU that can run the model and has room for it,
    /// and otherwise the CPU, unless a device is named; why not the GPU is in the second part.
    pub(super) fn choose(options: &EngineOptions, needs: &Needs<'_>) -> Result<(Target, String)> {
        match options.backend.as_str() {
            "cpu" => Target::cpu(Target::Fast, needs, String::new()),
            "cpu-reference" => Target::cpu(Target::Reference, needs, String::new()),
            "cuda" => Ok((Target::gpu(options, needs)?, String::new())),
            "auto" => match Target::gpu(options, needs) {
                Ok(target) => Ok((target, String::new())),
                // Who names a device wants it.
                Err(error) if !options.devices.trim().is_empty() => Err(error),
                // A mistake in an option is the caller's to mend, whatever else would work.
                Err(error @ Error::Option { .. }) if options.tensor_parallel == 1 => Err(error),
                Err(error) => Target::cpu(Target::Fast, needs, error.to_string()),
            },
            other => {
                let reason = format!("`{other}` is not auto, cpu, cpu-reference or cuda");
                Err(wrong("backend", reason))
            }
        }
    }

    fn cpu(target: Target, needs: &Needs<'_>, why: String) -> Result<(Target, String)> {
        if needs.config.head_dim > MAX_HEAD_DIM {
            let found =
                format!("heads of {} elements, at most {MAX_HEAD_DIM}", needs.config.head_dim);
            return Err(unsupported(needs, "kv_channels", found));
        }
        Ok((target, why))
    }

    #[cfg(feature = "cuda")]
    fn gpu(options: &EngineOptions, needs: &Needs<'_>) -> Result<Target> {
        Ok(Target::Cuda(Box::new(Gpu::choose(options, needs)?)))
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_options: &EngineOptions, _needs: &Needs<'_>) -> Result<Target> {
        let reason = "this library was built without CUDA (`make lib CUDA=1` builds one with it)"
            .to_string();
        Err(Error::NoDevice { device: "cuda".to_string(), reason })
    }

    /// Does the model run on the host's own memory?
    pub(super) fn is_host(&self) -> bool {
        matches!(self, Target::Fast | Target::Reference)
    }

    /// How ranks share the model in the end.
    pub(super) fn division<'a>(&'a self, needs: &'a Needs<'_>) -> &'a Division {
        match self {
            Target::Fast | Target::Reference => needs.division,
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.division(),
        }
    }

    /// Of the keys and values of a model of `dtype`.
    pub(super) fn kv_element_bytes(&self, dtype: Dtype) -> usize {
        if matches!(self, Target::Reference) { 4 } else { dtype.size_bytes() }
    }

    /// Keys and values of one token where they are: on the host all, on devices the fullest one's share.
    pub(super) fn kv_token_bytes(&self, config: &ModelConfig, element_bytes: usize) -> u64 {
        match self {
            Target::Fast | Target::Reference => kv_token_bytes(config, element_bytes),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.kv_token_bytes(config, gpu.fullest()),
        }
    }

    /// For estimates: empty on the host.
    pub(super) fn device_names(&self) -> String {
        match self {
            Target::Fast | Target::Reference => String::new(),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.name(),
        }
    }

    /// Prompt tokens of a step when nothing else is said: enough rows to keep the arithmetic busy.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a GPU looks at it"))]
    pub(super) fn default_chunk_tokens(&self, config: &ModelConfig) -> usize {
        match self {
            Target::Fast | Target::Reference => 512,
            #[cfg(feature = "cuda")]
            Target::Cuda(_) => super::gpu::chunk_tokens(config),
        }
    }

    /// Memory that the weights take: as stored; as f32 in the reference; twice where ranks cut their
    /// share of tensors out of a copy.
    pub(super) fn weight_bytes(&self, needs: &Needs<'_>, options: &EngineOptions) -> u64 {
        let stored = needs.stored_bytes;
        let is_cut = options.tensor_parallel > 1 && *needs.division == Division::Tensors;
        let is_cut_copy = is_cut && options.weights == "copy";
        match self {
            Target::Reference => needs.config.num_parameters().saturating_mul(4),
            Target::Fast if is_cut_copy => stored.saturating_mul(2),
            Target::Fast => stored,
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.weight_bytes(needs.config, gpu.fullest()),
        }
    }

    /// Activations, staging and workspaces of all ranks.
    pub(super) fn workspace_bytes(&self, config: &ModelConfig, options: &EngineOptions) -> u64 {
        match self {
            Target::Fast | Target::Reference => host_workspace_bytes(config, options),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.workspace_bytes(config, options, gpu.fullest()),
        }
    }

    /// What the memory that the model will live in has free, and the share of what the weights leave
    /// that the KV cache may have.
    pub(super) fn available(&self) -> (u64, f64) {
        match self {
            Target::Fast | Target::Reference => (available_bytes().unwrap_or(u64::MAX), 0.5),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => (gpu.free_bytes(), 0.97),
        }
    }

    /// The error of too little of that memory.
    pub(super) fn too_small(&self, needed_bytes: u64, available_bytes: u64) -> Error {
        const PURPOSE: &str = "weights, KV cache and workspace";
        match self {
            Target::Fast | Target::Reference => Error::OutOfHostMemory {
                purpose: PURPOSE,
                needed_bytes,
                available_bytes: Some(available_bytes),
            },
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => Error::OutOfDeviceMemory {
                device: gpu.fullest_name(),
                purpose: PURPOSE,
                needed_bytes,
                available_bytes,
            },
        }
    }

    /// How long its parts took to open, in a line; empty where there is nothing to tell.
    pub(super) fn stages(&self) -> String {
        match self {
            Target::Fast | Target::Reference => String::new(),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.stages(),
        }
    }

    /// For `Engine::info`.
    pub(super) fn info(&self) -> Value {
        match self {
            Target::Fast => json!({ "name": "cpu", "instruction_set": Isa::best().name() }),
            Target::Reference => json!({ "name": "cpu-reference" }),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => gpu.info(),
        }
    }
}

/// What the ranks of one engine have in common.
pub(super) enum Tie {
    Host(Arc<dyn Comm>),
    /// None of a device alone.
    #[cfg(feature = "cuda")]
    Devices(Option<Arc<Group>>),
}

impl Tie {
    /// Of the ranks of `plan`.
    pub(super) fn new(plan: &Plan, options: &EngineOptions) -> Result<Tie> {
        let world = options.tensor_parallel;
        match &plan.target {
            Target::Fast | Target::Reference if world == 1 => Ok(Tie::Host(Arc::new(Solo))),
            Target::Fast | Target::Reference => Ok(Tie::Host(Threads::new(world))),
            #[cfg(feature = "cuda")]
            Target::Cuda(gpu) => Ok(Tie::Devices(gpu.group(&plan.config, options)?)),
        }
    }

    /// A rank will not come: none waits for it.
    pub(super) fn abandon(&self) {
        match self {
            Tie::Host(comm) => comm.abandon(),
            #[cfg(feature = "cuda")]
            Tie::Devices(group) => group.iter().for_each(|group| group.abandon()),
        }
    }
}

/// Loads one rank's share of the model; `tie` is the target's.
pub(super) fn load_rank(
    plan: &Plan,
    options: &EngineOptions,
    tie: &Tie,
    placement: Placement<'_>,
    advance: Progress<'_>,
) -> Result<Box<dyn Rank>> {
    let (weights, config, rank) = (plan.weights.source(), &plan.config, placement.rank);
    let limits = limits(plan.num_pages, options);
    Ok(match (&plan.target, tie) {
        #[cfg(feature = "cuda")]
        (Target::Cuda(gpu), Tie::Devices(group)) => {
            let place = (group.as_ref(), rank);
            let backend = gpu.backend(place, config, options, plan.usable_ids)?;
            Box::new(Model::load(backend, weights, config, placement, limits, advance)?)
        }
        (Target::Reference, Tie::Host(comm)) => {
            let backend = Reference::new(comm.clone(), rank);
            Box::new(Model::load(backend, weights, config, placement, limits, advance)?)
        }
        (Target::Fast, Tie::Host(comm)) => {
            let backend = Fast::new(comm.clone(), rank, plan.num_threads)?;
            Box::new(Model::load(backend, weights, config, placement, limits, advance)?)
        }
        #[cfg(feature = "cuda")]
        _ => {
            let reason = "a bug in the library: ranks of one target tied as another's".to_string();
            return Err(Error::EngineFailed { reason });
        }
    })
}

/// Activations and staging of all ranks, f32: what `model::scratch` and the CPU backends make,
/// rounded up.
fn host_workspace_bytes(config: &ModelConfig, options: &EngineOptions) -> u64 {
    let limits = limits(0, options);
    let row = 4 * config.hidden_size
        + (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        + 4 * config.intermediate_size;
    let token_rows = limits.max_tokens as u64 * row as u64;
    let logits_rows = limits.max_logits_rows as u64 * 4 * config.vocab_size as u64;
    4 * (token_rows + logits_rows).saturating_mul(options.tensor_parallel as u64)
}

/// A sound checkpoint that this target cannot run.
pub(super) fn unsupported(needs: &Needs<'_>, field: &str, reason: String) -> Error {
    let path = needs.folder.join("config.json");
    Error::Unsupported { path, field: field.to_string(), reason }
}
