//! `config.json` -> a validated `ModelConfig`; derived sizes are computed once, here.
//!
//! Everything after this file may trust the sizes: none is zero, none is absurd, heads divide
//! them, and their products fit 64 bits. Not here: generation defaults (`generation`), and
//! whether the tensors have these sizes (the checkpoint says so when they are read).

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::quantisation;
use crate::error::Result;
use crate::quant::QuantConfig;
use crate::tensor::Dtype;

/// The shape and switches of a Qwen-1 model, in the field's names.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Transformer blocks.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Equal to `num_heads` in Qwen-1; its own field so that grouped heads are an extension.
    pub num_kv_heads: usize,
    /// Width of one head; even, and `num_heads * head_dim == hidden_size`.
    pub head_dim: usize,
    /// Width of gate_proj and up_proj each (half of the file's `intermediate_size`).
    pub intermediate_size: usize,
    /// Rows of the embedding and of lm_head (usable ids can be fewer).
    pub vocab_size: usize,
    /// Added to the mean square under the root of RMSNorm.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies before any NTK scaling.
    pub rope_base: f64,
    /// Training length S that feeds dynamic NTK and log-n; not a maximum context.
    pub train_context_tokens: usize,
    /// Whether prompts longer than S stretch the rotary base.
    pub use_dynamic_ntk: bool,
    /// Whether queries past position S are scaled by ln(position) / ln(S).
    pub use_logn_attention: bool,
    /// How the linears are quantised; none where they are not.
    pub quantisation: Option<QuantConfig>,
}

// Bounds far above any published model (72B: 80, 8192, 64, 128, 49152, 152064) and low enough
// that every product of sizes fits 64 bits.
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_CONTEXT_TOKENS: u64 = 1 << 30;

impl ModelConfig {
    /// Reads `folder/config.json`. Values that make no sense or ask for what the library does not
    /// do are `Unsupported` and name the key; missing keys and wrong types are `Corrupt`.
    pub fn open(folder: &Path) -> Result<ModelConfig> {
        let fields = Fields::open(&folder.join("config.json"))?;
        check_family(&fields)?;
        check_switches(&fields)?;
        let quantisation = quantisation::read(folder, &fields)?;
        let config = ModelConfig { quantisation, ..read(&fields)? };
        check_sizes(&fields, &config)?;
        Ok(config)
    }

    /// The dtype that `folder/config.json` says the weights have, for want of weights to ask: bf16
    /// where it says nothing, as the published code chooses.
    pub fn declared_dtype(folder: &Path) -> Result<Dtype> {
        let fields = Fields::open(&folder.join("config.json"))?;
        for (key, dtype) in [("bf16", Dtype::Bf16), ("fp16", Dtype::F16), ("fp32", Dtype::F32)] {
            if fields.flag(key, false)? {
                return Ok(dtype);
            }
        }
        match fields.text("torch_dtype")? {
            None | Some("bfloat16") => Ok(Dtype::Bf16),
            Some("float16") => Ok(Dtype::F16),
            Some("float32") => Ok(Dtype::F32),
            Some(other) => {
                let reason = format!("`{other}` is not bfloat16, float16 or float32");
                Err(fields.unsupported("torch_dtype", reason))
            }
        }
    }

    /// Elements of all weights.
    pub fn num_parameters(&self) -> u64 {
        let size = |n: usize| n as u64;
        let (hidden, width) = (size(self.hidden_size), size(self.intermediate_size));
        let heads = size(self.num_heads * self.head_dim);
        let qkv = heads + 2 * size(self.num_kv_heads * self.head_dim);
        let layer = hidden * (2 + qkv + heads + 3 * width) + qkv;
        size(self.num_layers) * layer + hidden * (1 + 2 * size(self.vocab_size))
    }
}

/// Refuses every family but Qwen-1.
fn check_family(fields: &Fields) -> Result<()> {
    if let Some(names) = fields.list("architectures")?
        && !names.iter().any(|name| name == "QWenLMHeadModel")
    {
        let reason = format!("{} is not QWenLMHeadModel", Value::from(names));
        return Err(fields.unsupported("architectures", reason));
    }
    match fields.text("model_type")? {
        Some("qwen") => Ok(()),
        Some(other) => Err(fields.unsupported("model_type", format!("`{other}` is not `qwen`"))),
        None if fields.get("architectures").is_some() => Ok(()),
        None => Err(fields.unsupported("model_type", "it is missing")),
    }
}

/// Refuses settings under which the arithmetic would be another one.
fn check_switches(fields: &Fields) -> Result<()> {
    for (key, published) in
        [("no_bias", true), ("tie_word_embeddings", false), ("scale_attn_weights", true)]
    {
        if fields.flag(key, published)? != published {
            return Err(fields.unsupported(key, format!("only {published} is")));
        }
    }
    if fields.number("rotary_pct", 1.0, 0.0..=1.0)? != 1.0 {
        return Err(fields.unsupported("rotary_pct", "only 1.0 is"));
    }
    Ok(())
}

/// Reads the sizes and switches; spellings after the first are those of August 2023. Defaults are
/// those of the published configuration class.
fn read(fields: &Fields) -> Result<ModelConfig> {
    let num_heads = fields.size(&["num_attention_heads", "n_head"], 1..=MAX_HEADS)?;
    let two_widths = fields.size(&["intermediate_size", "ffn_hidden_size"], 2..=2 * MAX_WIDTH)?;
    if !two_widths.is_multiple_of(2) {
        let reason = format!("{two_widths} is odd; it counts gate and up together");
        return Err(fields.unsupported("intermediate_size", reason));
    }
    Ok(ModelConfig {
        num_layers: fields.size(&["num_hidden_layers", "n_layer"], 1..=MAX_LAYERS)?,
        hidden_size: fields.size(&["hidden_size", "n_embd"], 1..=MAX_WIDTH)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: fields.integer(&["kv_channels"], 2..=MAX_HEAD_DIM)?.unwrap_or(128) as usize,
        intermediate_size: two_widths / 2,
        vocab_size: fields.size(&["padded_vocab_size", "vocab_size"], 1..=MAX_VOCAB)?,
        norm_epsilon: fields.number("layer_norm_epsilon", 1e-6, 1e-12..=1e-1)? as f32,
        rope_base: fields.number("rotary_emb_base", 10_000.0, 1.0..=1e15)?,
        // From 2: log-n divides by ln(S).
        train_context_tokens: fields.size(&["seq_length"], 2..=MAX_CONTEXT_TOKENS)?,
        use_dynamic_ntk: fields.flag("use_dynamic_ntk", true)?,
        use_logn_attention: fields.flag("use_logn_attn", true)?,
        quantisation: None,
    })
}

/// Checks the sizes against each other.
fn check_sizes(fields: &Fields, config: &ModelConfig) -> Result<()> {
    let ModelConfig { hidden_size, num_heads, head_dim, .. } = *config;
    if head_dim % 2 != 0 {
        let reason = format!("{head_dim} is odd; rotary positions need pairs");
        return Err(fields.unsupported("kv_channels", reason));
    }
    // The published code splits c_attn's output by hidden_size, so nothing else ever worked.
    if num_heads * head_dim != hidden_size {
        let reason =
            format!("{num_heads} heads of {head_dim} do not make hidden_size {hidden_size}");
        return Err(fields.unsupported("kv_channels", reason));
    }
    Ok(())
}
