//! Products with quantised weights against float64, by our own kernel (few rows on Hopper) and by way of
//! a dequantised matrix; in recorded steps; and what is refused.
//!
//! Bounds: as `common::quant::product` derives them for sums in f32; a dequantised weight is rounded to
//! f16 once, half a step of |x w| each. Both paths are held to the larger of the two, and to a thousandth
//! of the outputs' size as a whole: rounding the weights alone is a random walk of 2^-11 / sqrt(3), 2.8e-4.

use qwen::backend::cuda::{Cuda, Weight};
use qwen::backend::{Backend, BufferKind, RopeStep, StepStart};
use qwen::batch::Batch;
use qwen::error::Error;
use qwen::quant::{Bits, QuantTensor};
use qwen::tensor::{Dtype, HostTensor};

use crate::common::Random;
use crate::common::ops::{U, compare, normals, weights};
use crate::common::quant::{Codes, Order, product, random_tensor, tensor_with};
use crate::device::{backend, gpu, limits, quantised_backend};
use crate::ops::{begin, end, filled, poisoned, rounded};

/// What a rounding to f16 adds at most, relative; and the smallest step.
const HALF_STEP: f64 = 1.0 / 2048.0;
const SMALLEST: f64 = 6e-8;

/// x W^T in float64, and the bound of a product whose weights are rounded to f16.
fn rounded_product(x: &[f32], tensor: &QuantTensor) -> (Vec<f64>, Vec<f64>) {
    let k = tensor.inputs();
    let matrix = tensor.dequantise();
    let (want, mut bound) = product(x, tensor);
    let mut bounds = bound.iter_mut();
    for row in x.chunks_exact(k) {
        for line in matrix.chunks_exact(k) {
            let terms = row.iter().zip(line).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let sizes = row.iter().map(|x| f64::from(*x).abs());
            let bound = bounds.next().expect("one for each");
            *bound += HALF_STEP * terms.map(f64::abs).sum::<f64>() + SMALLEST * sizes.sum::<f64>();
        }
    }
    (want, bound)
}

fn random_codes(random: &mut Random) -> Codes {
    Codes {
        bits: random.pick(&[Bits::Four, Bits::Eight]),
        n: random.pick(&[8, 16, 24, 64, 72, 200, 576, 1000]),
        k: random.pick(&[64, 128, 256, 384, 576, 1024]),
        size: random.pick(&[32, 64, 96, 128, 256, 1 << 12]),
        symmetric: random.below(2) == 0,
        order: random.pick(&[Order::Runs, Order::Runs, Order::Runs, Order::Shuffled, Order::Any]),
    }
}

/// A bias with f32 elements.
fn random_bias(random: &mut Random, n: usize) -> HostTensor {
    weights(random, Dtype::F32, n, 1)
}

/// One linear, each of two biases there or not; `kind` of output.
fn check_linear(cuda: &mut Cuda, random: &mut Random, codes: &Codes, rows: usize) {
    let Codes { n, k, .. } = *codes;
    let kind = random.pick(&[BufferKind::Stream, BufferKind::Activation]);
    let (has_own, has_bias) = (random.below(3) == 0, random.below(2) == 0);
    let has_bias = has_bias && kind == BufferKind::Activation;
    let what = format!("{random} {codes:?} {rows} rows, {kind:?} {has_own} {has_bias}");
    let x = rounded(Dtype::F16, &normals(random, rows * k));
    let mut tensor = random_tensor(random, codes);
    let (mut want, mut bound) = rounded_product(&x, &tensor);
    let (own, bias) = (random_bias(random, n), weights(random, Dtype::F16, n, 1));
    if has_own {
        tensor = tensor.with_bias(own.clone());
    }
    let (own, added) = (own.to_f32(), bias.to_f32());
    for (at, (want, bound)) in want.iter_mut().zip(&mut bound).enumerate() {
        let parts = [(has_own, own[at % n]), (has_bias, added[at % n])];
        for part in parts.iter().filter(|(is_there, _)| *is_there).map(|(_, part)| part) {
            *want += f64::from(*part);
            *bound += 4.0 * U * (want.abs() + f64::from(*part).abs());
            // Where one is added to what has been rounded before.
            if kind == BufferKind::Activation {
                *bound += HALF_STEP * (want.abs() + f64::from(*part).abs() + *bound);
            }
        }
        if kind == BufferKind::Activation {
            *bound += HALF_STEP * (want.abs() + *bound) + SMALLEST;
        }
    }
    let matrix = cuda.quantised_matrix(&tensor).expect("memory");
    let vector = cuda.vector(&bias).expect("memory");
    let x = filled(cuda, BufferKind::Activation, &x, k);
    let mut out = poisoned(cuda, kind, rows, n);
    begin(cuda, rows.max(2), vec![]);
    cuda.linear(&x, &matrix, has_bias.then_some(&vector), &mut out);
    end(cuda);
    let got = cuda.read(&out).expect("read");
    compare(&got, &want, &bound, &what);
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let size = square(&mut want.iter().copied());
    let error = square(&mut got.iter().zip(&want).map(|(got, want)| f64::from(*got) - want));
    assert!(error.sqrt() < 1e-3 * size.sqrt(), "{what}: off by a thousandth");
}

#[test]
fn few_rows_agree_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    for round in 0..64 {
        let codes = random_codes(&mut random);
        check_linear(&mut cuda, &mut random, &codes, 1 + round % 16);
    }
}

#[test]
fn many_rows_agree_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    for _ in 0..24 {
        let codes = random_codes(&mut random);
        let rows = random.pick(&[17, 18, 24, 33, 64, 129, 200]);
        check_linear(&mut cuda, &mut random, &codes, rows);
    }
}

/// A published shape: many tiles for each multiprocessor, many chunks.
#[test]
fn a_large_matrix_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    for bits in [Bits::Four, Bits::Eight] {
        let (symmetric, order) = (true, Order::Runs);
        let codes = Codes { bits, n: 12288, k: 4096, size: 128, symmetric, order };
        check_linear(&mut cuda, &mut random, &codes, 3);
    }
}

#[test]
fn swiglu_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (1000, 64));
    for round in 0..24 {
        let codes = random_codes(&mut random);
        let (n, k) = (codes.n, codes.k);
        let rows = random.pick(&[1, 2, 5, 8, 9, 16, 17, 40]);
        let what = format!("{random} {codes:?} {rows} rows");
        let x = rounded(Dtype::F16, &normals(&mut random, rows * k));
        let gate = random_tensor(&mut random, &codes);
        let mut up = tensor_with(&mut random, &codes, gate.groups().clone());
        let (gates, gate_bounds) = rounded_product(&x, &gate);
        let (mut ups, mut up_bounds) = rounded_product(&x, &up);
        // A bias of one and not of the other: the kernel cannot add it before the product.
        if round % 4 == 0 {
            let bias = random_bias(&mut random, n);
            let values = bias.to_f32();
            for (at, (up, bound)) in ups.iter_mut().zip(&mut up_bounds).enumerate() {
                *up += f64::from(values[at % n]);
                *bound += (HALF_STEP + 4.0 * U) * (up.abs() + f64::from(values[at % n]).abs());
            }
            up = up.with_bias(bias);
        }
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let want: Vec<f64> = gates.iter().zip(&ups).map(|(g, u)| silu(*g) * u).collect();
        // As in `ops`: gate and up are rounded once each, the product once.
        let bound: Vec<f64> = (0..want.len())
            .map(|i| {
                let gate = gate_bounds[i] + HALF_STEP * gates[i].abs() + SMALLEST;
                let up = up_bounds[i] + HALF_STEP * ups[i].abs() + SMALLEST;
                1.1 * gate * (ups[i].abs() + up)
                    + up * silu(gates[i]).abs()
                    + (HALF_STEP + 4e-6) * want[i].abs()
                    + SMALLEST
            })
            .collect();
        let pair = cuda.quantised_gate_up(&gate, &up).expect("memory");
        let x = filled(&mut cuda, BufferKind::Activation, &x, k);
        let mut out = poisoned(&mut cuda, BufferKind::Activation, rows, n);
        begin(&mut cuda, rows.max(2), vec![]);
        cuda.swiglu(&x, &pair, &mut out);
        end(&mut cuda);
        compare(&cuda.read(&out).expect("read"), &want, &bound, &what);
    }
}

/// A decode step of some rows, four times: run, recorded, replayed twice. Linears on each other's
/// outputs, so that the shared scratch is written and read in turn.
fn recorded(cuda: &mut Cuda, random: &mut Random, rows: usize, matrices: &[Weight; 2], k: usize) {
    let x =
        filled(cuda, BufferKind::Activation, &rounded(Dtype::F16, &normals(random, rows * k)), k);
    let mut between = poisoned(cuda, BufferKind::Activation, rows, k);
    let mut out = poisoned(cuda, BufferKind::Stream, rows, k);
    let rope = RopeStep {
        query_scale: vec![1.0; rows],
        inv_freq: vec![0.0; rows * 32],
        ..RopeStep::default()
    };
    let (mut starts, mut bits) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        cuda.write(&mut out, &vec![f32::NAN; rows * k]).expect("poisoned");
        cuda.write(&mut between, &vec![f32::NAN; rows * k]).expect("poisoned");
        let start = cuda.begin_step(&Batch::padding(rows), &rope).expect("a step begins");
        if start == StepStart::Run {
            cuda.linear(&x, &matrices[0], None, &mut between);
            cuda.linear(&between, &matrices[1], None, &mut out);
        }
        end(cuda);
        starts.push(start == StepStart::Run);
        bits.push(cuda.read(&out).expect("read").iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
    assert_eq!(starts, [true, true, false, false], "once to time, once to record, then replayed");
    assert!(bits[0].iter().all(|x| f32::from_bits(*x).is_finite()), "{random}: {rows} rows");
    assert!(bits.windows(2).all(|two| two[0] == two[1]), "{random}: {rows} rows");
}

#[test]
fn recorded_steps_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for order in [Order::Runs, Order::Shuffled] {
        // Rows of recorded steps: one backend each, since a recording is kept by its rows.
        for rows in [1, 4, 24] {
            let mut cuda = quantised_backend(&device, limits(64), (64, 64));
            let (bits, n, k) = (random.pick(&[Bits::Four, Bits::Eight]), 576, 576);
            let matrices = [128, 32].map(|size| {
                let codes = Codes { bits, n, k, size, symmetric: size == 128, order };
                let tensor = random_tensor(&mut random, &codes);
                cuda.quantised_matrix(&tensor).expect("memory")
            });
            recorded(&mut cuda, &mut random, rows, &matrices, k);
        }
    }
}

#[test]
fn what_has_no_kernels_is_refused() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let codes = Codes {
        bits: Bits::Four,
        n: 64,
        k: 256,
        size: 32,
        symmetric: true,
        order: Order::Shuffled,
    };
    let (gate, up) = (random_tensor(&mut random, &codes), random_tensor(&mut random, &codes));
    let refused = |error: Error, word: &str| match error {
        Error::Argument { argument: "checkpoint", reason } => {
            assert!(reason.contains(word), "{reason}");
        }
        other => panic!("{other:?}"),
    };
    // Two orders of inputs, which x cannot have at once.
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    refused(cuda.quantised_gate_up(&gate, &up).err().expect("an error"), "order");
    // A model that was not said to be quantised.
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let mut plain = backend(&device, dtype, limits(64), (64, 64));
        refused(plain.quantised_matrix(&gate).err().expect("an error"), "quantised");
    }
}
