//! Random weights made on the device are those that the host makes.
//!
//! ln, cos and sin differ by a few steps of f32 between the two, so that an element near a rounding
//! border can fall to the other side: by one step of the dtype, once in about 2^(24 - 8 - 2) for bf16
//! and 2^(24 - 11 - 2) for f16. Four times as many are allowed.

use qwen::backend::cuda::Cuda;
use qwen::backend::random::{Normal, seed_of};
use qwen::backend::{Backend, BufferKind};
use qwen::tensor::Dtype;

use crate::common::Random;
use crate::common::ops::normals;
use crate::device::{backend, gpu, limits};
use crate::ops::{begin, end, filled, poisoned, rounded};

fn normal(name: &str, dtype: Dtype, rows: usize, cols: usize) -> Normal {
    Normal { dtype, rows, cols, mean: 0.0, deviation: 0.1, seed: seed_of(name, 3) }
}

/// Rows 0..50 of a matrix, by way of the embedding kernel, which is exact.
fn rows_of(cuda: &mut Cuda, normal: &Normal) -> Vec<f32> {
    let matrix = cuda.random_matrix(normal).expect("memory");
    let mut out = poisoned(cuda, BufferKind::Stream, 50, normal.cols);
    let batch = begin(cuda, 50, vec![]);
    cuda.embed(&matrix, &batch.token_ids, &mut out);
    end(cuda);
    let read = cuda.read(&out).expect("read");
    let mut rows = vec![0.0; 50 * normal.cols];
    for (row, &id) in read.chunks_exact(normal.cols).zip(&batch.token_ids) {
        rows[id as usize * normal.cols..][..normal.cols].copy_from_slice(row);
    }
    rows
}

#[test]
fn matrices_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    for (dtype, digits) in [(Dtype::Bf16, 8), (Dtype::F16, 11)] {
        let mut cuda = backend(&device, dtype, limits(64), (64, 64));
        let normal = normal("matrix", dtype, 50, 4096);
        let got = rows_of(&mut cuda, &normal);
        let want = normal.tensor().expect("memory").to_f32();
        let step = 0.5_f32.powi(digits - 1);
        let wrong = |(a, b): &(&f32, &f32)| (*a - *b).abs() > step * b.abs() + 1e-6;
        assert_eq!(got.iter().zip(&want).filter(wrong).count(), 0, "{}", dtype.name());
        let apart = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        let allowed = (want.len() << 4) >> (24 - digits);
        assert!(
            apart <= allowed,
            "{}: {apart} of {} differ, {allowed} may",
            dtype.name(),
            want.len()
        );
    }
}

#[test]
fn interleaved_matrices_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let mut cuda = backend(&device, dtype, limits(64), (264, 64));
        let (gate, up) = (normal("gate", dtype, 264, 576), normal("up", dtype, 264, 576));
        let tensors = [gate, up].map(|normal| normal.tensor().expect("memory"));
        let pairs = [
            cuda.random_gate_up(&gate, &up).expect("memory"),
            cuda.gate_up(&tensors[0], &tensors[1]).expect("memory"),
        ];
        let x = rounded(dtype, &normals(&mut random, 9 * 576));
        let x = filled(&mut cuda, BufferKind::Activation, &x, 576);
        let [made, sent] = pairs.map(|pair| {
            let mut out = poisoned(&mut cuda, BufferKind::Activation, 9, 264);
            begin(&mut cuda, 9, vec![]);
            cuda.swiglu(&x, &pair, &mut out);
            end(&mut cuda);
            cuda.read(&out).expect("read")
        });
        // Outputs are of size 1 to 10; an element in thousands that is one step off moves a sum by
        // far less than one step of the output.
        let step = if dtype == Dtype::Bf16 { 1.0 / 128.0 } else { 1.0 / 1024.0 };
        for (a, b) in made.iter().zip(&sent) {
            assert!((a - b).abs() <= 2.0 * step * b.abs() + step, "{random} {a} {b}");
        }
    }
}
