//! Whole quantised models on the GPU against the plain CPU reference, and what an engine of one takes.
//!
//! Tolerance as in `model`, with four roundings a layer more: in steps of more rows than our own kernel
//! takes, the weights of the four linears are rounded to f16.

use std::path::Path;
use std::sync::Arc;

use half::f16;
use qwen::backend::comm::Solo;
use qwen::backend::cpu::fast::Fast;
use qwen::backend::cpu::reference::Reference;
use qwen::engine::{Engine, EngineOptions};
use qwen::error::Error;
use qwen::model::Rank;
use qwen::model::config::ModelConfig;
use qwen::quant::{Bits, Groups};
use qwen::tensor::Dtype;
use serde_json::json;

use crate::checkpoint::{Shape, Tensor, config, tensors, write_json, write_tensors};
use crate::common::Random;
use crate::common::quant::{Order, groups};
use crate::device::{gpu, limits, quantised_backend};
use crate::model::{LIMITS, allowed, compare_steps, folder, try_load};
use crate::opened::{Folder, options, reply};

/// How linears are quantised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) bits: Bits,
    /// Inputs of a group; 0: all in one.
    pub(crate) size: usize,
    pub(crate) symmetric: bool,
    pub(crate) act_order: bool,
    /// A bias on every linear that is not zero.
    pub(crate) biased: bool,
}

/// config.json of a quantised model.
pub(crate) fn quantised_config(shape: &Shape, format: &Format) -> serde_json::Value {
    let mut config = config(shape);
    config["quantization_config"] = json!({
        "quant_method": "gptq",
        "bits": format.bits.count(),
        "group_size": if format.size == 0 { json!(-1) } else { json!(format.size) },
        "desc_act": format.act_order,
        "sym": format.symmetric,
    });
    config
}

fn words(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(u32::to_le_bytes).collect()
}

/// The parts of one linear, in place of its weight `[n, k]`.
fn parts(
    random: &mut Random,
    (name, n, k): (&str, usize, usize),
    format: &Format,
    order: &[u32],
) -> Vec<Tensor> {
    let per_word = format.bits.codes_per_word();
    let num_groups = *order.iter().max().expect("inputs") as usize + 1;
    let spread = (k as f32).sqrt() * format.bits.middle() as f32;
    let scale = |random: &mut Random| f16::from_f32((1.0 + 0.3 * random.normal()) / spread);
    // The stored zero point is one less: 7 and 127, or some near them.
    let zero = |random: &mut Random| match (format.bits, format.symmetric) {
        (Bits::Four, true) => 0x7777_7777,
        (Bits::Eight, true) => 0x7f7f_7f7f,
        (Bits::Four, false) => 0x4444_4444 + (random.bits() as u32 & 0x7777_7777),
        (Bits::Eight, false) => 0x7878_7878 + (random.bits() as u32 & 0x0f0f_0f0f),
    };
    let part = |tail: &str, shape: Vec<usize>, bytes: Vec<u8>| {
        (name.replace(".weight", &format!(".{tail}")), shape, bytes)
    };
    let codes = words((0..k / per_word * n).map(|_| random.bits() as u32));
    let zeros = words((0..num_groups * n / per_word).map(|_| zero(random)));
    let scales = (0..num_groups * n).flat_map(|_| scale(random).to_le_bytes()).collect();
    let mut made = vec![
        part("qweight", vec![k / per_word, n], codes),
        part("qzeros", vec![num_groups, n / per_word], zeros),
        part("scales", vec![num_groups, n], scales),
        part("g_idx", vec![k], words(order.iter().copied())),
    ];
    // The bias of Q, K and V is the model's own, and there already.
    if !name.ends_with("c_attn.weight") {
        let size = if format.biased { 0.3 } else { 0.0 };
        let bias = |_| f16::from_f32(size * random.normal()).to_le_bytes();
        made.push(part("bias", vec![n], (0..n).flat_map(bias).collect()));
    }
    made
}

/// Writes a quantised checkpoint. Linears of the same input have it in the same order.
pub(crate) fn write(folder: &Path, random: &mut Random, shape: &Shape, format: &Format) {
    write_json(folder, &quantised_config(shape, format));
    let mut made = Vec::new();
    let mut order_of_gate = Vec::new();
    for (name, size, bytes) in tensors(random, shape) {
        let is_linear = name.contains(".attn.c_") || name.contains(".mlp.");
        if !is_linear || size.len() == 1 {
            made.push((name, size, bytes));
            continue;
        }
        let (n, k) = (size[0], size[1]);
        let group = if format.size == 0 { k } else { format.size };
        let order = if format.act_order { Order::Shuffled } else { Order::Runs };
        let mut list = match groups(random, k, group, order) {
            Groups::Listed(list) => list.to_vec(),
            Groups::Runs(size) => (0..k).map(|input| (input / size) as u32).collect(),
        };
        if name.contains("mlp.w2") {
            list.clone_from(&order_of_gate);
        }
        if name.contains("mlp.w1") {
            order_of_gate.clone_from(&list);
        }
        made.extend(parts(random, (&name, n, k), format, &list));
    }
    write_tensors(folder, shape.dtype, &made);
}

pub(crate) fn shape(heads: usize, dim: usize, width: usize) -> Shape {
    Shape {
        layers: 4,
        hidden: heads * dim,
        heads,
        width,
        vocab: 1000,
        dtype: Dtype::F16,
        stretched: false,
    }
}

fn cases() -> [(Shape, Format); 7] {
    let format = |bits, size, symmetric, act_order, biased| Format {
        bits,
        size,
        symmetric,
        act_order,
        biased,
    };
    [
        (shape(4, 128, 512), format(Bits::Four, 128, true, false, false)),
        (shape(4, 128, 512), format(Bits::Eight, 128, true, false, false)),
        // Sizes that fill no chunk, groups cut short.
        (shape(3, 64, 264), format(Bits::Four, 64, false, false, true)),
        (shape(9, 64, 328), format(Bits::Eight, 128, false, false, false)),
        (shape(4, 64, 512), format(Bits::Four, 32, true, true, false)),
        (shape(3, 128, 256), format(Bits::Eight, 128, false, true, true)),
        (shape(4, 64, 256), format(Bits::Four, 0, true, false, true)),
    ]
}

/// Checkpoint `index`, on the reference and on what `load` makes of it.
fn compare(index: usize, name: &str, load: impl Fn(&Path, &ModelConfig) -> Box<dyn Rank>) {
    let mut random = Random::from_env();
    let (shape, format) = cases()[index];
    let folder = folder(&format!("gptq-{name}-{index}"));
    write(&folder, &mut random, &shape, &format);
    let mut cpu = try_load(&folder, Reference::new(Arc::new(Solo), 0), LIMITS).expect("it loads");
    let config = ModelConfig::open(&folder).expect("config.json");
    let mut other = load(&folder, &config);
    eprintln!("{shape:?} {format:?}");
    // Four more roundings than the eight that are counted there.
    let allowed = allowed(&shape) * 1.5_f64.sqrt();
    compare_steps(&mut *cpu, &mut *other, &mut random, &shape, allowed);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Those that two and four ranks can divide: groups on either side of the cut.
pub(crate) fn compare_divided(name: &str, load: impl Fn(&Path) -> Box<dyn Rank>) {
    for index in [0, 1, 4, 6] {
        compare(index, name, |folder, _| load(folder));
    }
}

#[test]
fn quantised_logits_agree_with_the_reference() {
    let Some(device) = gpu() else { return };
    for index in 0..cases().len() {
        compare(index, "gpu", |folder, config| {
            let mut sizes = limits(config.head_dim);
            (sizes.max_tokens, sizes.max_sequences) = (LIMITS.max_tokens, LIMITS.max_logits_rows);
            let columns = (config.intermediate_size, config.vocab_size);
            let backend = quantised_backend(&device, sizes, columns);
            try_load(folder, backend, LIMITS).expect("it loads")
        });
    }
}

/// What is written is a quantised checkpoint: other loops on the CPU read the same out of it.
#[test]
fn such_checkpoints_run_on_the_cpu() {
    for index in 0..cases().len() {
        compare(index, "cpu", |folder, _| {
            let backend = Fast::new(Arc::new(Solo), 0, 2).expect("threads");
            try_load(folder, backend, LIMITS).expect("it loads")
        });
    }
}

/// A checkpoint that other kernels than f16 ones would have to read.
#[test]
fn codes_among_bf16_weights_are_refused() {
    let Some(_) = gpu() else { return };
    let shape = Shape { dtype: Dtype::Bf16, ..shape(2, 64, 256) };
    let format =
        Format { bits: Bits::Four, size: 128, symmetric: true, act_order: false, biased: false };
    let folder = Folder::new("gptq-bf16", &shape);
    write_json(folder.path(), &quantised_config(&shape, &format));
    let error = Engine::estimate(folder.path(), &options()).expect_err("bf16");
    match error {
        Error::Unsupported { field, reason, .. } => {
            assert_eq!(field, "torch_dtype");
            assert!(reason.contains("gptq-int4 among bf16"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// The same random codes answer alike on the CPU and the GPU, through the engine.
#[test]
fn engines_with_random_codes_open_and_answer() {
    let Some(_) = gpu() else { return };
    for bits in [Bits::Four, Bits::Eight] {
        let shape = shape(2, 128, 512);
        let shape = Shape { vocab: 304, ..shape };
        let format = Format { bits, size: 128, symmetric: true, act_order: false, biased: false };
        let folder = Folder::new(&format!("gptq-{}", bits.count()), &shape);
        write_json(folder.path(), &quantised_config(&shape, &format));
        let replies = ["cpu", "cuda"].map(|backend| {
            let options = EngineOptions { backend: backend.to_string(), ..options() };
            let opened = Engine::open(folder.path(), &options, None, &mut |_| true);
            reply(&opened.expect("it opens")).expect("a reply")
        });
        assert!(replies.iter().all(|reply| !reply.is_empty()), "{replies:?}");
        eprintln!("{bits:?}: {replies:?}");
    }
}
