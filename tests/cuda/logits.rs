//! A tool rather than a test: writes the logits of a checkpoint on the GPU, for another program to
//! judge. `tests/data/transformers_logits.py` runs it.

use std::path::PathBuf;

use crate::device::gpu;
use crate::model::{LIMITS, Script, on_gpu};
use qwen::model::config::ModelConfig;

/// Tokens of the first two steps; the rest is decoded one by one.
const CHUNKS: [usize; 2] = [129, 71];

/// Reads the folder named by `QWEN_LOGITS_FOLDER`: a checkpoint and `tokens.json`, a list of ids.
/// Writes `logits.f32` there: little-endian `[rows, vocab]`, the rows being the last of each step
/// (two chunks of prompt, then one token each).
#[test]
#[ignore = "run by tests/data/transformers_logits.py"]
fn write_logits() {
    let Some(device) = gpu() else { return };
    let folder = PathBuf::from(std::env::var_os("QWEN_LOGITS_FOLDER").expect("a folder"));
    let config = ModelConfig::open(&folder).expect("config.json");
    let dtype = ModelConfig::declared_dtype(&folder).expect("config.json");
    let tokens = std::fs::read(folder.join("tokens.json")).expect("tokens.json");
    let tokens: Vec<u32> = serde_json::from_slice(&tokens).expect("a list of ids");
    assert!(tokens.len() <= LIMITS.max_tokens, "at most {} tokens", LIMITS.max_tokens);
    let decoded = tokens.len() - CHUNKS.iter().sum::<usize>();
    let mut script = Script { sequences: vec![(tokens, 0)] };
    let mut model = on_gpu(&device, &folder, dtype, &config);
    let (mut bytes, mut logits) = (Vec::new(), Vec::new());
    for count in CHUNKS.into_iter().chain(std::iter::repeat_n(1, decoded)) {
        let batch = script.step(&[count]);
        model.forward(&batch, &mut logits).expect("a step");
        bytes.extend(logits.iter().flat_map(|x| x.to_le_bytes()));
    }
    std::fs::write(folder.join("logits.f32"), bytes).expect("written");
}
