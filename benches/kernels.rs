//! The CPU backend's matrix products beside the machine's read bandwidth: `cargo bench --bench
//! kernels`. Shapes are the demo model's and Qwen-1.8B's. Correctness is `tests/ops.rs`'s work.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use qwen::backend::comm::Solo;
use qwen::backend::cpu::HostBuffer;
use qwen::backend::cpu::fast::{Fast, FastMatrix};
use qwen::backend::random::RandomCodes;
use qwen::backend::{Backend, BufferKind};
use qwen::quant::{Bits, QuantConfig};
use qwen::tensor::{Dtype, HostTensor};

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut backend = Fast::new(Arc::new(Solo), 0, threads).expect("threads");
    println!("{} threads, {}", threads, backend.isa().name());
    let bandwidth = read_bandwidth(threads);
    println!("read bandwidth {bandwidth:.1} GB/s");
    for (n, k) in [(1728, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576), (6144, 2048)] {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let bytes = n * k * dtype.size_bytes();
            let weights: Vec<FastMatrix> = (0..copies_of(bytes))
                .map(|i| random_weights(dtype, n, k, i as u64))
                .map(|weight| backend.matrix(&weight).expect("memory"))
                .collect();
            report(&mut backend, &weights, (n, k), (dtype.name(), bytes, bandwidth));
        }
        for bits in [Bits::Four, Bits::Eight] {
            let format = QuantConfig {
                bits,
                group_size: Some(64),
                desc_act: false,
                symmetric: true,
                zero_offset: 1,
            };
            let bytes = n * k * bits.count() / 8 + 2 * n * format.num_groups(k);
            let weights: Vec<FastMatrix> = (0..copies_of(bytes))
                .map(|seed| RandomCodes { format, outputs: n, inputs: k, seed: seed as u64 })
                .map(|codes| codes.tensor().expect("memory"))
                .map(|weight| backend.quantised_matrix(&weight).expect("memory"))
                .collect();
            report(&mut backend, &weights, (n, k), (format.name(), bytes, bandwidth));
        }
    }
}

/// Enough copies that no cache holds them all.
fn copies_of(bytes: usize) -> usize {
    (512 << 20) / bytes
}

/// Times products with `weights`, each of `bytes`, for one row and for many.
fn report(
    backend: &mut Fast,
    weights: &[FastMatrix],
    (n, k): (usize, usize),
    (name, bytes, bandwidth): (&str, usize, f64),
) {
    let decode = time_products(backend, weights, (1, n, k));
    let prefill = time_products(backend, &weights[..weights.len().min(8)], (512, n, k));
    let gbs = bytes as f64 / decode / 1e9;
    println!(
        "{n:>6} x {k:<5} {name:<9} batch 1: {:8.1} us {gbs:6.1} GB/s ({:3.0} %)   512 rows: {:7.1} GFLOP/s",
        decode * 1e6,
        100.0 * gbs / bandwidth,
        2.0 * (512 * n * k) as f64 / prefill / 1e9,
    );
}

/// Best of several passes over 1 GiB, all threads, in GB/s.
fn read_bandwidth(threads: usize) -> f64 {
    let data: Vec<u64> = (0..(1 << 27)).collect();
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(data.len() / threads) {
                scope.spawn(|| black_box(part.iter().fold(0_u64, |a, b| a ^ b)));
            }
        });
        best = best.max(data.len() as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn random_weights(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> HostTensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let bytes = (0..rows * cols)
        .flat_map(|_| {
            let bits = next().to_bits();
            match dtype {
                Dtype::Bf16 => vec![(bits >> 16) as u8, (bits >> 24) as u8],
                Dtype::F16 => half::f16::from_f32(f32::from_bits(bits)).to_le_bytes().to_vec(),
                Dtype::F32 => bits.to_le_bytes().to_vec(),
            }
        })
        .collect();
    HostTensor::from_vec(dtype, rows, cols, bytes)
}

/// Seconds of one product, the median over the weights.
fn time_products(
    backend: &mut Fast,
    weights: &[FastMatrix],
    (rows, n, k): (usize, usize, usize),
) -> f64 {
    let mut x: HostBuffer = backend.buffer(BufferKind::Activation, rows, k).expect("memory");
    x.set_rows(rows);
    x.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 / 17.0 - 0.5);
    let mut out = backend.buffer(BufferKind::Activation, rows, n).expect("memory");
    backend.linear(&x, &weights[0], None, &mut out);
    let mut times: Vec<f64> = weights
        .iter()
        .map(|weight| {
            let start = Instant::now();
            backend.linear(&x, weight, None, &mut out);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
