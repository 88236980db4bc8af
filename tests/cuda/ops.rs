//! Ops of the CUDA backend one by one, against float64.

use qwen::backend::cuda::{Cuda, DeviceBuffer};
use qwen::backend::{Backend, BufferKind, RopeStep, StepOutputs};
use qwen::batch::{Batch, NO_SLOT, Output};
use qwen::tensor::{Dtype, HostTensor};

use crate::common::Random;
use crate::common::ops::{U, compare, normals, round, weights};
use crate::device::{backend, gpu, limits};

const HALVES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// Half a step of the dtype, relative: what one rounding adds at most.
fn half_step(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
}

/// Smallest step of the dtype, for values near zero.
fn smallest(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 1e-38 } else { 6e-8 }
}

pub(crate) fn filled(cuda: &mut Cuda, kind: BufferKind, data: &[f32], cols: usize) -> DeviceBuffer {
    let rows = data.len() / cols;
    let mut buffer = cuda.buffer(kind, rows.max(1), cols).expect("memory");
    cuda.write(&mut buffer, data).expect("written");
    buffer
}

pub(crate) fn poisoned(
    cuda: &mut Cuda,
    kind: BufferKind,
    rows: usize,
    cols: usize,
) -> DeviceBuffer {
    filled(cuda, kind, &vec![f32::NAN; rows.max(1) * cols], cols)
}

pub(crate) fn rounded(dtype: Dtype, data: &[f32]) -> Vec<f32> {
    data.iter().map(|&x| round(dtype, x)).collect()
}

/// x W^T in float64, and the bound of summing K products in f32 in any order.
fn product(x: &[f32], w: &HostTensor) -> (Vec<f64>, Vec<f64>) {
    let lines = w.to_f32();
    let (mut want, mut bound) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(w.cols()) {
        for line in lines.chunks_exact(w.cols()) {
            let terms = || row.iter().zip(line).map(|(x, w)| f64::from(*x) * f64::from(*w));
            want.push(terms().sum());
            let size: f64 = terms().map(f64::abs).sum();
            bound.push(2.0 * (w.cols() + 2) as f64 * U * size + 1e-30);
        }
    }
    (want, bound)
}

/// A step of `tokens` rows that no kernel of it looks into.
pub(crate) fn begin(cuda: &mut Cuda, tokens: usize, logits_rows: Vec<u32>) -> Batch {
    let batch = Batch {
        token_ids: (0..tokens as u32).map(|i| i * 7 % 50).collect(),
        positions: (0..tokens as u32).collect(),
        slot_mapping: vec![NO_SLOT; tokens],
        cu_seqlens: vec![0, tokens as u32],
        context_lens: vec![0],
        block_table: vec![],
        max_pages: 0,
        ntk_lens: vec![1],
        logits_rows,
        ..Batch::default()
    };
    let rope = RopeStep { query_scale: vec![1.0; tokens], ..RopeStep::default() };
    cuda.begin_step(&batch, &rope).expect("a step begins");
    batch
}

pub(crate) fn end(cuda: &mut Cuda) {
    cuda.finish_step(StepOutputs { logits: None, hidden: None }).expect("the step's ops");
    cuda.collect_step(None, &mut Output::default()).expect("the step's work");
}

#[test]
fn linear_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in HALVES {
        let mut cuda = backend(&device, dtype, limits(64), (64, 64));
        for case in 0..24 {
            let rows = random.pick(&[1, 2, 3, 5, 7, 8, 9, 16, 33, 200]);
            let k = random.pick(&[64, 128, 576, 1536, 2048]);
            let n = random.pick(&[8, 16, 24, 64, 576, 1728, 1000]);
            let what = format!("{random} {} rows {rows} k {k} n {n}", dtype.name());
            let x = rounded(dtype, &normals(&mut random, rows * k));
            let w = weights(&mut random, dtype, n, k);
            let bias = weights(&mut random, dtype, n, 1);
            let kind = if case % 2 == 0 { BufferKind::Stream } else { BufferKind::Activation };
            let with_bias = kind == BufferKind::Activation && case % 4 == 1;
            let (mut want, mut bound) = product(&x, &w);
            for (index, (want, bound)) in want.iter_mut().zip(&mut bound).enumerate() {
                if with_bias {
                    *want += f64::from(bias.to_f32()[index % n]);
                    *bound += 2.0 * U * want.abs();
                }
                if kind == BufferKind::Activation {
                    *bound += half_step(dtype) * (want.abs() + *bound) + smallest(dtype);
                }
            }
            let matrix = cuda.matrix(&w).expect("memory");
            let vector = cuda.vector(&bias).expect("memory");
            let x = filled(&mut cuda, BufferKind::Activation, &x, k);
            let mut out = poisoned(&mut cuda, kind, rows, n);
            begin(&mut cuda, rows.max(2), vec![]);
            cuda.linear(&x, &matrix, with_bias.then_some(&vector), &mut out);
            end(&mut cuda);
            compare(&cuda.read(&out).expect("read"), &want, &bound, &what);
        }
    }
}

#[test]
fn swiglu_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in HALVES {
        let mut cuda = backend(&device, dtype, limits(64), (1536, 64));
        for _ in 0..12 {
            let rows = random.pick(&[1, 2, 5, 8, 9, 40]);
            let (k, n) = (random.pick(&[64, 576]), random.pick(&[8, 24, 200, 1536]));
            let what = format!("{random} {} {rows} {k} {n}", dtype.name());
            let x = rounded(dtype, &normals(&mut random, rows * k));
            let (gate, up) = (weights(&mut random, dtype, n, k), weights(&mut random, dtype, n, k));
            let (gates, gate_bounds) = product(&x, &gate);
            let (ups, up_bounds) = product(&x, &up);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let want: Vec<f64> = gates.iter().zip(&ups).map(|(g, u)| silu(*g) * u).collect();
            // Gate and up are rounded once each at most, the product once; silu's slope is at most
            // 1.1; the fast exponential is good to 2 ulp plus 2^-21 of its argument's size.
            let step = half_step(dtype);
            let bound: Vec<f64> = (0..want.len())
                .map(|i| {
                    let gate = gate_bounds[i] + step * gates[i].abs() + smallest(dtype);
                    let up = up_bounds[i] + step * ups[i].abs() + smallest(dtype);
                    1.1 * gate * (ups[i].abs() + up)
                        + up * silu(gates[i]).abs()
                        + (step + 4e-6) * want[i].abs()
                        + smallest(dtype)
                })
                .collect();
            let pair = cuda.gate_up(&gate, &up).expect("memory");
            let x = filled(&mut cuda, BufferKind::Activation, &x, k);
            let mut out = poisoned(&mut cuda, BufferKind::Activation, rows, n);
            begin(&mut cuda, rows.max(2), vec![]);
            cuda.swiglu(&x, &pair, &mut out);
            end(&mut cuda);
            compare(&cuda.read(&out).expect("read"), &want, &bound, &what);
        }
    }
}

#[test]
fn add_norm_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in HALVES {
        let mut cuda = backend(&device, dtype, limits(64), (64, 64));
        for _ in 0..16 {
            let rows = random.pick(&[1, 2, 17, 300]);
            let cols = random.pick(&[8, 64, 576, 2048, 5120, 8192, 10240]);
            let what = format!("{random} {} {rows} {cols}", dtype.name());
            let residual = normals(&mut random, rows * cols);
            let delta = normals(&mut random, rows * cols);
            let weight = weights(&mut random, dtype, cols, 1);
            let sums: Vec<f32> = residual.iter().zip(&delta).map(|(a, b)| a + b).collect();
            let mut want = Vec::new();
            for row in sums.chunks_exact(cols) {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + 1e-6).sqrt();
                let weight = weight.to_f32();
                want.extend(
                    row.iter().zip(weight).map(|(&x, w)| f64::from(x) * scale * f64::from(w)),
                );
            }
            // The one rounding, with room: its mean error is a third of its largest, and few
            // elements may come near half.
            let sum_error = (cols as f64 / 2.0 + 6.0) * U;
            let bound: Vec<f64> = want
                .iter()
                .map(|y| (sum_error + half_step(dtype) * 1.3) * y.abs() + smallest(dtype))
                .collect();
            let vector = cuda.vector(&weight).expect("memory");
            let mut stream = filled(&mut cuda, BufferKind::Stream, &residual, cols);
            let delta = filled(&mut cuda, BufferKind::Stream, &delta, cols);
            let mut out = poisoned(&mut cuda, BufferKind::Activation, rows, cols);
            begin(&mut cuda, rows.max(2), vec![]);
            cuda.add_norm(Some(&delta), &mut stream, &vector, 1e-6, &mut out);
            end(&mut cuda);
            assert_eq!(cuda.read(&stream).expect("read"), sums, "{what}: residual");
            compare(&cuda.read(&out).expect("read"), &want, &bound, &what);
        }
    }
}

#[test]
fn embedding_and_gathered_rows_are_exact() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in HALVES {
        let mut cuda = backend(&device, dtype, limits(64), (64, 64));
        let table = weights(&mut random, dtype, 50, 576);
        let matrix = cuda.matrix(&table).expect("memory");
        let mut out = poisoned(&mut cuda, BufferKind::Stream, 40, 576);
        let mut some = poisoned(&mut cuda, BufferKind::Stream, 3, 576);
        let batch = begin(&mut cuda, 40, vec![39, 0, 7]);
        cuda.embed(&matrix, &batch.token_ids, &mut out);
        cuda.gather_rows(&out, &batch.logits_rows, &mut some);
        end(&mut cuda);
        let lines = table.to_f32();
        let row = |id: u32| &lines[id as usize * 576..(id as usize + 1) * 576];
        let want: Vec<f32> = batch.token_ids.iter().flat_map(|id| row(*id)).copied().collect();
        assert_eq!(cuda.read(&out).expect("read"), want);
        let want: Vec<f32> = batch
            .logits_rows
            .iter()
            .flat_map(|at| row(batch.token_ids[*at as usize]))
            .copied()
            .collect();
        assert_eq!(cuda.read(&some).expect("read"), want);
    }
}

/// The rows of `residual`, normalised and weighted, in float64 and not rounded.
fn normalised(residual: &[f32], weight: &HostTensor) -> Vec<f64> {
    let weight = weight.to_f32();
    let mut out = Vec::new();
    for row in residual.chunks_exact(weight.len()) {
        let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + 1e-6).sqrt();
        out.extend(row.iter().zip(&weight).map(|(&x, w)| f64::from(x) * scale * f64::from(*w)));
    }
    out
}

/// The bound of a linear whose x was rounded to `dtype`, beside what `product` allows for it.
fn rounded_product(dtype: Dtype, x: &[f64], w: &HostTensor) -> (Vec<f64>, Vec<f64>) {
    let near: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let (want, mut bound) = product(&near, w);
    // `product` bounds by 2 (k + 2) U the sum of the terms' sizes, each of which is off by a rounding.
    for bound in &mut bound {
        *bound *= 1.0 + (half_step(dtype) + 4.0 * U) / (2.0 * (w.cols() + 2) as f64 * U);
    }
    (want, bound)
}

/// What lies between two attentions.
struct Between {
    o: HostTensor,
    down: HostTensor,
    qkv: HostTensor,
    gate: HostTensor,
    up: HostTensor,
    norms: [HostTensor; 2],
    attended: Vec<f32>,
    residual: Vec<f32>,
    rows: usize,
}

impl Between {
    /// The first `count` linears and the norms among them: the residual stream, the MLP's inner
    /// activations, and queries, keys and values.
    fn run(&self, cuda: &mut Cuda, count: usize) -> [Vec<f32>; 3] {
        let (hidden, width) = (self.o.cols(), self.down.cols());
        let matrices = [&self.o, &self.down, &self.qkv].map(|w| cuda.matrix(w).expect("memory"));
        let pair = cuda.gate_up(&self.gate, &self.up).expect("memory");
        let norms = [0, 1].map(|i| cuda.vector(&self.norms[i]).expect("memory"));
        let attended = filled(cuda, BufferKind::Activation, &self.attended, hidden);
        let mut residual = filled(cuda, BufferKind::Stream, &self.residual, hidden);
        let mut delta = poisoned(cuda, BufferKind::Stream, self.rows, hidden);
        let mut normed = poisoned(cuda, BufferKind::Activation, self.rows, hidden);
        let mut inner = poisoned(cuda, BufferKind::Activation, self.rows, width);
        let mut heads = poisoned(cuda, BufferKind::Activation, self.rows, self.qkv.rows());
        begin(cuda, self.rows.max(2), vec![]);
        cuda.linear(&attended, &matrices[0], None, &mut delta);
        cuda.add_norm(Some(&delta), &mut residual, &norms[0], 1e-6, &mut normed);
        if count > 1 {
            cuda.swiglu(&normed, &pair, &mut inner);
        }
        if count > 2 {
            cuda.linear(&inner, &matrices[1], None, &mut delta);
            cuda.add_norm(Some(&delta), &mut residual, &norms[1], 1e-6, &mut normed);
        }
        if count > 3 {
            cuda.linear(&normed, &matrices[2], None, &mut heads);
        }
        end(cuda);
        [residual, inner, heads].map(|buffer| cuda.read(&buffer).expect("read"))
    }
}

#[test]
fn linears_with_norms_between_them_agree_with_float64() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in HALVES {
        let mut cuda = backend(&device, dtype, limits(64), (1536, 64));
        for _ in 0..8 {
            let rows = random.pick(&[1, 2, 5, 8, 9, 16, 40]);
            let (hidden, width) = (random.pick(&[64, 576, 1024]), random.pick(&[64, 192, 1536]));
            let what = format!("{random} {} {rows} {hidden} {width}", dtype.name());
            let mut matrix = |n, k| weights(&mut random, dtype, n, k);
            let case = Between {
                o: matrix(hidden, hidden),
                down: matrix(hidden, width),
                qkv: matrix(3 * hidden, hidden),
                gate: matrix(width, hidden),
                up: matrix(width, hidden),
                norms: [matrix(hidden, 1), matrix(hidden, 1)],
                attended: rounded(dtype, &normals(&mut random, rows * hidden)),
                residual: normals(&mut random, rows * hidden),
                rows,
            };
            check_between(&mut cuda, dtype, &case, &what);
        }
    }
}

/// Each linear on what those before it left, and everything alike however many follow.
fn check_between(cuda: &mut Cuda, dtype: Dtype, case: &Between, what: &str) {
    let step = half_step(dtype);
    let add = |before: &[f32], (mut want, mut bound): (Vec<f64>, Vec<f64>)| {
        for ((want, bound), before) in want.iter_mut().zip(&mut bound).zip(before) {
            *want += f64::from(*before);
            *bound += 2.0 * U * want.abs();
        }
        (want, bound)
    };
    let [first, ..] = case.run(cuda, 1);
    let (want, bound) = add(&case.residual, product(&case.attended, &case.o));
    compare(&first, &want, &bound, &format!("{what}: o"));
    let [same, inner, _] = case.run(cuda, 2);
    assert_eq!(same, first, "{what}: the residual after o");
    let x = normalised(&first, &case.norms[0]);
    let (gates, gate_bounds) = rounded_product(dtype, &x, &case.gate);
    let (ups, up_bounds) = rounded_product(dtype, &x, &case.up);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let want: Vec<f64> = gates.iter().zip(&ups).map(|(g, u)| silu(*g) * u).collect();
    let bound: Vec<f64> = (0..want.len())
        .map(|i| {
            let gate = gate_bounds[i] + step * gates[i].abs() + smallest(dtype);
            let up = up_bounds[i] + step * ups[i].abs() + smallest(dtype);
            let both = 1.1 * gate * (ups[i].abs() + up) + up * silu(gates[i]).abs();
            both + (step + 4e-6) * want[i].abs() + smallest(dtype)
        })
        .collect();
    compare(&inner, &want, &bound, &format!("{what}: gate and up"));
    let [second, again, _] = case.run(cuda, 3);
    assert_eq!(again, inner, "{what}: the inner activations");
    let (want, bound) = add(&first, product(&inner, &case.down));
    compare(&second, &want, &bound, &format!("{what}: down"));
    let [same, _, heads] = case.run(cuda, 4);
    assert_eq!(same, second, "{what}: the residual after down");
    let (want, mut bound) = rounded_product(dtype, &normalised(&second, &case.norms[1]), &case.qkv);
    for (bound, want) in bound.iter_mut().zip(&want) {
        *bound += step * (want.abs() + *bound) + smallest(dtype);
    }
    compare(&heads, &want, &bound, &format!("{what}: qkv"));
}
