//! Logits of tiny random checkpoints that cover every switch, against a float64 forward pass in
//! numpy (`tests/data/oracle.py`), at lengths on both sides of every threshold of dynamic NTK and
//! log-n; whole, in chunks, token by token, on 1, 2 and 4 ranks that divide tensors, and on up to 5 that
//! have whole layers.
//!
//! Tolerances, all relative to the size (rms) of the logits:
//! - f32 weights: every sum of K <= 512 products has a relative error of about sqrt(K) u, and 20
//!   operations follow each other (8 a layer, 2 layers, the ends): 20 sqrt(512) 2^-24 = 2.7e-5.
//! - bf16: a backend that rounds at the same points as the oracle agrees as f32 does, but for the
//!   rare element whose f32 sum falls to the other side of a rounding boundary. So most rows (the
//!   median) must be within 2.7e-5, and every row within four times the noise of rounding
//!   everything, which is measured: oracle with rounding against oracle without.
//! - f16, and quantised with all else in f16: linears keep f32 inputs where the oracle rounds them, so the distance from the oracle
//!   without rounding must be within the measured noise.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "common/ranks.rs"]
mod ranks;

use std::collections::BTreeMap;
use std::path::Path;

use qwen::backend::cpu::fast::Isa;
use qwen::checkpoint::Checkpoint;
use qwen::checkpoint::shard::Division;
use qwen::model::Weights;
use qwen::model::config::ModelConfig;
use ranks::{Kind, Ranks, tiny};
use safetensors::SafeTensors;

const NAMES: [&str; 6] =
    ["plain-f32", "ntk-logn-f32", "plain-bf16", "ntk-bf16", "ntk-logn-bf16", "logn-f16"];

/// Quantised ones, of `tests/data/make_quantised.py`.
const QUANTISED: [&str; 6] = [
    "../quantised/int4",
    "../quantised/int8-v2",
    "../quantised/int4-zeros",
    "../quantised/int8-one-group",
    "../quantised/int4-order",
    "../quantised/int8-order",
];

fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().chain(QUANTISED)
}

/// One golden: tokens, how many of them are the prompt, and the last rows' logits.
struct Golden {
    tokens: Vec<u32>,
    prompt: usize,
    logits: Vec<f32>,
}

/// The goldens of one checkpoint by (kind, case name).
fn goldens(folder: &Path) -> BTreeMap<(String, String), Golden> {
    let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("goldens");
    let words = |name: &str| -> Vec<[u8; 4]> {
        let tensor = file.tensor(name).expect("golden tensor");
        tensor.data().chunks_exact(4).map(|b| b.try_into().expect("four bytes")).collect()
    };
    let mut goldens = BTreeMap::new();
    for name in file.names() {
        let Some(case) = name.strip_suffix(".tokens") else { continue };
        let (kind, lengths) = case.split_once('.').expect("kind.lengths");
        let (prompt, _) = lengths.split_once('+').expect("prompt+rest");
        let golden = Golden {
            tokens: words(name).into_iter().map(u32::from_le_bytes).collect(),
            prompt: prompt.parse().expect("a number"),
            logits: words(&format!("{case}.logits")).into_iter().map(f32::from_le_bytes).collect(),
        };
        goldens.insert((kind.to_string(), lengths.to_string()), golden);
    }
    assert!(goldens.len() >= 8, "goldens are missing in {}", folder.display());
    goldens
}

fn rms(values: impl Iterator<Item = f32>) -> f64 {
    let (count, sum) = values.fold((0, 0.0), |(n, sum), x| (n + 1, sum + f64::from(x).powi(2)));
    (sum / f64::from(count)).sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "shapes");
    rms(a.iter().zip(b).map(|(a, b)| a - b))
}

/// Rounding noise of the checkpoint's dtype relative to its logits, from the two oracles.
fn noise(goldens: &BTreeMap<(String, String), Golden>) -> f64 {
    let mut ratios = Vec::new();
    for ((kind, case), exact) in goldens {
        let twin = goldens.get(&("emulated".to_string(), case.clone()));
        if let (true, Some(emulated)) = (kind == "exact", twin) {
            let size = rms(exact.logits.iter().copied());
            ratios.push(distance(&exact.logits, &emulated.logits) / size);
        }
    }
    assert!(!ratios.is_empty(), "no pair of goldens to measure the noise by");
    ratios.iter().sum::<f64>() / ratios.len() as f64
}

/// Which oracle a dtype is held to, and how near its median row and its worst row must be.
fn allowance(name: &str, goldens: &BTreeMap<(String, String), Golden>) -> (&'static str, f64, f64) {
    const F32: f64 = 2.7e-5;
    match name.rsplit('-').next() {
        Some("bf16") => ("emulated", F32, 4.0 * noise(goldens)),
        Some("f16") => ("exact", noise(goldens), 4.0 * noise(goldens)),
        _ if QUANTISED.contains(&name) => ("exact", noise(goldens), 4.0 * noise(goldens)),
        _ => ("exact", F32, 4.0 * F32),
    }
}

fn check(name: &str, kind: Kind, world: usize, chunk: usize) {
    let folder = tiny(name);
    let goldens = goldens(&folder);
    let (held_to, typical, most) = allowance(name, &goldens);
    let mut ranks = Ranks::open(&folder, kind, world);
    let vocab = ranks.vocab_size;
    let mut errors = Vec::new();
    for ((_, case), golden) in goldens.iter().filter(|((kind, _), _)| kind == held_to) {
        let rows = golden.logits.len() / vocab;
        let got = ranks.generate(&golden.tokens, golden.prompt, chunk, rows);
        let size = rms(golden.logits.iter().copied());
        assert_eq!(got.len(), golden.logits.len(), "{name} {case}: rows");
        for (row, (got, want)) in got.chunks(vocab).zip(golden.logits.chunks(vocab)).enumerate() {
            let error = distance(got, want) / size;
            let what = format!("{name} {kind:?} world {world} chunk {chunk} case {case} row {row}");
            assert!(error <= most, "{what}: {error} of the logits' size, at most {most}");
            errors.push(error);
        }
    }
    errors.sort_by(f64::total_cmp);
    let median = errors[errors.len() / 2];
    let what = format!("{name} {kind:?} world {world} chunk {chunk}");
    assert!(median <= typical, "{what}: the median row is off by {median}, at most {typical}");
}

#[test]
fn logits_agree_with_float64() {
    for name in names() {
        for kind in Kind::all() {
            check(name, kind, 1, usize::MAX);
        }
    }
}

#[test]
fn chunks_agree_with_float64() {
    for name in names() {
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            for chunk in [1, 5, 16] {
                check(name, kind, 1, chunk);
            }
        }
    }
}

/// Not merely close: a prompt cut in chunks gives the same bits.
#[test]
fn chunked_equals_unchunked() {
    for name in names() {
        for kind in Kind::all() {
            let mut ranks = Ranks::open(&tiny(name), kind, 1);
            let tokens: Vec<u32> = (0..70).map(|i| i * 31 % ranks.vocab_size as u32).collect();
            let whole = ranks.generate(&tokens, 70, 70, 70);
            for chunk in [1, 7, 16, 33] {
                assert_eq!(
                    ranks.generate(&tokens, 70, chunk, 70),
                    whole,
                    "{name} {kind:?} {chunk}"
                );
            }
        }
    }
}

#[test]
fn tensor_parallel_worlds_agree_with_float64() {
    // Four heads each; the vocabulary does not divide by four.
    for name in ["plain-f32", "ntk-logn-f32", "ntk-logn-bf16", "logn-f16"] {
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            for world in [2, 4] {
                check(name, kind, world, 16);
            }
        }
    }
    // Two ranks are what the groups of these allow: in one half of the inputs each.
    for name in ["../quantised/int4", "../quantised/int8-one-group"] {
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            check(name, kind, 2, 16);
        }
    }
}

/// A prompt in chunks, and then some: all logits of a model of `weights` divided in these ways.
fn all_logits(
    weights: Weights<'_>,
    config: &ModelConfig,
    kind: Kind,
    divided: (usize, &Division),
) -> Vec<f32> {
    let tokens: Vec<u32> = (0..40).map(|i| i * 31 % config.vocab_size as u32).collect();
    Ranks::load(weights, config, kind, divided).generate(&tokens, 36, 16, tokens.len())
}

/// The same sums in the same order: not merely close.
#[test]
fn whole_layers_on_several_ranks_give_the_bits_of_one() {
    for name in names() {
        let config = ModelConfig::open(&tiny(name)).expect("config.json");
        let checkpoint = Checkpoint::open(&tiny(name)).expect("a checkpoint");
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            let weights = || Weights::Stored(&checkpoint);
            let want = all_logits(weights(), &config, kind, (1, &Division::Tensors));
            for world in 1..=config.num_layers {
                let division = Division::of_layers(config.num_layers, &vec![1; world]);
                let division = division.expect("a layer each");
                let got = all_logits(weights(), &config, kind, (world, &division));
                assert_eq!(got, want, "{name} {kind:?} {world}");
            }
        }
    }
}

/// More layers than a tiny checkpoint has, unevenly.
#[test]
fn many_layers_on_many_ranks_give_the_bits_of_one() {
    for name in ["ntk-logn-f32", "plain-bf16", "../quantised/int4", "../quantised/int8-order"] {
        let config = ModelConfig::open(&tiny(name)).expect("config.json");
        let checkpoint = Checkpoint::open(&tiny(name)).expect("a checkpoint");
        let dtype = Weights::Stored(&checkpoint).dtype().expect("a dtype");
        let config = ModelConfig { num_layers: 5, ..config };
        for kind in [Kind::Reference, Kind::Fast(Isa::best())] {
            let run = |divided: (usize, &Division)| {
                all_logits(Weights::Random(dtype), &config, kind, divided)
            };
            let want = run((1, &Division::Tensors));
            for counts in [vec![3, 2], vec![1, 3, 1], vec![2, 2, 1], vec![1; 5]] {
                let (world, division) = (counts.len(), Division::Layers(counts));
                let got = run((world, &division));
                assert_eq!(got, want, "{name} {kind:?} {division:?}");
            }
        }
    }
}
