//! Random checkpoints of any shape, written as a Qwen-1 folder.

use std::collections::HashMap;
use std::path::Path;

use qwen::tensor::Dtype;
use safetensors::tensor::TensorView;

use crate::common::Random;
use crate::common::ops::weights;

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) vocab: usize,
    pub(crate) dtype: Dtype,
    /// Dynamic NTK and log-n, with a training length of 64.
    pub(crate) stretched: bool,
}

/// Writes config.json and model.safetensors into `folder`.
pub(crate) fn write(folder: &Path, random: &mut Random, shape: &Shape) {
    write_quiet(folder, random, shape, 0);
}

/// The same with an embedding and biases 2^`quieter` times smaller: what attention adds up counts for
/// more.
pub(crate) fn write_quiet(folder: &Path, random: &mut Random, shape: &Shape, quieter: i32) {
    write_config(folder, shape);
    let mut tensors = tensors(random, shape);
    let is_loud = |name: &str| name.ends_with("wte.weight") || name.ends_with("bias");
    for (_, _, bytes) in tensors.iter_mut().filter(|(name, ..)| quieter > 0 && is_loud(name)) {
        bytes.chunks_exact_mut(2).for_each(|element| quieten(element, shape.dtype, quieter));
    }
    write_tensors(folder, shape.dtype, &tensors);
}

/// An element of 16 bits, divided by 2^`quieter`.
fn quieten(element: &mut [u8], dtype: Dtype, quieter: i32) {
    let bits = u16::from_le_bytes([element[0], element[1]]);
    let scale = 0.5_f32.powi(quieter);
    let quiet = match dtype {
        Dtype::Bf16 => half::bf16::from_f32(half::bf16::from_bits(bits).to_f32() * scale).to_bits(),
        _ => half::f16::from_f32(half::f16::from_bits(bits).to_f32() * scale).to_bits(),
    };
    element.copy_from_slice(&quiet.to_le_bytes());
}

/// Writes config.json into `folder`, which is made if need be.
pub(crate) fn write_config(folder: &Path, shape: &Shape) {
    write_json(folder, &config(shape));
}

pub(crate) fn write_json(folder: &Path, config: &serde_json::Value) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
}

pub(crate) fn config(shape: &Shape) -> serde_json::Value {
    serde_json::json!({
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": shape.hidden,
        "intermediate_size": 2 * shape.width,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "kv_channels": shape.hidden / shape.heads,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": if shape.stretched { 64 } else { 8192 },
        "max_position_embeddings": 32768,
        "use_dynamic_ntk": shape.stretched,
        "use_logn_attn": shape.stretched,
        "no_bias": true,
        "tie_word_embeddings": false,
        "vocab_size": shape.vocab,
        "bf16": shape.dtype == Dtype::Bf16,
        "fp16": shape.dtype == Dtype::F16,
    })
}

pub(crate) fn write_tensors(folder: &Path, dtype: Dtype, tensors: &[Tensor]) {
    let kind = match dtype {
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::F32 => safetensors::Dtype::F32,
    };
    let is_words =
        |name: &str| ["qweight", "qzeros", "g_idx"].iter().any(|part| name.ends_with(part));
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, size, bytes)| {
            let kind = if is_words(name) { safetensors::Dtype::I32 } else { kind };
            (name.as_str(), TensorView::new(kind, size.clone(), bytes).expect("a tensor"))
        })
        .collect();
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("written");
}

/// Name, shape, bytes.
pub(crate) type Tensor = (String, Vec<usize>, Vec<u8>);

pub(crate) fn tensors(random: &mut Random, s: &Shape) -> Vec<Tensor> {
    let mut made = Vec::new();
    let mut matrix = |name: String, rows: usize, cols: usize| {
        let bytes = weights(random, s.dtype, rows, cols).bytes().to_vec();
        made.push((name, vec![rows, cols], bytes));
    };
    matrix("transformer.wte.weight".to_string(), s.vocab, s.hidden);
    matrix("lm_head.weight".to_string(), s.vocab, s.hidden);
    for layer in 0..s.layers {
        let name = |tail: &str| format!("transformer.h.{layer}.{tail}.weight");
        matrix(name("attn.c_attn"), 3 * s.hidden, s.hidden);
        matrix(name("attn.c_proj"), s.hidden, s.hidden);
        matrix(name("mlp.w1"), s.width, s.hidden);
        matrix(name("mlp.w2"), s.width, s.hidden);
        matrix(name("mlp.c_proj"), s.hidden, s.width);
    }
    let mut vector = |name: String, len: usize| {
        // One column, so that the elements are N(0, 1).
        let bytes = weights(random, s.dtype, len, 1).bytes().to_vec();
        made.push((name, vec![len], bytes));
    };
    vector("transformer.ln_f.weight".to_string(), s.hidden);
    for layer in 0..s.layers {
        vector(format!("transformer.h.{layer}.ln_1.weight"), s.hidden);
        vector(format!("transformer.h.{layer}.ln_2.weight"), s.hidden);
        vector(format!("transformer.h.{layer}.attn.c_attn.bias"), 3 * s.hidden);
    }
    made
}
