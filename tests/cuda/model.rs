//! Whole models on the GPU against the plain CPU reference: random checkpoints of real head sizes,
//! prompts in chunks and whole, decode steps of several sequences, recorded graphs and not.
//!
//! Tolerance, relative to the rms of the logits: both sides round queries, keys, values and the
//! inputs of linears; the GPU also rounds Q, K, V before the rotation, gate and up products, and
//! sums in another order, so that elements near a rounding border fall to the other side. A rounding
//! adds a relative error of eps / sqrt(12) rms; there are about 8 a layer that the two sides do not
//! share, and their effects add as random walks: sqrt(8 layers) eps / sqrt(12), where eps is 2^-7
//! (the width of a bf16 step at worst) or 2^-10 (f16). Twice that is allowed, and eight times that
//! for the largest single error.

use qwen::backend::comm::Solo;
use qwen::backend::cpu::reference::Reference;
use qwen::backend::{Backend, cuda::Device};
use qwen::batch::{Batch, PAGE_TOKENS};
use qwen::checkpoint::Checkpoint;
use qwen::error::Result;
use qwen::model::config::ModelConfig;
use qwen::model::{Limits, Model, Placement, Rank};
use qwen::tensor::Dtype;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Shape, write};
use crate::common::Random;
use crate::device::{backend, gpu, limits};

pub(crate) const LIMITS: Limits = Limits { max_tokens: 512, max_logits_rows: 16, num_pages: 256 };

fn load<B: Backend + 'static>(folder: &Path, backend: B) -> Box<dyn Rank> {
    try_load(folder, backend, LIMITS).expect("the model loads")
}

pub(crate) fn try_load<B: Backend + 'static>(
    folder: &Path,
    backend: B,
    limits: Limits,
) -> Result<Box<dyn Rank>> {
    let config = ModelConfig::open(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let placement = Placement::ALONE;
    let model = Model::load(backend, &checkpoint, &config, placement, limits, &mut |_| true)?;
    Ok(Box::new(model))
}

/// The checkpoint in `folder` on the GPU, with a cache of `num_pages`.
pub(crate) fn load_with(
    device: &Device,
    folder: &Path,
    dtype: Dtype,
    config: &ModelConfig,
    num_pages: usize,
) -> Result<Box<dyn Rank>> {
    let sizes = limits(config.head_dim);
    let backend = backend(device, dtype, sizes, (config.intermediate_size, config.vocab_size));
    try_load(folder, backend, Limits { num_pages, ..LIMITS })
}

/// The checkpoint in `folder` on the GPU.
pub(crate) fn on_gpu(
    device: &Device,
    folder: &Path,
    dtype: Dtype,
    config: &ModelConfig,
) -> Box<dyn Rank> {
    let mut sizes = limits(config.head_dim);
    sizes.max_tokens = LIMITS.max_tokens;
    sizes.max_sequences = LIMITS.max_logits_rows;
    load(folder, backend(device, dtype, sizes, (config.intermediate_size, config.vocab_size)))
}

/// Sequences that grow step by step, each in pages of its own, handed out in falling order.
pub(crate) struct Script {
    pub(crate) sequences: Vec<(Vec<u32>, usize)>,
}

impl Script {
    /// A step that computes `counts[s]` more tokens of each sequence.
    pub(crate) fn step(&mut self, counts: &[usize]) -> Batch {
        let mut batch = Batch { cu_seqlens: vec![0], max_pages: 32, ..Batch::default() };
        for (index, ((tokens, done), &count)) in self.sequences.iter_mut().zip(counts).enumerate() {
            if count == 0 {
                continue;
            }
            let table: Vec<u32> = (0..32).rev().map(|page| (index * 32 + page) as u32).collect();
            for position in *done..*done + count {
                let page = table[position / PAGE_TOKENS] as usize;
                batch.token_ids.push(tokens[position]);
                batch.positions.push(position as u32);
                batch.slot_mapping.push((page * PAGE_TOKENS + position % PAGE_TOKENS) as u32);
            }
            *done += count;
            batch.block_table.extend(table);
            batch.context_lens.push(*done as u32);
            batch.ntk_lens.push(100);
            batch.cu_seqlens.push(batch.token_ids.len() as u32);
            batch.logits_rows.push(batch.token_ids.len() as u32 - 1);
        }
        batch
    }
}

/// Relative rms error and relative largest error of `got`.
pub(crate) fn errors(got: &[f32], want: &[f32]) -> (f64, f64) {
    assert_eq!(got.len(), want.len(), "logits");
    assert!(got.iter().all(|x| x.is_finite()), "logits that are no numbers");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let size = (want.iter().map(|x| square(*x)).sum::<f64>() / want.len() as f64).sqrt();
    let differences = || got.iter().zip(want).map(|(a, b)| a - b);
    let mean = differences().map(square).sum::<f64>() / want.len() as f64;
    let largest = differences().fold(0.0, |max: f32, x| max.max(x.abs()));
    (mean.sqrt() / size, f64::from(largest) / size)
}

pub(crate) fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("qwen-cuda-test-{}-{name}", std::process::id()))
}

#[test]
fn logits_agree_with_the_reference() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for (index, (dtype, heads, dim)) in
        [(Dtype::Bf16, 2, 128), (Dtype::F16, 3, 64), (Dtype::Bf16, 9, 64), (Dtype::F16, 4, 128)]
            .into_iter()
            .enumerate()
    {
        let shape = Shape {
            layers: 3,
            hidden: heads * dim,
            heads,
            width: 264 + 8 * index,
            vocab: 1000 + 8 * index,
            dtype,
            stretched: index % 2 == 1,
        };
        let folder = folder(&format!("logits-{index}"));
        write(&folder, &mut random, &shape);
        let mut cpu = load(&folder, Reference::new(Arc::new(Solo), 0));
        let config = ModelConfig::open(&folder).expect("config.json");
        let mut gpu = on_gpu(&device, &folder, dtype, &config);
        compare_steps(&mut *cpu, &mut *gpu, &mut random, &shape, allowed(&shape));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}

/// The relative rms error that rounding explains, twice over; see above.
pub(crate) fn allowed(shape: &Shape) -> f64 {
    let eps = if shape.dtype == Dtype::Bf16 { 1.0 / 128.0 } else { 1.0 / 1024.0 };
    2.0 * (8.0 * shape.layers as f64).sqrt() * eps / 12_f64.sqrt()
}

/// Logits of a series of steps, within `allowed` (the rms of the error, relative).
pub(crate) fn compare_steps(
    cpu: &mut dyn Rank,
    gpu: &mut dyn Rank,
    random: &mut Random,
    shape: &Shape,
    allowed: f64,
) {
    let token = |random: &mut Random| random.below(shape.vocab) as u32;
    let sequences = (0..5).map(|_| ((0..300).map(|_| token(random)).collect(), 0)).collect();
    let mut script = Script { sequences };
    let (mut want, mut got) = (Vec::new(), Vec::new());
    for (step, counts) in [
        [100, 1, 17, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 15, 129, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [63, 1, 1, 64, 65],
        [1, 0, 0, 0, 0],
        [1, 0, 1, 0, 1],
        [1, 0, 0, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        let batch = script.step(&counts);
        cpu.forward(&batch, &mut want).expect("the CPU");
        gpu.forward(&batch, &mut got).expect("the GPU");
        let (rms, largest) = errors(&got, &want);
        eprintln!(
            "step {step} {:?}: rms {rms:.2e} largest {largest:.2e} of {allowed:.2e}",
            shape.dtype
        );
        assert!(rms < allowed, "{random} {shape:?} step {step}: rms error {rms} of {allowed}");
        assert!(largest < 8.0 * allowed, "{random} {shape:?} step {step}: largest error {largest}");
    }
}
