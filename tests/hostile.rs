//! Broken checkpoints: each folder of tests/data/hostile has its own error, and nothing panics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use std::path::{Path, PathBuf};

use qwen::checkpoint::names::{self, LayerTensor};
use qwen::checkpoint::shard::{Split, slice};
use qwen::checkpoint::{Checkpoint, Source};
use qwen::error::{Error, Result};
use qwen::model::Weights;
use qwen::model::config::ModelConfig;
use qwen::model::generation::GenerationConfig;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";
const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const HEAD: &str = "lm_head.weight";
const BIAS: &str = "transformer.h.0.attn.c_attn.bias";
const OUTPUT: &str = "transformer.h.0.attn.c_proj.weight";
const O_BIAS: &str = "transformer.h.0.attn.c_proj.bias";
const CODES: &str = "transformer.h.0.attn.c_proj.qweight";
const ZEROS: &str = "transformer.h.0.attn.c_proj.qzeros";
const SCALES: &str = "transformer.h.0.attn.c_proj.scales";
const GROUPS: &str = "transformer.h.0.attn.c_proj.g_idx";
const DOWN: &str = "transformer.h.0.mlp.c_proj.weight";
/// Where the tensors begin in a file with the minimal checkpoint's sound header.
const DATA: u64 = 939;

/// What a case must fail with. The text must occur in the reason.
#[derive(Debug)]
enum Fails {
    NotFound(&'static str),
    Corrupt(&'static str, &'static str),
    CorruptAt(&'static str, u64, &'static str),
    Tensor(&'static str, &'static str, Option<u64>, &'static str),
    Unsupported(&'static str, &'static str),
}
use Fails::{Corrupt, CorruptAt, NotFound, Tensor, Unsupported};

const CASES: &[(&str, Fails)] = &[
    ("config-biases", Unsupported(CONFIG, "no_bias")),
    ("config-epsilon", Unsupported(CONFIG, "layer_norm_epsilon")),
    ("config-giant", Unsupported(CONFIG, "hidden_size")),
    ("config-giant-vocabulary", Unsupported(CONFIG, "vocab_size")),
    ("config-heads-misfit", Unsupported(CONFIG, "kv_channels")),
    ("config-key-missing", Corrupt(CONFIG, "`hidden_size` is missing")),
    ("config-length-one", Unsupported(CONFIG, "seq_length")),
    ("config-missing", NotFound(CONFIG)),
    ("config-nan", CorruptAt(CONFIG, 207, "bad JSON")),
    ("config-negative", Corrupt(CONFIG, "`num_attention_heads` is not an integer")),
    ("config-not-an-object", Corrupt(CONFIG, "not a JSON object")),
    ("config-odd-head", Unsupported(CONFIG, "kv_channels")),
    ("config-odd-width", Unsupported(CONFIG, "intermediate_size")),
    ("config-part-rotary", Unsupported(CONFIG, "rotary_pct")),
    ("config-tied", Unsupported(CONFIG, "tie_word_embeddings")),
    ("config-truncated", CorruptAt(CONFIG, 99, "EOF")),
    ("config-wrong-architecture", Unsupported(CONFIG, "architectures")),
    ("config-wrong-model-type", Unsupported(CONFIG, "model_type")),
    ("config-wrong-type", Corrupt(CONFIG, "`num_hidden_layers` is not an integer")),
    ("config-zero-layers", Unsupported(CONFIG, "num_hidden_layers")),
    ("dtype-integer", Unsupported(SINGLE, BIAS)),
    ("dtype-invented", Unsupported(SINGLE, BIAS)),
    ("file-cut-in-data", Tensor(SINGLE, HEAD, Some(DATA + 312), "outside the 366 bytes")),
    ("file-cut-in-header", CorruptAt(SINGLE, 0, "in a file of 465")),
    ("file-cut-in-length", CorruptAt(SINGLE, 0, "5 bytes has no header")),
    ("file-empty", CorruptAt(SINGLE, 0, "0 bytes has no header")),
    ("file-too-long", CorruptAt(SINGLE, DATA + 376, "6 bytes after the last tensor")),
    ("generation-eos", Corrupt(GENERATION, "`eos_token_id` is not an integer")),
    ("generation-format", Unsupported(GENERATION, "chat_format")),
    ("generation-stop-words", Unsupported(GENERATION, "stop_words_ids")),
    ("generation-top-p", Unsupported(GENERATION, "top_p")),
    ("generation-truncated", CorruptAt(GENERATION, 29, "EOF")),
    ("header-bad-json", CorruptAt(SINGLE, 48, "expected `,` or `}`")),
    ("header-huge", CorruptAt(SINGLE, 0, "9223372036854775808 bytes is over")),
    ("header-not-an-object", CorruptAt(SINGLE, 8, "expected an object")),
    ("header-not-utf8", CorruptAt(SINGLE, 23, "unicode")),
    ("header-over-limit", CorruptAt(SINGLE, 0, "100000001 bytes is over")),
    ("header-past-end", CorruptAt(SINGLE, 0, "1308 bytes in a file of 1315")),
    ("index-absolute", Tensor(INDEX, HEAD, None, "`/dev/zero` is not a file of the folder")),
    ("index-empty-map", Corrupt(INDEX, "`weight_map` is empty")),
    ("index-escape", Tensor(INDEX, HEAD, None, "`../sound/model.safetensors` is not a file")),
    ("index-misplaced", Tensor(SHARD_1, HEAD, None, "the index places it here")),
    ("index-no-map", CorruptAt(INDEX, 15, "missing field `weight_map`")),
    ("index-parent", Tensor(INDEX, HEAD, None, "`..` is not a file of the folder")),
    ("index-shard-missing", NotFound("model-00003-of-00003.safetensors")),
    ("index-shards-share", Tensor(SHARD_2, OUTPUT, Some(590), "in another shard too")),
    ("index-truncated", CorruptAt(INDEX, 36, "EOF")),
    ("index-twice", Tensor(INDEX, HEAD, None, "is listed twice")),
    ("offsets-gap", Tensor(SINGLE, BIAS, Some(DATA + 172), "follows a gap")),
    ("offsets-negative", CorruptAt(SINGLE, 340, "`-24`, expected u64")),
    ("offsets-outside", Tensor(SINGLE, BIAS, Some(1_000_947), "outside the 376 bytes")),
    ("offsets-overflow", Tensor(SINGLE, BIAS, Some(u64::MAX), "outside the 376 bytes")),
    ("offsets-overlap", Tensor(SINGLE, BIAS, Some(DATA + 164), "overlaps")),
    ("offsets-reversed", Tensor(SINGLE, BIAS, Some(DATA + 192), "192..168")),
    ("quantised-bias-dtype", Unsupported(SINGLE, "transformer.h.0.attn.c_proj.bias")),
    ("quantised-bias-length", Tensor(SINGLE, O_BIAS, Some(3162), "[9], expected [8]")),
    ("quantised-bits", Unsupported(CONFIG, "quantization_config.bits")),
    ("quantised-bits-missing", Corrupt(CONFIG, "`quantization_config.bits` is missing")),
    ("quantised-codes-dtype", Unsupported(SINGLE, CODES)),
    ("quantised-codes-missing", Tensor("", CODES, None, "no shard holds it")),
    ("quantised-codes-of-8-bits", Tensor(SINGLE, CODES, Some(3210), "[2, 8], expected [1, 8]")),
    ("quantised-codes-transposed", Tensor(SINGLE, CODES, Some(3210), "[8, 1], expected [1, 8]")),
    ("quantised-codes-wide", Unsupported(SINGLE, CODES)),
    ("quantised-files-differ", Unsupported("quantize_config.json", "bits")),
    ("quantised-format", Unsupported(CONFIG, "quantization_config.checkpoint_format")),
    ("quantised-group-negative", Corrupt(CONFIG, "`quantization_config.group_size` is not an")),
    ("quantised-group-odd", Unsupported(CONFIG, "quantization_config.group_size")),
    ("quantised-group-zero", Unsupported(CONFIG, "quantization_config.group_size")),
    (
        "quantised-groups-below-zero",
        Tensor(SINGLE, GROUPS, Some(3206), "input 7 is in group -1, of 1"),
    ),
    ("quantised-groups-beyond", Tensor(SINGLE, GROUPS, Some(3206), "input 7 is in group 1, of 1")),
    ("quantised-groups-missing", Tensor("", GROUPS, None, "no shard holds it")),
    ("quantised-groups-short", Tensor(SINGLE, GROUPS, Some(3178), "[7], expected [8]")),
    ("quantised-method", Unsupported(CONFIG, "quantization_config.quant_method")),
    ("quantised-not-an-object", Corrupt(CONFIG, "`quantization_config` is not an object")),
    ("quantised-nothing", Corrupt(CONFIG, "it speaks of quantised weights")),
    ("quantised-scales-dtype", Unsupported(SINGLE, SCALES)),
    ("quantised-scales-missing", Tensor("", SCALES, None, "no shard holds it")),
    ("quantised-scales-short", Tensor(SINGLE, SCALES, Some(3246), "[1, 7], expected [1, 8]")),
    ("quantised-undeclared", Corrupt("quantize_config.json", "the weights are quantised")),
    ("quantised-weight-too", Tensor(SINGLE, CODES, None, "which one counts")),
    ("quantised-zeros-shape", Tensor(SINGLE, ZEROS, Some(3242), "[2, 1], expected [1, 1]")),
    ("shape-disagrees", Tensor(SINGLE, BIAS, Some(DATA + 168), "F16 of shape [11]")),
    ("shape-overflow", Tensor(SINGLE, BIAS, Some(1146), "24 bytes do not hold F16")),
    ("shape-three-dimensions", Tensor(SINGLE, BIAS, Some(1110), "[3, 2, 2], expected a vector")),
    ("shape-transposed", Tensor(SINGLE, DOWN, Some(DATA + 280), "[3, 4], expected [4, 3]")),
    ("tensor-empty", Tensor(SINGLE, "transformer.h.1.ln_1.weight", Some(1418), "no elements")),
    ("tensor-missing", Tensor("", HEAD, None, "no shard holds it")),
    ("tensor-twice", Tensor(SINGLE, BIAS, Some(8), "listed twice")),
    ("tensor-unknown", Unsupported(SINGLE, "transformer.h.0.attn.c_proj.bias")),
    ("weights-missing", NotFound(SINGLE)),
];

/// Sound but for the vocabulary, which other rooms read.
const VOCABULARY_CASES: [&str; 4] =
    ["vocabulary-bad-base64", "vocabulary-gap", "vocabulary-missing", "vocabulary-over-rows"];

fn hostile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile")
}

/// Everything that is read of a checkpoint but its vocabulary, with every shape checked.
fn open_all(folder: &Path, source: Source) -> Result<()> {
    let config = ModelConfig::open(folder)?;
    GenerationConfig::open(folder)?;
    let checkpoint = Checkpoint::open_with(folder, source)?;
    Weights::Stored(&checkpoint).check_quantisation(&config)?;
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let mut tensors = vec![
        (names::EMBEDDING.to_string(), config.vocab_size, hidden),
        (names::FINAL_NORM.to_string(), hidden, 1),
        (names::LM_HEAD.to_string(), config.vocab_size, hidden),
    ];
    for (tensor, rows, cols) in [
        (LayerTensor::AttentionNorm, hidden, 1),
        (LayerTensor::QkvWeight, 3 * hidden, hidden),
        (LayerTensor::QkvBias, 3 * hidden, 1),
        (LayerTensor::OWeight, hidden, hidden),
        (LayerTensor::MlpNorm, hidden, 1),
        (LayerTensor::GateWeight, width, hidden),
        (LayerTensor::UpWeight, width, hidden),
        (LayerTensor::DownWeight, hidden, width),
    ] {
        tensors.extend((0..config.num_layers).map(|i| (names::layer(i, tensor), rows, cols)));
    }
    for (name, rows, cols) in tensors {
        let whole = slice(Split::Replicated, rows, cols, 0, 1)?;
        checkpoint.check_present(&name)?;
        if let Some(format) = config.quantisation.filter(|_| checkpoint.has_codes(&name)) {
            let tensor =
                checkpoint.quantised(&name, (rows, cols), &format, &whole, (true, false))?;
            assert_eq!(tensor.dequantise().len(), rows * cols);
            continue;
        }
        let tensor = checkpoint.tensor(&name, rows, cols, &whole)?;
        assert_eq!(tensor.to_f32().len(), rows * cols);
    }
    Ok(())
}

/// Whether `error`, met under `folder`, is the one that `fails` describes.
fn matches(folder: &Path, error: &Error, fails: &Fails) -> bool {
    let is = |path: &Path, file: &str| {
        *path == folder.join(file) || (*path == *folder && file.is_empty())
    };
    match (error, fails) {
        (Error::NotFound { path }, NotFound(file)) => is(path, file),
        (Error::Unsupported { path, field, .. }, Unsupported(file, expected)) => {
            is(path, file) && field == expected
        }
        (Error::Corrupt { path, tensor, offset_bytes, reason }, _) => {
            let (file, name, offset, text) = match *fails {
                Corrupt(file, text) => (file, None, None, text),
                CorruptAt(file, offset, text) => (file, None, Some(offset), text),
                Tensor(file, name, offset, text) => (file, Some(name), offset, text),
                _ => return false,
            };
            is(path, file)
                && tensor.as_deref() == name
                && *offset_bytes == offset
                && reason.contains(text)
        }
        _ => false,
    }
}

#[test]
fn every_defect_has_its_own_error() {
    let mut seen = std::collections::HashMap::new();
    for (case, fails) in CASES {
        let folder = hostile().join(case);
        for source in [Source::Map, Source::Copy] {
            let error = open_all(&folder, source).expect_err(case);
            assert!(matches(&folder, &error, fails), "{case}: got {error:?}, expected {fails:?}");
            let text = error.to_string().replace(&*folder.to_string_lossy(), "");
            let other = seen.insert(text.clone(), case);
            assert!(other.is_none_or(|other| other == case), "{case} and {other:?}: {text}");
        }
    }
}

#[test]
fn the_folder_holds_the_listed_cases_and_sound_ones() {
    for entry in std::fs::read_dir(hostile()).expect("tests/data/make_hostile.py writes it") {
        let case = entry.unwrap().file_name().into_string().unwrap();
        if CASES.iter().all(|(listed, _)| *listed != case) {
            assert!(
                case.starts_with("sound") || VOCABULARY_CASES.contains(&&*case),
                "{case} is not listed"
            );
            open_all(&hostile().join(&case), Source::Map).expect(&case);
        }
    }
}

/// A folder of its own for one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    /// A copy of the folder of `case`.
    fn copy_of(case: &str) -> Scratch {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "{case}-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(hostile().join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        Scratch(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Every single-bit change of the first `limit` bytes of `file`, and every shorter file: each
/// opens or fails with an error; a panic fails the test. Returns how many were tried and refused.
fn damage_all(case: &str, file: &str, limit: usize) -> (usize, usize) {
    let scratch = Scratch::copy_of(case);
    let path = scratch.0.join(file);
    let sound = std::fs::read(&path).unwrap();
    let limit = limit.min(sound.len());
    let (mut tried, mut refused) = (0, 0);
    let mut attempt = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let source = if tried % 2 == 0 { Source::Map } else { Source::Copy };
        tried += 1;
        refused += usize::from(open_all(&scratch.0, source).is_err());
    };
    for bit in 0..limit * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        attempt(&bytes);
    }
    for len in 0..limit {
        attempt(&sound[..len]);
    }
    (tried, refused)
}

#[test]
fn no_bit_of_a_header_can_cause_a_panic() {
    let (tried, refused) = damage_all("sound", SINGLE, DATA as usize);
    assert_eq!(tried, 9 * DATA as usize);
    // Harmless are only changes that keep dtype and shape alike, F16 to BF16 for one.
    assert!(refused > tried * 95 / 100, "{refused} of {tried}");
}

#[test]
fn no_bit_of_the_json_files_can_cause_a_panic() {
    damage_all("sound", CONFIG, usize::MAX);
    damage_all("sound", GENERATION, usize::MAX);
    damage_all("sound-sharded", INDEX, usize::MAX);
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    let scratch = Scratch::copy_of("weights-missing");
    std::fs::create_dir(scratch.0.join(SINGLE)).unwrap();
    let fails = Corrupt(SINGLE, "not a regular file");
    let error = open_all(&scratch.0, Source::Map).unwrap_err();
    assert!(matches(&scratch.0, &error, &fails), "{error:?}");
}
