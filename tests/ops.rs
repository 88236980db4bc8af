//! The row-wise ops and matrix products of the fast CPU backend, on every instruction set of this
//! machine, against float64, with random shapes and data. Attention is in `attention.rs`.

#![allow(clippy::expect_used, clippy::panic)]

mod common;

use common::Random;
use common::ops::{DTYPES, U, buffer, compare, fast, normals, poisoned, reference, round, weights};
use qwen::backend::Backend;
use qwen::backend::cpu::fast::Isa;
use qwen::tensor::{Dtype, HostTensor};

/// x W^T in float64 from the inputs as the op rounds them, and the bound of summing K products in
/// f32 in any order, (K + 2) u sum |x w|, twice for what follows (bias, store).
fn product(x: &[f32], w: &HostTensor) -> (Vec<f64>, Vec<f64>) {
    let lines = w.to_f32();
    let (mut want, mut bound) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(w.cols()) {
        for line in lines.chunks_exact(w.cols()) {
            let input = row
                .iter()
                .map(|&x| if w.dtype() == Dtype::Bf16 { round(Dtype::Bf16, x) } else { x });
            let terms: Vec<f64> =
                input.zip(line).map(|(x, &w)| f64::from(x) * f64::from(w)).collect();
            want.push(terms.iter().sum());
            let size: f64 = terms.iter().map(|term| term.abs()).sum();
            bound.push(2.0 * (w.cols() + 2) as f64 * U * size + 1e-30);
        }
    }
    (want, bound)
}

#[test]
fn linear_agrees_with_float64() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            for case in 0..16 {
                let rows = random.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 13, 33]);
                let k = random.pick(&[1, 2, 15, 16, 31, 32, 33, 64, 100, 576, 1001, 9000]);
                let n = random.pick(&[1, 2, 5, 6, 7, 12, 47, 48, 49, 131]);
                let threads = random.pick(&[1, 2, 3]);
                let what = format!(
                    "{random} {} {} rows {rows} k {k} n {n} threads {threads}",
                    isa.name(),
                    dtype.name()
                );
                let mut backend = fast(isa, threads);
                let x = normals(&mut random, rows * k);
                let w = weights(&mut random, dtype, n, k);
                let bias = (case % 2 == 0).then(|| normals(&mut random, n));
                let (mut want, mut bound) = product(&x, &w);
                if let Some(bias) = &bias {
                    for (index, b) in bias.iter().cycle().take(want.len()).enumerate() {
                        want[index] += f64::from(*b);
                        bound[index] += 2.0 * U * want[index].abs();
                    }
                }
                let x = buffer(&mut backend, &x, k);
                let mut out = poisoned(&mut backend, rows, n);
                let matrix = backend.matrix(&w).expect("memory");
                backend.linear(&x, &matrix, bias.as_ref(), &mut out);
                compare(out.data(), &want, &bound, &what);
            }
        }
    }
}

#[test]
fn swiglu_agrees_with_float64() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            for _ in 0..6 {
                let rows = random.pick(&[1, 2, 5, 9, 40]);
                let (k, n) = (random.pick(&[16, 33, 576]), random.pick(&[1, 17, 48, 100, 193]));
                let what = format!("{random} {} {} {rows} {k} {n}", isa.name(), dtype.name());
                let mut backend = fast(isa, 2);
                let x = normals(&mut random, rows * k);
                let (gate, up) =
                    (weights(&mut random, dtype, n, k), weights(&mut random, dtype, n, k));
                let (gates, gate_bounds) = product(&x, &gate);
                let (ups, up_bounds) = product(&x, &up);
                let silu = |x: f64| x / (1.0 + (-x).exp());
                let want: Vec<f64> = gates.iter().zip(&ups).map(|(g, u)| silu(*g) * u).collect();
                // silu is Lipschitz with constant 1.1; the vector exp is good to 3e-7.
                let bound: Vec<f64> = (0..want.len())
                    .map(|i| {
                        1.1 * gate_bounds[i] * ups[i].abs()
                            + up_bounds[i] * silu(gates[i]).abs()
                            + 8e-7 * want[i].abs()
                            + 1e-12
                    })
                    .collect();
                let x = buffer(&mut backend, &x, k);
                let mut out = poisoned(&mut backend, rows, n);
                let pair = backend.gate_up(&gate, &up).expect("memory");
                backend.swiglu(&x, &pair, &mut out);
                compare(out.data(), &want, &bound, &what);
            }
        }
    }
}

#[test]
fn add_norm_agrees_with_float64() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for _ in 0..20 {
            let (rows, cols) =
                (random.pick(&[1, 2, 17, 40]), random.pick(&[2, 8, 16, 17, 576, 8192]));
            let what = format!("{random} {} {rows} {cols}", isa.name());
            let mut backend = fast(isa, 2);
            let (residual, delta) =
                (normals(&mut random, rows * cols), normals(&mut random, rows * cols));
            let weight = normals(&mut random, cols);
            let sums: Vec<f32> = residual.iter().zip(&delta).map(|(a, b)| a + b).collect();
            let mut want = Vec::new();
            for row in sums.chunks_exact(cols) {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + 1e-6).sqrt();
                want.extend(
                    row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)),
                );
            }
            // Summing squares: (cols + 2) u at worst, half of it after the root; four roundings.
            let bound: Vec<f64> =
                want.iter().map(|y| (cols as f64 / 2.0 + 6.0) * U * y.abs() + 1e-30).collect();
            let mut residual = buffer(&mut backend, &residual, cols);
            let delta = buffer(&mut backend, &delta, cols);
            let mut out = poisoned(&mut backend, rows, cols);
            backend.add_norm(Some(&delta), &mut residual, &weight, 1e-6, &mut out);
            assert_eq!(residual.data(), sums, "{what}: residual");
            compare(out.data(), &want, &bound, &what);
        }
    }
}

#[test]
fn embedding_rows_are_exact() {
    let mut random = Random::from_env();
    for dtype in DTYPES {
        let table = weights(&mut random, dtype, 50, 33);
        let ids = [0, 49, 7, 7];
        let (mut plain, mut backend) = (reference(), fast(Isa::best(), 1));
        let mut want = poisoned(&mut plain, 4, 33);
        let mut got = poisoned(&mut backend, 4, 33);
        let matrix = plain.matrix(&table).expect("memory");
        plain.embed(&matrix, &ids, &mut want);
        let matrix = backend.matrix(&table).expect("memory");
        backend.embed(&matrix, &ids, &mut got);
        assert_eq!(got.data(), want.data());
    }
}
