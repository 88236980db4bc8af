//! Hidden states of tiny checkpoints against those of the float64 oracle (`tests/data/oracle.py`): through
//! an engine, and from ranks that divide tensors or layers, of which the last gives them.
//!
//! Tolerances are those of `tests/logits.rs`, which are derived there for all that leads to the logits, of
//! which states lack the last product: relative to their size (rms), 2.7e-5 with f32 weights and in the
//! median row with bf16; at most four times that in the worst row of f32, and in the worst of bf16
//! four times the measured noise of rounding.
#![allow(clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests of logits use the rest")]
#[path = "common/ranks.rs"]
mod ranks;

use std::collections::BTreeMap;
use std::path::Path;

use qwen::backend::cpu::fast::Isa;
use qwen::batch::{Batch, Output, PAGE_TOKENS};
use qwen::checkpoint::Checkpoint;
use qwen::checkpoint::shard::Division;
use qwen::engine::{Engine, EngineOptions, Pooling};
use qwen::model::Weights;
use qwen::model::config::ModelConfig;
use ranks::{Kind, Ranks, tiny};
use safetensors::SafeTensors;

const NAMES: [&str; 3] = ["plain-f32", "ntk-logn-f32", "ntk-logn-bf16"];
const F32: f64 = 2.7e-5;

/// Tokens and states `[tokens, hidden]`, by kind and number of tokens.
type Goldens = BTreeMap<(String, usize), (Vec<u32>, Vec<f32>)>;

fn goldens(folder: &Path) -> Goldens {
    let bytes = std::fs::read(folder.join("hidden.safetensors")).expect("hidden.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("goldens");
    let words = |name: String| -> Vec<u32> {
        let data = file.tensor(&name).expect("golden tensor").data();
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        data.chunks_exact(4).map(word).collect()
    };
    let cases = file.names().into_iter().filter_map(|name| name.strip_suffix(".tokens"));
    let read = |case: &str| {
        let (kind, len) = case.split_once('.').expect("kind.tokens");
        let states = words(format!("{case}.hidden")).into_iter().map(f32::from_bits).collect();
        let len = len.parse().expect("a number");
        ((kind.to_string(), len), (words(format!("{case}.tokens")), states))
    };
    cases.map(read).collect()
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0, 0.0), |(n, sum), x| (n + 1, sum + x * x));
    (sum / f64::from(count)).sqrt()
}

fn size(values: &[f32]) -> f64 {
    rms(values.iter().copied().map(f64::from))
}

/// Relative to the size of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "shapes");
    rms(got.iter().zip(want).map(|(a, b)| f64::from(a - b))) / size(want)
}

/// What a checkpoint is held to: kind, and how near its median row and its worst must be.
fn allowance(goldens: &Goldens) -> (&'static str, f64, f64) {
    let twins = goldens.iter().filter_map(|((kind, len), (_, exact))| {
        let emulated = goldens.get(&("emulated".to_string(), *len)).filter(|_| kind == "exact");
        emulated.map(|(_, emulated)| distance(emulated, exact))
    });
    let noises: Vec<f64> = twins.collect();
    match noises.len() {
        0 => ("exact", F32, 4.0 * F32),
        count => ("emulated", F32, 4.0 * noises.iter().sum::<f64>() / count as f64),
    }
}

/// Holds `states` of prompts to the goldens; `what` runs one.
fn hold(name: &str, what: &str, states: &mut dyn FnMut(&[u32]) -> Vec<f32>) {
    let goldens = goldens(&tiny(name));
    let (held_to, typical, most) = allowance(&goldens);
    let mut errors = Vec::new();
    for ((_, len), (tokens, want)) in goldens.iter().filter(|((kind, _), _)| kind == held_to) {
        let got = states(tokens);
        assert_eq!(got.len(), want.len(), "{name} {what} {len}: rows");
        let cols = want.len() / len;
        errors.extend(got.chunks(cols).zip(want.chunks(cols)).map(|(a, b)| distance(a, b)));
    }
    errors.sort_by(f64::total_cmp);
    let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    assert!(median <= typical, "{name} {what}: the median row is off by {median}");
    assert!(worst <= most, "{name} {what}: a row is off by {worst}, at most {most}");
}

fn engine(name: &str, backend: &str, chunk: usize, (world, split): (usize, &str)) -> Engine {
    let options = EngineOptions {
        backend: backend.to_string(),
        num_threads: 1,
        kv_cache_tokens: 4096,
        max_context_tokens: 128,
        max_batch_sequences: 4,
        prefill_chunk_tokens: chunk,
        tensor_parallel: world,
        split: split.to_string(),
        ..EngineOptions::default()
    };
    Engine::open(&tiny(name), &options, None, &mut |_| true).expect("an engine")
}

#[test]
fn states_are_the_oracles() {
    for name in NAMES {
        for (backend, chunk, ranks) in [
            ("cpu", 512, (1, "tensors")),
            ("cpu", 16, (2, "tensors")),
            ("cpu", 512, (2, "layers")),
            ("cpu-reference", 512, (1, "tensors")),
        ] {
            let engine = engine(name, backend, chunk, ranks);
            let params = engine.generation_defaults();
            let embed = |tokens: &[u32], pooling| {
                engine.embed(tokens, (pooling, false), &params).expect("states")
            };
            hold(name, backend, &mut |tokens| {
                let all = embed(tokens, Pooling::None);
                let cols = all.len() / tokens.len();
                // The same bits: a row does not depend on which others are wanted.
                assert_eq!(embed(tokens, Pooling::Last), all[all.len() - cols..]);
                let mean = |at: usize| {
                    let column = all.iter().skip(at).step_by(cols);
                    (column.map(|x| f64::from(*x)).sum::<f64>() / tokens.len() as f64) as f32
                };
                let mean: Vec<f32> = (0..cols).map(mean).collect();
                assert_eq!(embed(tokens, Pooling::Mean), mean);
                all
            });
        }
    }
}

/// All states of `tokens`, in chunks; the last token's logits are wanted, too, and are what they are
/// without states.
fn of_ranks(ranks: &mut Ranks, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let (mut states, mut start) = (Vec::new(), 0);
    while start < tokens.len() {
        let end = tokens.len().min(start + chunk);
        let rows = (end - start) as u32;
        let pages: Vec<u32> = (0..tokens.len().div_ceil(PAGE_TOKENS) as u32).collect();
        let batch = Batch {
            token_ids: tokens[start..end].to_vec(),
            positions: (start as u32..end as u32).collect(),
            slot_mapping: (start as u32..end as u32).collect(),
            cu_seqlens: vec![0, rows],
            context_lens: vec![end as u32],
            max_pages: pages.len(),
            block_table: pages,
            ntk_lens: vec![tokens.len() as u32],
            logits_rows: if end == tokens.len() { vec![rows - 1] } else { Vec::new() },
            hidden_rows: (0..rows).collect(),
            ..Batch::default()
        };
        let mut outputs = step(ranks, &batch);
        let plain = step(ranks, &Batch { hidden_rows: Vec::new(), ..batch });
        assert_eq!(outputs[0].logits, plain[0].logits);
        let last = outputs.pop().expect("a rank");
        assert!(outputs.iter().all(|output| output.hidden.is_empty()));
        states.extend(last.hidden);
        start = end;
    }
    states
}

fn step(ranks: &mut Ranks, batch: &Batch) -> Vec<Output> {
    let mut outputs = vec![Output::default(); ranks.ranks.len()];
    std::thread::scope(|scope| {
        for (rank, output) in ranks.ranks.iter_mut().zip(&mut outputs) {
            scope.spawn(move || {
                rank.submit(batch).expect("a step");
                rank.collect(output).expect("a step");
            });
        }
    });
    outputs
}

#[test]
fn the_last_rank_gives_the_states() {
    for name in NAMES {
        let config = ModelConfig::open(&tiny(name)).expect("config.json");
        let checkpoint = Checkpoint::open(&tiny(name)).expect("a checkpoint");
        let layers = Division::of_layers(config.num_layers, &[1, 1]).expect("a layer each");
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            for (world, division) in [
                (1, &Division::Tensors),
                (2, &Division::Tensors),
                (4, &Division::Tensors),
                (2, &layers),
            ] {
                let weights = Weights::Stored(&checkpoint);
                let mut ranks = Ranks::load(weights, &config, kind, (world, division));
                for chunk in [512, 7] {
                    let what = format!("{kind:?} {world} {division:?} {chunk}");
                    hold(name, &what, &mut |tokens| of_ranks(&mut ranks, tokens, chunk));
                }
            }
        }
    }
}
