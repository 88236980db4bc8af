//! `config.json` -> a validated `ModelConfig`; derived sizes are computed once, here.

use std::path::Path;

use crate::error::{Error, Result};

/// The shape and switches of a Qwen-1 model, in the field's names.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub num_layers: usize,
    pub hidden_size: usize,
    pub num_heads: usize,
    /// Equal to `num_heads` in Qwen-1; its own field so that grouped heads are an extension.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Width of gate_proj and up_proj each (half of the file's `intermediate_size`).
    pub intermediate_size: usize,
    /// Rows of the embedding and of lm_head (usable ids can be fewer).
    pub vocab_size: usize,
    pub norm_epsilon: f32,
    pub rope_base: f64,
    /// Training length S that feeds dynamic NTK and log-n; not a maximum context.
    pub train_context_tokens: usize,
    pub use_dynamic_ntk: bool,
    pub use_logn_attention: bool,
}

impl ModelConfig {
    /// Reads `folder/config.json`.
    pub fn open(folder: &Path) -> Result<ModelConfig> {
        Err(Error::NotFound { path: folder.join("config.json") })
    }
}
