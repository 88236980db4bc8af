//! One table: canonical tensor names -> the names in a Qwen-1 checkpoint.
//!
//! Nothing else in the library ever spells a checkpoint name. The file format's `w1`, `w2` and
//! `c_proj` become up, gate, down and output here. Pure: reads nothing, knows no sizes.

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

impl LayerTensor {
    /// All tensors of a layer.
    pub const ALL: [LayerTensor; 8] = [
        LayerTensor::AttentionNorm,
        LayerTensor::QkvWeight,
        LayerTensor::QkvBias,
        LayerTensor::OWeight,
        LayerTensor::MlpNorm,
        LayerTensor::GateWeight,
        LayerTensor::UpWeight,
        LayerTensor::DownWeight,
    ];

    /// The weights of linears: what a quantised model has in parts.
    pub const LINEARS: [LayerTensor; 5] = [
        LayerTensor::QkvWeight,
        LayerTensor::OWeight,
        LayerTensor::GateWeight,
        LayerTensor::UpWeight,
        LayerTensor::DownWeight,
    ];
}

/// What the names of all layers' tensors begin with; the layer's number follows.
const LAYER_PREFIX: &str = "transformer.h.";

/// The checkpoint's name of `tensor` in layer `index`.
pub fn layer(index: usize, tensor: LayerTensor) -> String {
    format!("{LAYER_PREFIX}{index}.{}", suffix(tensor))
}

/// What the name of `tensor` ends with, in every layer.
fn suffix(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::AttentionNorm => "ln_1.weight",
        LayerTensor::QkvWeight => "attn.c_attn.weight",
        LayerTensor::QkvBias => "attn.c_attn.bias",
        LayerTensor::OWeight => "attn.c_proj.weight",
        LayerTensor::MlpNorm => "ln_2.weight",
        LayerTensor::GateWeight => "mlp.w2.weight",
        LayerTensor::UpWeight => "mlp.w1.weight",
        LayerTensor::DownWeight => "mlp.c_proj.weight",
    }
}

/// The tensors that stand for the weight of a quantised linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantPart {
    /// Packed codes.
    Codes,
    /// Packed zero points.
    Zeros,
    /// Scales.
    Scales,
    /// The group of each input.
    Groups,
    /// The bias that quantisation gives to linears that had none.
    Bias,
}

impl QuantPart {
    const ALL: [QuantPart; 5] =
        [QuantPart::Codes, QuantPart::Zeros, QuantPart::Scales, QuantPart::Groups, QuantPart::Bias];

    fn name(self) -> &'static str {
        match self {
            QuantPart::Codes => "qweight",
            QuantPart::Zeros => "qzeros",
            QuantPart::Scales => "scales",
            QuantPart::Groups => "g_idx",
            QuantPart::Bias => "bias",
        }
    }
}

/// What the name of an unquantised weight ends with.
const WEIGHT: &str = "weight";

/// The name of `part` of the linear whose weight is called `weight` where it is not quantised.
pub fn part(weight: &str, part: QuantPart) -> String {
    format!("{}{}", weight.strip_suffix(WEIGHT).unwrap_or(weight), part.name())
}

/// The name of the weight that `part_name`, a name of `part`, belongs to.
pub fn weight_of(part_name: &str, part: QuantPart) -> String {
    format!("{}{WEIGHT}", part_name.strip_suffix(part.name()).unwrap_or(part_name))
}

/// The bias of the linear called `weight` that only quantisation gives it; none for Q, K and V,
/// whose bias every model has.
pub fn extra_bias(weight: &str) -> Option<String> {
    let has_own = weight.ends_with(suffix(LayerTensor::QkvWeight));
    (!has_own).then(|| part(weight, QuantPart::Bias))
}

/// What a name found in a checkpoint stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A tensor of the model's arithmetic, of some layer or none.
    Model,
    /// A part of a quantised linear.
    Quantised(QuantPart),
    /// A buffer that some versions saved and every version recomputes.
    Ignored,
    /// Neither: the file is of another kind, and leaving the tensor out would change the answers.
    Unknown,
}

/// Last parts of the names of recomputed buffers: masks, rotary and log-n tables.
const IGNORED_SUFFIXES: [&str; 4] =
    ["attn.masked_bias", "attn.bias", "rotary_emb.inv_freq", "logn_tensor"];

/// The role of the checkpoint tensor called `name`.
pub fn role(name: &str) -> Role {
    if [EMBEDDING, FINAL_NORM, LM_HEAD].contains(&name) || is_layer_tensor(name, &LayerTensor::ALL)
    {
        return Role::Model;
    }
    let is_part = |part: &&QuantPart| {
        name.ends_with(part.name())
            && is_layer_tensor(&weight_of(name, **part), &LayerTensor::LINEARS)
    };
    if let Some(part) = QuantPart::ALL.iter().find(is_part) {
        return Role::Quantised(*part);
    }
    let is_ignored = IGNORED_SUFFIXES.iter().any(|suffix| {
        name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    if is_ignored { Role::Ignored } else { Role::Unknown }
}

/// Whether `name` is that of one of `tensors` in some layer.
fn is_layer_tensor(name: &str, tensors: &[LayerTensor]) -> bool {
    let Some((number, rest)) =
        name.strip_prefix(LAYER_PREFIX).and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    // The canonical spelling only: `h.00.` would never be asked for.
    let is_number = number.parse::<usize>().is_ok_and(|index| index.to_string() == number);
    is_number && tensors.iter().any(|tensor| suffix(*tensor) == rest)
}
