//! What `Engine::estimate` says against what an engine then takes of the device's memory.
//!
//! Free memory is the whole device's, so nothing else may use it meanwhile: the bundle runs tests one
//! at a time.

use qwen::backend::cuda::{CallerContext, Device, Footprint};
use qwen::engine::{Engine, EngineOptions};
use qwen::quant::Bits;
use qwen::tensor::Dtype;

use crate::checkpoint::{Shape, write_json};
use crate::common::Random;
use crate::device::gpu;
use crate::gptq::{Format, quantised_config};
use crate::host::HostContext;
use crate::opened::{Folder, options, reply};

const MIB: f64 = 1048576.0;

#[test]
fn allocations_take_what_is_counted() {
    let Some(_) = gpu() else { return };
    let mut random = Random::from_env();
    let host = HostContext::new();
    for (count, below) in [(400, 4 << 10), (100, 1 << 20), (40, 4 << 20), (10, 200 << 20)] {
        // What earlier ones left of their pages would blur the count.
        let (mut counted, before) = (Footprint::default(), host.free_bytes());
        for _ in 0..count {
            let len_bytes = 1 + random.below(below);
            host.allocate(len_bytes);
            counted.add(1, len_bytes as u64);
        }
        let taken = (before - host.free_bytes()) as f64;
        let counted = counted.num_bytes() as f64;
        eprintln!(
            "{count} below {:.2} MiB: {:.1} MiB taken, {:.1} MiB counted",
            below as f64 / MIB,
            taken / MIB,
            counted / MIB
        );
        // Pages that were begun before (three have been seen, of 2 MiB), and what CUDA keeps of itself.
        let allowed = 0.02 * taken + 8.0 * MIB;
        assert!((taken - counted).abs() < allowed, "{random}: {taken} taken, {counted} counted");
    }
}

/// What a new context finds, asked without leaving the thread's own.
fn free_bytes(device: &Device) -> u64 {
    let _caller = CallerContext::save();
    device.free_bytes().expect("asked")
}

/// Qwen-1.8B but for its vocabulary: 2.3 GiB of weights.
const SHAPE: Shape = Shape {
    layers: 24,
    hidden: 2048,
    heads: 16,
    width: 5504,
    vocab: 304,
    dtype: Dtype::Bf16,
    stretched: false,
};

#[test]
fn an_engine_takes_what_was_estimated() {
    let Some(device) = gpu() else { return };
    check_estimates(&device, &Folder::new("estimate", &SHAPE));
}

#[test]
fn a_quantised_engine_takes_what_was_estimated() {
    let Some(device) = gpu() else { return };
    let shape = Shape { dtype: Dtype::F16, ..SHAPE };
    for (bits, size) in [(Bits::Four, 128), (Bits::Eight, 32)] {
        let format = Format { bits, size, symmetric: true, act_order: false, biased: false };
        let folder = Folder::new("estimate-gptq", &shape);
        write_json(folder.path(), &quantised_config(&shape, &format));
        check_estimates(&device, &folder);
    }
}

fn check_estimates(device: &Device, folder: &Folder) {
    let host = HostContext::new();
    for (kv_cache_tokens, max_batch_sequences, embedding) in
        [(16384, 64, "device"), (8192, 8, "host")]
    {
        let options = EngineOptions {
            kv_cache_tokens,
            max_batch_sequences,
            embedding: embedding.to_string(),
            max_context_tokens: 8192,
            ..options()
        };
        // Asked inside a context like the engine's, which is not part of the estimate.
        let free_bytes = free_bytes(device);
        let context_bytes = host.free_bytes() - free_bytes;
        let estimate = Engine::estimate(folder.path(), &options).expect("an estimate");
        assert!(estimate.fits && estimate.available_bytes.abs_diff(free_bytes) < 8 << 20);
        let engine = Engine::open(folder.path(), &options, None, &mut |_| true).expect("it opens");
        let at_open = free_bytes - host.free_bytes();
        reply(&engine).expect("a reply");
        let taken = (free_bytes - host.free_bytes()) as f64;
        let counted =
            (estimate.weight_bytes + estimate.kv_cache_bytes + estimate.workspace_bytes) as f64;
        eprintln!(
            "{options:?}\ntaken {:.1} MiB ({:.1} at open), estimated {:.1}: weights {:.1}, cache \
             {:.1}, workspace {:.1}; beside them a context, {:.1} MiB",
            taken / MIB,
            at_open as f64 / MIB,
            counted / MIB,
            estimate.weight_bytes as f64 / MIB,
            estimate.kv_cache_bytes as f64 / MIB,
            estimate.workspace_bytes as f64 / MIB,
            context_bytes as f64 / MIB,
        );
        let off = (counted - taken) / taken;
        assert!(off.abs() < 0.02, "{counted} bytes estimated, {taken} taken: {off:+.4}");
    }
}
