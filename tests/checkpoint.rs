//! Sound checkpoints and configurations: what is read is what was written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qwen::checkpoint::names::{self, LayerTensor, QuantPart, Role};
use qwen::checkpoint::shard::{Slice, Split, slice};
use qwen::checkpoint::{Checkpoint, Source};
use qwen::error::Error;
use qwen::model::config::ModelConfig;
use qwen::model::generation::{ChatFormat, GenerationConfig};
use qwen::tensor::{Dtype, HostTensor};
use safetensors::SafeTensors;

const TINY: [&str; 6] =
    ["logn-f16", "ntk-bf16", "ntk-logn-bf16", "ntk-logn-f32", "plain-bf16", "plain-f32"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

fn demo_model() -> PathBuf {
    let folder = root().join("demo/chat-model");
    assert!(folder.is_dir(), "{} is missing: run `make demo-model`", folder.display());
    folder
}

/// A folder of its own for one test with one file in it, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn with(file: &str, text: &str) -> Scratch {
        let thread = std::thread::current().id();
        let name = format!("checkpoint-{}-{thread:?}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
        Scratch(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn whole(checkpoint: &Checkpoint, name: &str) -> HostTensor {
    let (_, rows, cols) = checkpoint.shape(name).unwrap();
    let all = slice(Split::Replicated, rows, cols, 0, 1).unwrap();
    checkpoint.tensor(name, rows, cols, &all).unwrap()
}

/// Calls `check` with each tensor of a folder as the `safetensors` crate reads it.
fn for_each_twin(folder: &Path, mut check: impl FnMut(&str, safetensors::tensor::TensorView)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                check(&name, view);
            }
        }
    }
}

#[test]
fn every_tensor_reads_as_the_safetensors_crate_reads_it() {
    for name in TINY {
        let mapped = Checkpoint::open(&tiny(name)).unwrap();
        let copied = Checkpoint::open_with(&tiny(name), Source::Copy).unwrap();
        let (mut count, mut total) = (0, 0);
        for_each_twin(&tiny(name), |name, view| {
            let (dtype, rows, cols) = mapped.shape(name).unwrap();
            let mut shape = vec![rows, cols];
            shape.truncate(view.shape().len());
            assert_eq!(shape, view.shape(), "{name}");
            assert_eq!(dtype.name().to_uppercase(), view.dtype().to_string());
            assert_eq!(whole(&mapped, name).bytes(), view.data(), "{name}");
            assert_eq!(whole(&copied, name).bytes(), view.data(), "{name}");
            count += 1;
            total += view.data().len() as u64;
        });
        assert_eq!(mapped.names().count(), count);
        assert_eq!(mapped.total_bytes(), total);
        assert_eq!(copied.total_bytes(), total);
    }
}

#[test]
fn a_copy_starts_at_a_vector_boundary_and_outlives_the_checkpoint() {
    let checkpoint = Checkpoint::open_with(&tiny("plain-f32"), Source::Copy).unwrap();
    let first = checkpoint
        .names()
        .map(|name| whole(&checkpoint, name))
        .min_by_key(|tensor| tensor.bytes().as_ptr())
        .unwrap();
    drop(checkpoint);
    assert_eq!(first.bytes().as_ptr().align_offset(64), 0);
    assert!(first.to_f32().iter().all(|value| value.is_finite()));
}

#[test]
fn contiguous_slices_are_windows_and_others_are_gathered() {
    let checkpoint = Checkpoint::open(&tiny("ntk-logn-bf16")).unwrap();
    let name = names::layer(1, LayerTensor::QkvWeight);
    let (dtype, rows, cols) = checkpoint.shape(&name).unwrap();
    assert_eq!((dtype, rows, cols), (Dtype::Bf16, 144, 48));
    let whole = whole(&checkpoint, &name);
    let address = |bytes: &[u8]| bytes.as_ptr() as usize;
    let base = address(whole.bytes());

    let part = slice(Split::Column, rows, cols, 1, 4).unwrap();
    let window = checkpoint.tensor(&name, rows, cols, &part).unwrap();
    assert_eq!(address(window.bytes()), base + 36 * 48 * 2);

    let inside = base..base + whole.bytes().len();
    for split in [Split::ColumnThirds, Split::Row] {
        let part = slice(split, rows, cols, 1, 4).unwrap();
        let gathered = checkpoint.tensor(&name, rows, cols, &part).unwrap();
        assert!(!inside.contains(&address(gathered.bytes())), "{split:?}");
    }
}

proptest! {
    /// Any slice holds exactly the elements it names.
    #[test]
    fn slices_hold_the_elements_they_name(
        rows in prop::collection::vec((0usize..145, 0usize..145), 0..4),
        cols in (0usize..49, 0usize..49),
    ) {
        let checkpoint = Checkpoint::open(&tiny("ntk-logn-bf16")).unwrap();
        let name = names::layer(0, LayerTensor::QkvWeight);
        let all = whole(&checkpoint, &name).to_f32();
        let range = |(a, b): (usize, usize)| a.min(b)..a.max(b);
        let part = Slice { row_ranges: rows.into_iter().map(range).collect(), cols: range(cols) };
        let tensor = checkpoint.tensor(&name, 144, 48, &part).unwrap();
        let mut expected = Vec::new();
        for row in part.row_ranges.iter().cloned().flatten() {
            expected.extend(part.cols.clone().map(|col| all[row * 48 + col]));
        }
        prop_assert_eq!((tensor.rows(), tensor.cols()), (part.num_rows(), part.cols.len()));
        prop_assert_eq!(tensor.to_f32(), expected);
    }
}

#[test]
fn wrong_requests_are_typed_errors() {
    let checkpoint = Checkpoint::open(&tiny("plain-bf16")).unwrap();
    let all = slice(Split::Replicated, 64, 1, 0, 1).unwrap();
    let wrong = checkpoint.tensor(names::FINAL_NORM, 63, 1, &all).map(|_| ()).unwrap_err();
    let text = wrong.to_string();
    assert!(text.contains(names::FINAL_NORM) && text.contains("[64], expected [63]"), "{text}");
    let outside = Slice { row_ranges: vec![0..64, 60..65], cols: 0..1 };
    let error = checkpoint.tensor(names::FINAL_NORM, 64, 1, &outside).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Argument { argument: "slice", .. }), "{error:?}");
    let name = names::layer(7, LayerTensor::UpWeight);
    let error = checkpoint.shape(&name).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { tensor: Some(t), .. } if *t == name), "{error:?}");
    assert!(!checkpoint.contains(&name) && checkpoint.contains(names::LM_HEAD));
}

#[test]
fn names_have_roles() {
    for tensor in [LayerTensor::QkvBias, LayerTensor::DownWeight, LayerTensor::MlpNorm] {
        assert_eq!(names::role(&names::layer(79, tensor)), Role::Model);
    }
    let ignored = ["transformer.h.0.attn.masked_bias", "transformer.rotary_emb.inv_freq"];
    for name in ignored.into_iter().chain(["transformer.h.3.attn.rotary_emb.inv_freq"]) {
        assert_eq!(names::role(name), Role::Ignored, "{name}");
    }
    let linear = names::layer(3, LayerTensor::DownWeight);
    for part in [QuantPart::Codes, QuantPart::Zeros, QuantPart::Scales, QuantPart::Groups] {
        let name = names::part(&linear, part);
        assert_eq!(names::role(&name), Role::Quantised(part), "{name}");
        assert_eq!(names::weight_of(&name, part), linear);
    }
    let bias = names::extra_bias(&linear).unwrap();
    assert_eq!(bias, "transformer.h.3.mlp.c_proj.bias");
    assert_eq!(names::role(&bias), Role::Quantised(QuantPart::Bias));
    assert_eq!(names::extra_bias(&names::layer(3, LayerTensor::QkvWeight)), None);
    for name in [
        "lm_head.qweight",
        "transformer.h.0.ln_1.scales",
        "transformer.h.0.attn.c_attn.scale",
        "transformer.h.00.ln_1.weight",
        "transformer.h.-1.ln_1.weight",
        "transformer.h.0.ln_2.bias",
        "my_logn_tensor",
        "",
    ] {
        assert_eq!(names::role(name), Role::Unknown, "{name}");
    }
}

#[test]
fn tiny_configurations_read_as_written() {
    let config = ModelConfig::open(&tiny("ntk-logn-bf16")).unwrap();
    let expected = ModelConfig {
        num_layers: 2,
        hidden_size: 48,
        num_heads: 4,
        num_kv_heads: 4,
        head_dim: 12,
        intermediate_size: 72,
        vocab_size: 293,
        norm_epsilon: 1e-6,
        rope_base: 10000.0,
        train_context_tokens: 16,
        use_dynamic_ntk: true,
        use_logn_attention: true,
        quantisation: None,
    };
    assert_eq!(config, expected);
    let plain = ModelConfig::open(&tiny("plain-f32")).unwrap();
    assert_eq!((plain.use_dynamic_ntk, plain.use_logn_attention), (false, false));
    assert_eq!(plain.rope_base, 1e6);
}

#[test]
fn spellings_of_august_2023_and_defaults_are_understood() {
    let text = r#"{"model_type": "qwen", "n_embd": 4096, "n_layer": 32, "n_head": 32,
        "ffn_hidden_size": 22016, "seq_length": 2048, "padded_vocab_size": 151936,
        "vocab_size": 151851, "quantization_config": null}"#;
    let scratch = Scratch::with("config.json", text);
    let config = ModelConfig::open(&scratch.0).unwrap();
    assert_eq!((config.hidden_size, config.num_layers, config.num_heads), (4096, 32, 32));
    assert_eq!((config.intermediate_size, config.vocab_size), (11008, 151936));
    assert_eq!((config.head_dim, config.rope_base), (128, 10000.0));
    assert_eq!(config.norm_epsilon, 1e-6);
    assert!(config.use_dynamic_ntk && config.use_logn_attention);
}

#[test]
fn generation_defaults_stand_in_for_a_missing_file_and_keys() {
    let scratch = Scratch::with("config.json", "{}");
    let defaults = GenerationConfig::open(&scratch.0).unwrap();
    assert_eq!(defaults, GenerationConfig::default());
    assert_eq!((defaults.max_new_tokens, defaults.repetition_penalty), (512, 1.1));

    let base = r#"{"chat_format": "raw", "eos_token_id": 151643, "stop_words_ids": [[151643]],
        "temperature": null}"#;
    std::fs::write(scratch.0.join("generation_config.json"), base).unwrap();
    let base = GenerationConfig::open(&scratch.0).unwrap();
    let expected = GenerationConfig {
        chat_format: ChatFormat::Raw,
        eos_token_ids: vec![151643],
        stop_words_ids: vec![vec![151643]],
        repetition_penalty: 1.0,
        ..GenerationConfig::default()
    };
    assert_eq!(base, expected);
}

#[test]
fn the_demo_model_is_whole() {
    let folder = demo_model();
    let config = ModelConfig::open(&folder).unwrap();
    let generation = GenerationConfig::open(&folder).unwrap();
    assert_eq!((config.num_layers, config.hidden_size, config.head_dim), (30, 576, 64));
    assert_eq!(generation.eos_token_ids, [49135]);
    assert_eq!((generation.temperature, generation.top_p), (0.2, 0.8));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.names().count(), 8 * config.num_layers + 3);
    let index = std::fs::read(folder.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], checkpoint.total_bytes());
    let expected = (Dtype::Bf16, config.vocab_size, config.hidden_size);
    assert_eq!(checkpoint.shape(names::EMBEDDING).unwrap(), expected);
}

#[test]
fn a_config_knows_the_number_of_its_weights() {
    for name in ["plain-f32", "ntk-logn-f32", "plain-bf16", "ntk-bf16", "ntk-logn-bf16", "logn-f16"]
    {
        let config = ModelConfig::open(&tiny(name)).unwrap();
        let checkpoint = Checkpoint::open(&tiny(name)).unwrap();
        let (dtype, ..) = checkpoint.shape(names::LM_HEAD).unwrap();
        let bytes = config.num_parameters() * dtype.size_bytes() as u64;
        assert_eq!(bytes, checkpoint.total_bytes(), "{name}");
    }
}
