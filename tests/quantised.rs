//! Quantised linears: unpacked bit for bit as numpy has them, cut for ranks, multiplied on every
//! instruction set against float64, and whole models on the fast backend against the reference.
#![allow(clippy::expect_used, clippy::panic)]

mod common;
#[allow(dead_code, reason = "the tests of logits use the rest")]
#[path = "common/ranks.rs"]
mod ranks;

use std::path::{Path, PathBuf};

use common::Random;
use common::ops::{U, buffer, compare, fast, normals, poisoned, reference, weights};
use common::quant::{Codes, Order, product, random_tensor};
use qwen::backend::Backend;
use qwen::backend::cpu::HostBuffer;
use qwen::backend::cpu::fast::Isa;
use qwen::checkpoint::names::{self, LayerTensor};
use qwen::checkpoint::shard::{Slice, Split, check_quantised_world, slice};
use qwen::checkpoint::{Checkpoint, Source};
use qwen::engine::{Engine, EngineOptions};
use qwen::error::Error;
use qwen::model::config::ModelConfig;
use qwen::quant::{Bits, Groups, QuantTensor};
use qwen::tensor::{Dtype, HostTensor};
use ranks::{Kind, Ranks};
use safetensors::SafeTensors;

const FOLDERS: [&str; 6] =
    ["int4", "int8-v2", "int4-zeros", "int8-one-group", "int4-order", "int8-order"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantised").join(name)
}

/// Name, outputs, inputs and how ranks divide it, of each linear of layer 0.
fn linears(config: &ModelConfig) -> [(String, (usize, usize), Split); 5] {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let name = |tensor| names::layer(0, tensor);
    [
        (name(LayerTensor::QkvWeight), (3 * hidden, hidden), Split::ColumnThirds),
        (name(LayerTensor::OWeight), (hidden, hidden), Split::Row),
        (name(LayerTensor::GateWeight), (width, hidden), Split::Column),
        (name(LayerTensor::UpWeight), (width, hidden), Split::Column),
        (name(LayerTensor::DownWeight), (hidden, width), Split::Row),
    ]
}

/// The matrix that numpy wrote beside the checkpoint, from the codes before they were packed.
fn twin(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("dequantised.safetensors")).expect("the fixture");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = file.tensor(name).expect("a linear").data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}

/// The rows and columns of `part` out of a matrix of `cols` columns.
fn cut(matrix: &[f32], cols: usize, part: &Slice) -> Vec<f32> {
    let rows = part.row_ranges.iter().cloned().flatten();
    rows.flat_map(|row| matrix[row * cols..][part.cols.clone()].to_vec()).collect()
}

#[test]
fn linears_unpack_bit_for_bit_whole_and_in_parts() {
    let mut parts = 0;
    for name in FOLDERS {
        let folder = folder(name);
        let config = ModelConfig::open(&folder).expect("config.json");
        let format = config.quantisation.expect("quantised");
        let checkpoint = Checkpoint::open_with(&folder, Source::Copy).expect("a checkpoint");
        let heads = (config.num_heads, config.num_kv_heads, config.head_dim);
        for (linear, shape, split) in linears(&config) {
            let want = twin(&folder, &linear);
            for world in [1, 2, 4] {
                let unit = format.undivided_inputs();
                if check_quantised_world(heads, config.intermediate_size, unit, world).is_err() {
                    continue;
                }
                for rank in 0..world {
                    let part = slice(split, shape.0, shape.1, rank, world).expect("a slice");
                    let tensor =
                        checkpoint.quantised(&linear, shape, &format, &part, (true, false));
                    let got = tensor.expect("a linear").dequantise();
                    let want = cut(&want, shape.1, &part);
                    assert!(got == want, "{name} {linear} rank {rank} of {world}");
                    parts += 1;
                }
            }
        }
    }
    assert!(parts > 40, "only {parts} parts: the worlds do not fit the fixtures");
}

/// What the data allows is found by looking at it.
#[test]
fn symmetric_zeros_and_groups_in_order_are_found() {
    for (name, symmetric, in_order, biased) in [
        ("int4", true, true, false),
        ("int8-v2", true, true, true),
        ("int4-zeros", false, true, false),
        ("int8-one-group", false, true, true),
        ("int4-order", true, false, true),
        ("int8-order", false, false, false),
    ] {
        let config = ModelConfig::open(&folder(name)).expect("config.json");
        let checkpoint = Checkpoint::open(&folder(name)).expect("a checkpoint");
        for (linear, shape, _) in linears(&config) {
            let whole = slice(Split::Replicated, shape.0, shape.1, 0, 1).expect("a slice");
            let format = config.quantisation.expect("quantised");
            let tensor = checkpoint.quantised(&linear, shape, &format, &whole, (true, false));
            let tensor = tensor.expect("a linear");
            assert_eq!(tensor.zeros().is_none(), symmetric, "{name} {linear}");
            assert_eq!(matches!(tensor.groups(), Groups::Runs(_)), in_order, "{name} {linear}");
            // The bias of Q, K and V is the model's own.
            let is_qkv = linear.ends_with("c_attn.weight");
            assert_eq!(tensor.bias().is_some(), biased && !is_qkv, "{name} {linear}");
        }
    }
}

fn quantised(random: &mut Random, case: &Case) -> QuantTensor {
    let Case { bits, n, k, size, symmetric, listed, .. } = *case;
    let order = if listed { Order::Any } else { Order::Runs };
    random_tensor(random, &Codes { bits, n, k, size, symmetric, order })
}

#[derive(Debug, Clone, Copy)]
struct Case {
    bits: Bits,
    rows: usize,
    n: usize,
    k: usize,
    size: usize,
    symmetric: bool,
    listed: bool,
    threads: usize,
}

fn random_case(random: &mut Random) -> Case {
    Case {
        bits: random.pick(&[Bits::Four, Bits::Eight]),
        rows: random.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 13, 33]),
        n: random.pick(&[8, 16, 24, 40, 56, 128, 136, 200, 576, 2216]),
        k: random.pick(&[8, 32, 64, 72, 96, 200, 576, 1536]),
        size: random.pick(&[32, 64, 128, 1 << 12]),
        symmetric: random.below(2) == 0,
        listed: random.below(3) == 0,
        threads: random.pick(&[1, 2, 3]),
    }
}

fn check_linear<B: Backend<Buffer = HostBuffer, Vector = Vec<f32>>>(
    mut backend: B,
    random: &mut Random,
    case: &Case,
    what: &str,
) {
    let Case { rows, n, k, .. } = *case;
    let x = normals(random, rows * k);
    let own = random.below(2) == 0;
    let mut tensor = quantised(random, case);
    let (mut want, mut bound) = product(&x, &tensor);
    let (bias, second) = (normals(random, n), normals(random, n));
    if own {
        let bytes = bias.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor = tensor.with_bias(HostTensor::from_vec(Dtype::F32, n, 1, bytes));
    }
    for index in 0..want.len() {
        let added =
            f64::from(second[index % n]) + if own { f64::from(bias[index % n]) } else { 0.0 };
        want[index] += added;
        bound[index] += 8.0 * U * (want[index].abs() + added.abs());
    }
    let x = buffer(&mut backend, &x, k);
    let mut out = poisoned(&mut backend, rows, n);
    let matrix = backend.quantised_matrix(&tensor).expect("a matrix");
    backend.linear(&x, &matrix, Some(&second), &mut out);
    compare(out.data(), &want, &bound, what);
    // As a matter of size: a thousandth of the outputs' own.
    let size = (want.iter().map(|y| y * y).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let worst = out.data().iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).abs());
    assert!(worst.fold(0.0, f64::max) <= 1e-3 * size, "{what}: off by a thousandth");
}

#[test]
fn products_agree_with_float64() {
    let mut random = Random::from_env();
    for round in 0..60 {
        let case = random_case(&mut random);
        let what = format!("{random} round {round} {case:?}");
        check_linear(reference(), &mut random, &case, &format!("{what} reference"));
        for isa in Isa::available() {
            let backend = fast(isa, case.threads);
            check_linear(backend, &mut random, &case, &format!("{what} {}", isa.name()));
        }
    }
}

/// Whatever form the input takes on its way: what is no number must not become one.
#[test]
fn inputs_that_are_no_numbers_give_none() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for bits in [Bits::Four, Bits::Eight] {
            let (rows, n, k, size) = (3, 40, 96, 32);
            let case = Case { bits, rows, n, k, size, symmetric: true, listed: false, threads: 1 };
            let tensor = quantised(&mut random, &case);
            let mut backend = fast(isa, 1);
            let mut x = normals(&mut random, rows * k);
            (x[7], x[k + 95], x[2 * k]) = (f32::NAN, f32::INFINITY, 1e30);
            let (input, mut out) = (buffer(&mut backend, &x, k), poisoned(&mut backend, rows, n));
            let matrix = backend.quantised_matrix(&tensor).expect("a matrix");
            out.data_mut().fill(0.0);
            backend.linear(&input, &matrix, None, &mut out);
            let finite = |row: usize| out.row(row).iter().filter(|y| y.is_finite()).count();
            assert_eq!((finite(0), finite(1)), (0, 0), "{isa:?} {bits:?}");
            // Large numbers are numbers.
            assert!(finite(2) > 0, "{isa:?} {bits:?}");
        }
    }
}

#[test]
fn swiglu_agrees_with_the_reference() {
    let mut random = Random::from_env();
    for round in 0..20 {
        let case = random_case(&mut random);
        let (rows, n, k) = (case.rows, case.n, case.k);
        let x = normals(&mut random, rows * k);
        let bias = weights(&mut random, Dtype::F32, n, 1);
        let gate = quantised(&mut random, &case);
        let up = quantised(&mut random, &case).with_bias(bias);
        let mut plain = reference();
        let pair = plain.quantised_gate_up(&gate, &up).expect("matrices");
        let (input, mut want) = (buffer(&mut plain, &x, k), poisoned(&mut plain, rows, n));
        plain.swiglu(&input, &pair, &mut want);
        let (gates, gate_bounds) = product(&x, &gate);
        let (ups, up_bounds) = product(&x, &up);
        // As in `ops.rs`, with the rounding of both sides.
        let bound: Vec<f64> = (0..want.data().len())
            .map(|i| {
                let up =
                    ups[i].abs() + up.bias().map_or(0.0, |b| f64::from(b.to_f32()[i % n]).abs());
                let silu = (gates[i] / (1.0 + (-gates[i]).exp())).abs();
                2.2 * gate_bounds[i] * up + 2.0 * up_bounds[i] * silu + 2e-6 * silu * up + 1e-12
            })
            .collect();
        let want: Vec<f64> = want.data().iter().map(|y| f64::from(*y)).collect();
        for isa in Isa::available() {
            let mut backend = fast(isa, case.threads);
            let pair = backend.quantised_gate_up(&gate, &up).expect("matrices");
            let (input, mut out) = (buffer(&mut backend, &x, k), poisoned(&mut backend, rows, n));
            backend.swiglu(&input, &pair, &mut out);
            let what = format!("{random} round {round} {case:?} {}", isa.name());
            compare(out.data(), &want, &bound, &what);
        }
    }
}

/// Both sides round keys and values to f16, which a sum near a border may do differently: most rows
/// agree as f32 sums do (`logits.rs`), the rest within some such roundings, 2^-11 each.
#[test]
fn models_agree_with_the_dequantised_model() {
    for name in FOLDERS {
        let mut plain = Ranks::open(&folder(name), Kind::Reference, 1);
        let tokens: Vec<u32> = (0..90).map(|i| i * 31 % plain.vocab_size as u32).collect();
        let vocab = plain.vocab_size;
        let want = plain.generate(&tokens, 70, 70, 90);
        for isa in Isa::available() {
            let got = Ranks::open(&folder(name), Kind::Fast(isa), 1).generate(&tokens, 70, 33, 90);
            let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let mut errors: Vec<f64> = got
                .chunks(vocab)
                .zip(want.chunks(vocab))
                .map(|(got, want)| {
                    let apart: Vec<f32> = got.iter().zip(want).map(|(a, b)| a - b).collect();
                    norm(&apart) / norm(want)
                })
                .collect();
            errors.sort_by(f64::total_cmp);
            let (median, most) = (errors[errors.len() / 2], errors[errors.len() - 1]);
            assert!(median < 2.7e-5 && most < 2e-3, "{name} {isa:?}: {median} {most}");
        }
    }
}

#[test]
fn estimates_count_packed_bytes_and_the_format_has_a_name() {
    let options = EngineOptions {
        backend: "cpu".to_string(),
        max_context_tokens: 200,
        ..EngineOptions::default()
    };
    let estimate = Engine::estimate(&folder("int4"), &options).expect("an estimate");
    let checkpoint = Checkpoint::open(&folder("int4")).expect("a checkpoint");
    assert_eq!(estimate.weight_bytes, checkpoint.total_bytes());
    let engine = Engine::open(&folder("int4"), &options, None, &mut |_| true).expect("an engine");
    assert_eq!(engine.info()["model"]["weight_format"], "gptq-int4");
    let random = EngineOptions { weights: "random".to_string(), ..options };
    let random = Engine::estimate(&folder("int4"), &random).expect("an estimate");
    // Without zeros, indices and biases.
    assert!(random.weight_bytes < estimate.weight_bytes);
    assert!(random.weight_bytes > estimate.weight_bytes * 9 / 10);
}

/// The hidden size and the MLP's width must be cut between groups.
#[test]
fn worlds_that_cut_groups_are_refused_with_those_that_do_not() {
    let options = EngineOptions { tensor_parallel: 4, ..EngineOptions::default() };
    let error = Engine::estimate(&folder("int4"), &options).expect_err("quarters of 64 in 32s");
    let Error::Option { key, reason } = &error else { panic!("{error}") };
    assert_eq!(key, "tensor_parallel");
    assert!(reason.contains("in groups of 32") && reason.contains("[1, 2]"), "{reason}");
    // The published sizes in groups of 128: 72B in up to 8 parts, 7B in 2, 14B and 1.8B whole.
    let working = |heads, width| -> Vec<usize> {
        let fits = |world: &usize| check_quantised_world((heads, heads, 128), width, 128, *world);
        (1..=heads).filter(|world| fits(world).is_ok()).collect()
    };
    assert_eq!(working(64, 24576), [1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(working(32, 11008), [1, 2]);
    assert_eq!(working(40, 13696), [1]);
    assert_eq!(working(16, 5504), [1]);
}
