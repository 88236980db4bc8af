//! Scores of tiny checkpoints through an engine, against logits of the float64 oracle
//! (`tests/data/oracle.py`): the continuation of a score is what those logits are the rows before.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::Path;

use qwen::engine::{Engine, EngineOptions};
use safetensors::SafeTensors;

/// A log-probability is a logit less a logarithm of a sum of exponentials, which moves by no more than
/// the largest change of a logit: two of these. Logits of f32 weights are off by 2.7e-5 of their rms in
/// the rms (`tests/logits.rs`); the largest of 500 normal numbers is below 4.5 of those, which is the
/// largest logit, too: the rms is at most that of the largest logit.
fn tolerance(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    2.0 * 4.5 * 2.7e-5 * f64::from(largest)
}

#[test]
fn scores_are_those_of_the_oracles_logits() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/plain-f32");
    let bytes = std::fs::read(folder.join("golden.safetensors")).expect("goldens");
    let file = SafeTensors::deserialize(&bytes).expect("goldens");
    for backend in ["cpu", "cpu-reference"] {
        let options = EngineOptions {
            backend: backend.to_string(),
            num_threads: 1,
            kv_cache_tokens: 4096,
            max_context_tokens: 128,
            max_batch_sequences: 4,
            ..EngineOptions::default()
        };
        let engine = Engine::open(&folder, &options, None, &mut |_| true).expect("an engine");
        let usable = engine.tokenizer().num_tokens();
        let mut params = engine.generation_defaults();
        (params.logprobs, params.top_logprobs) = (true, 3);
        let mut compared = 0;
        for name in file.names() {
            let Some(case) = name.strip_prefix("exact.").and_then(|n| n.strip_suffix(".tokens"))
            else {
                continue;
            };
            let words = |name: &str| -> (Vec<usize>, Vec<u32>) {
                let tensor = file.tensor(name).expect("golden tensor");
                let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
                (tensor.shape().to_vec(), tensor.data().chunks_exact(4).map(word).collect())
            };
            let (_, tokens) = words(name);
            let (shape, logits) = words(&format!("exact.{case}.logits"));
            let logits: Vec<f32> = logits.into_iter().map(f32::from_bits).collect();
            let (rows, vocab) = (shape[0], shape[1]);
            if rows < 2 {
                continue;
            }
            // Row r is behind token len - rows + r: the last predicts nothing that is known.
            let cut = tokens.len() - rows + 1;
            let (context, continuation) = tokens.split_at(cut);
            let score = engine.score(context, continuation, &params).expect("a score");
            for (row, scored) in score.tokens.iter().enumerate() {
                let logits = &logits[row * vocab..][..usable.min(vocab)];
                let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                let of = |id: u32| f64::from(logits[id as usize]) - total.ln();
                for told in scored.logprobs.top.iter().chain([&scored.logprobs.token]) {
                    let difference = (told.logprob - of(told.id)).abs();
                    assert!(difference < tolerance(logits), "{backend} {case} {row}: {difference}");
                    compared += 1;
                }
            }
        }
        assert!(compared >= 20, "{compared} log-probabilities compared");
    }
}
