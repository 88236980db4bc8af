//! One table: canonical tensor names -> the names in a Qwen-1 checkpoint.
//!
//! Nothing else in the library ever spells a checkpoint name.

/// Token embedding `[vocab_size, hidden_size]`.
pub const EMBEDDING: &str = "transformer.wte.weight";
/// Norm before lm_head `[hidden_size]`.
pub const FINAL_NORM: &str = "transformer.ln_f.weight";
/// Output projection `[vocab_size, hidden_size]`.
pub const LM_HEAD: &str = "lm_head.weight";

/// The tensors of one layer, in canonical terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerTensor {
    /// RMSNorm before attention `[hidden_size]`.
    AttentionNorm,
    /// Q, K, V stacked `[(num_heads + 2 num_kv_heads) * head_dim, hidden_size]`.
    QkvWeight,
    /// Bias of the same `[(num_heads + 2 num_kv_heads) * head_dim]`.
    QkvBias,
    /// Attention output `[hidden_size, num_heads * head_dim]`.
    OWeight,
    /// RMSNorm before the MLP `[hidden_size]`.
    MlpNorm,
    /// Gate (the SiLU side) `[intermediate_size, hidden_size]`.
    GateWeight,
    /// Up `[intermediate_size, hidden_size]`.
    UpWeight,
    /// Down `[hidden_size, intermediate_size]`.
    DownWeight,
}

/// The checkpoint's name of `tensor` in layer `index`.
pub fn layer(index: usize, tensor: LayerTensor) -> String {
    let suffix = match tensor {
        LayerTensor::AttentionNorm => "ln_1.weight",
        LayerTensor::QkvWeight => "attn.c_attn.weight",
        LayerTensor::QkvBias => "attn.c_attn.bias",
        LayerTensor::OWeight => "attn.c_proj.weight",
        LayerTensor::MlpNorm => "ln_2.weight",
        LayerTensor::GateWeight => "mlp.w2.weight",
        LayerTensor::UpWeight => "mlp.w1.weight",
        LayerTensor::DownWeight => "mlp.c_proj.weight",
    };
    format!("transformer.h.{index}.{suffix}")
}
