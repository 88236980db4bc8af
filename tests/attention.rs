//! Rotary embedding, KV cache and attention of the fast CPU backend, on every instruction set of this
//! machine, against the plain loops of the reference; and what a row may never depend on.

#![allow(clippy::expect_used, clippy::panic)]

mod common;

use common::Random;
use common::ops::{DTYPES, U, buffer, compare, fast, normals, poisoned, reference, weights};
use qwen::backend::cpu::HostBuffer;
use qwen::backend::cpu::fast::Isa;
use qwen::backend::{Backend, HeadShape, KvSpec, RopeStep};
use qwen::batch::{Batch, PAGE_TOKENS};
use qwen::tensor::Dtype;

/// Two sequences in scattered pages: `context` tokens cached before this step, then `new` rows.
struct Scene {
    batch: Batch,
    heads: HeadShape,
    spec: KvSpec,
    rope: RopeStep,
    qkv: Vec<f32>,
}

fn scene(random: &mut Random, dtype: Dtype, spans: &[(usize, usize)], angle: f32) -> Scene {
    let num_kv_heads = random.pick(&[1, 2, 3]);
    let heads = HeadShape {
        num_heads: num_kv_heads * random.pick(&[1, 2]),
        num_kv_heads,
        head_dim: random.pick(&[2, 8, 16, 40, 64, 128]),
    };
    let pages_of = |span: &(usize, usize)| (span.0 + span.1).div_ceil(PAGE_TOKENS);
    let max_pages = spans.iter().map(pages_of).max().unwrap_or(1);
    let num_pages = spans.iter().map(pages_of).sum::<usize>() + 2;
    // Pages are handed out from the end, so that order in memory is not order in the sequence.
    let mut free: Vec<u32> = (0..num_pages as u32).collect();
    let mut batch = Batch { max_pages, cu_seqlens: vec![0], ..Batch::default() };
    for span in spans {
        let mut table: Vec<u32> =
            (0..pages_of(span)).map(|_| free.swap_remove(random.below(free.len()))).collect();
        for position in span.0..span.0 + span.1 {
            batch.token_ids.push(0);
            batch.positions.push(position as u32);
            let page = table[position / PAGE_TOKENS] as usize;
            batch.slot_mapping.push((page * PAGE_TOKENS + position % PAGE_TOKENS) as u32);
        }
        table.resize(max_pages, 0);
        batch.block_table.extend(table);
        batch.context_lens.push((span.0 + span.1) as u32);
        batch.cu_seqlens.push(batch.token_ids.len() as u32);
        batch.ntk_lens.push(1);
    }
    let tokens = batch.num_tokens();
    let half = heads.head_dim / 2;
    let angles: Vec<f32> = normals(random, tokens * half).iter().map(|x| x * angle).collect();
    Scene {
        rope: RopeStep {
            inv_freq: Vec::new(),
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            query_scale: (0..tokens).map(|i| 1.0 + 0.25 * (i % 3) as f32 * angle).collect(),
        },
        qkv: normals(random, tokens * heads.qkv_cols()),
        spec: KvSpec {
            num_layers: 2,
            num_pages,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            dtype,
        },
        batch,
        heads,
    }
}

/// Rotates, stores and attends; returns the rotated rows and the attention output.
fn run_attention<B: Backend<Buffer = HostBuffer>>(
    backend: &mut B,
    kv: &mut B::KvCache,
    scene: &Scene,
) -> (Vec<f32>, Vec<f32>) {
    let mut qkv = buffer(backend, &scene.qkv, scene.heads.qkv_cols());
    let cols = scene.heads.num_heads * scene.heads.head_dim;
    let mut out = poisoned(backend, scene.batch.num_tokens(), cols);
    backend.rope_kv_write(&scene.batch, &scene.rope, scene.heads, &mut qkv, (kv, 1));
    backend.attention(&scene.batch, scene.heads, &qkv, (kv, 1), &mut out);
    (qkv.data().to_vec(), out.data().to_vec())
}

#[test]
fn rotation_agrees_with_the_reference() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            let scene = scene(&mut random, dtype, &[(0, 19), (0, 1)], 1.0);
            let what = format!("{random} {} {}", isa.name(), dtype.name());
            let (mut plain, mut backend) = (reference(), fast(isa, 2));
            let mut plain_kv = plain.kv_cache(scene.spec).expect("memory");
            let mut kv = backend.kv_cache(scene.spec).expect("memory");
            let (want, _) = run_attention(&mut plain, &mut plain_kv, &scene);
            let (got, _) = run_attention(&mut backend, &mut kv, &scene);
            // Two f32 products and a sum, then the dtype's rounding may fall to the other side.
            let ulp = match dtype {
                Dtype::Bf16 => 1.0 / 128.0,
                Dtype::F16 => 1.0 / 1024.0,
                Dtype::F32 => 4.0 * U,
            };
            for (got, want) in got.iter().zip(&want) {
                let error = f64::from((got - want).abs());
                assert!(error <= ulp * f64::from(want.abs()) + 16.0 * U, "{what}: {got} {want}");
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            for spans in [&[(0, 1)][..], &[(0, 16), (0, 17)], &[(0, 70), (0, 3)], &[(0, 9)]] {
                // No rotation: stored keys are the same bits on both sides.
                let scene = scene(&mut random, dtype, spans, 0.0);
                let dim = scene.heads.head_dim;
                let what = format!("{random} {} {} {spans:?} {dim}", isa.name(), dtype.name());
                let (mut plain, mut backend) = (reference(), fast(isa, 2));
                let mut plain_kv = plain.kv_cache(scene.spec).expect("memory");
                let mut kv = backend.kv_cache(scene.spec).expect("memory");
                let (rows, want) = run_attention(&mut plain, &mut plain_kv, &scene);
                let (same, got) = run_attention(&mut backend, &mut kv, &scene);
                assert_eq!(rows, same, "{what}: rows");
                // A score is off by (d + 4) u |q| |k| / sqrt(d) at worst, a weight by twice that
                // (itself and the sum), plus the exponential and the sum over the context.
                let largest = |range: std::ops::Range<usize>| -> f64 {
                    let cols = scene.heads.qkv_cols();
                    let norms =
                        rows.chunks_exact(cols).flat_map(|row| row[range.clone()].chunks(dim));
                    norms
                        .map(|head| head.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt())
                        .fold(0.0, f64::max)
                };
                let (q, k) = (scene.heads.num_heads * dim, scene.heads.num_kv_heads * dim);
                let score =
                    (dim + 4) as f64 * U * largest(0..q) * largest(q..q + k) / (dim as f64).sqrt();
                let value = rows.iter().fold(0.0, |max: f64, x| max.max(f64::from(x.abs())));
                let bound = (2.0 * 2.0 * score + 1e-6 + 80.0 * U) * value;
                let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
                compare(&got, &want, &vec![bound; want.len()], &what);
            }
        }
    }
}

/// One step of many rows gives the bits of many steps of one row: what a service promises whose
/// batches depend on who else is talking.
#[test]
fn rows_do_not_depend_on_the_batch() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            let what = format!("{random} {} {}", isa.name(), dtype.name());
            let (rows, k, n) = (11, 100, 53);
            let mut backend = fast(isa, 2);
            let x = normals(&mut random, rows * k);
            let (w, v) = (weights(&mut random, dtype, n, k), weights(&mut random, dtype, n, k));
            let pair = backend.gate_up(&w, &v).expect("memory");
            let matrix = backend.matrix(&w).expect("memory");
            let all = buffer(&mut backend, &x, k);
            let mut out = poisoned(&mut backend, rows, n);
            let mut activated = poisoned(&mut backend, rows, n);
            backend.linear(&all, &matrix, None, &mut out);
            backend.swiglu(&all, &pair, &mut activated);
            for row in 0..rows {
                let one = buffer(&mut backend, &x[row * k..(row + 1) * k], k);
                let mut alone = poisoned(&mut backend, 1, n);
                backend.linear(&one, &matrix, None, &mut alone);
                assert_eq!(alone.data(), out.row(row), "{what}: linear, row {row}");
                backend.swiglu(&one, &pair, &mut alone);
                assert_eq!(alone.data(), activated.row(row), "{what}: swiglu, row {row}");
            }
            let tokens = 37;
            let whole = scene(&mut random, dtype, &[(0, tokens)], 1.0);
            let mut kv = backend.kv_cache(whole.spec).expect("memory");
            let (_, together) = run_attention(&mut backend, &mut kv, &whole);
            let mut kv = backend.kv_cache(whole.spec).expect("memory");
            let alone: Vec<f32> = (0..tokens)
                .flat_map(|t| run_attention(&mut backend, &mut kv, &row_of(&whole, t)).1)
                .collect();
            assert_eq!(together, alone, "{what}: attention");
        }
    }
}

/// Row `t` of a scene of one sequence, as a step of its own.
fn row_of(scene: &Scene, t: usize) -> Scene {
    let (half, cols) = (scene.heads.head_dim / 2, scene.heads.qkv_cols());
    let batch = Batch {
        token_ids: vec![0],
        positions: vec![t as u32],
        slot_mapping: vec![scene.batch.slot_mapping[t]],
        cu_seqlens: vec![0, 1],
        context_lens: vec![t as u32 + 1],
        ..scene.batch.clone()
    };
    let rope = RopeStep {
        inv_freq: Vec::new(),
        cos: scene.rope.cos[t * half..(t + 1) * half].to_vec(),
        sin: scene.rope.sin[t * half..(t + 1) * half].to_vec(),
        query_scale: vec![scene.rope.query_scale[t]],
    };
    let qkv = scene.qkv[t * cols..(t + 1) * cols].to_vec();
    Scene { batch, rope, qkv, heads: scene.heads, spec: scene.spec }
}

/// A recycled page may hold another sequence's NaN: it must not reach this one.
#[test]
fn what_an_earlier_owner_left_in_a_page_is_never_read() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            let mut first = scene(&mut random, dtype, &[(0, 16)], 1.0);
            let mut backend = fast(isa, 1);
            let mut kv = backend.kv_cache(first.spec).expect("memory");
            first.qkv.fill(f32::NAN);
            run_attention(&mut backend, &mut kv, &first);
            for t in 0..5 {
                first.qkv = normals(&mut random, first.qkv.len());
                let (_, out) = run_attention(&mut backend, &mut kv, &row_of(&first, t));
                assert!(out.iter().all(|x| x.is_finite()), "{random} {} token {t}", isa.name());
            }
        }
    }
}

/// A key that overflowed must not turn into a plausible answer.
#[test]
fn a_nan_in_the_cache_reaches_the_output() {
    let mut random = Random::from_env();
    for isa in Isa::available() {
        for dtype in DTYPES {
            let mut broken = scene(&mut random, dtype, &[(0, 20)], 0.0);
            let key = broken.heads.num_heads * broken.heads.head_dim;
            broken.qkv[3 * broken.heads.qkv_cols() + key] = f32::NAN;
            let mut backend = fast(isa, 2);
            let mut kv = backend.kv_cache(broken.spec).expect("memory");
            let (_, out) = run_attention(&mut backend, &mut kv, &broken);
            let last = &out[19 * broken.heads.num_heads * broken.heads.head_dim..];
            assert!(last[0].is_nan(), "{random} {} {}", isa.name(), dtype.name());
        }
    }
}
