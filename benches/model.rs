//! Decode and prefill of a whole model on this machine's CPU beside its read bandwidth, all in one
//! run: `cargo bench --bench model`. `QWEN_BENCH_MODEL` names another checkpoint folder.
//!
//! Decode is bound by reading the weights: its figure is the bytes a token must read (all weights
//! but the embedding table, and the KV cache) over the time of a token, as a fraction of the read
//! bandwidth. Prefill is bound by arithmetic: 2 FLOPs a weight (lm_head once), plus attention.
#![allow(clippy::expect_used, clippy::print_stdout)]

#[path = "support/timed.rs"]
mod timed;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use memmap2::MmapMut;
use qwen::backend::comm::Solo;
use qwen::backend::cpu::fast::{Fast, Isa};
use qwen::batch::{Batch, PAGE_TOKENS};
use qwen::checkpoint::names::{self, QuantPart, Role};
use qwen::checkpoint::{Checkpoint, Source};
use qwen::model::config::ModelConfig;
use qwen::model::{Limits, Model, Placement, Rank};
use timed::{OPS, Timed, Times};

const PROMPT_TOKENS: usize = 512;
const DECODE_TOKENS: usize = 64;
/// Tokens decoded between two readings of the bandwidth.
const TURN_TOKENS: usize = 4;
const ROUNDS: usize = 7;

fn main() {
    let folder = std::env::var("QWEN_BENCH_MODEL").unwrap_or("demo/chat-model".to_string());
    let folder = PathBuf::from(folder);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let config = ModelConfig::open(&folder).expect("config.json");
    let checkpoint = Checkpoint::open_with(&folder, Source::Copy).expect("checkpoint");
    let (mut model, times) = load(&checkpoint, &config, threads);
    let mut bench = Bench::new(&checkpoint, &config);
    bench.check(model.as_mut());
    println!("{} threads, {}, {}", threads, Isa::best().name(), folder.display());
    let mut rounds: Vec<Round> =
        (0..ROUNDS).map(|_| bench.round(model.as_mut(), &times, threads)).collect();
    rounds.sort_by(|a, b| a.decode_fraction().total_cmp(&b.decode_fraction()));
    for round in &rounds {
        round.print();
    }
    print!("median: ");
    rounds[ROUNDS / 2].print();
    let best = rounds.iter().map(|r| r.prefill_gflops).fold(0.0, f64::max);
    println!("best prefill {best:.0} GFLOP/s");
    let median = &rounds[ROUNDS / 2];
    for (op, name) in OPS.iter().enumerate() {
        let (decode, prefill) = (median.decode_ops[op] * 1e6, median.prefill_ops[op] * 1e3);
        println!("{name:<14} decode {decode:7.0} us a token   prefill {prefill:6.1} ms");
    }
}

fn load(checkpoint: &Checkpoint, config: &ModelConfig, threads: usize) -> (Box<dyn Rank>, Times) {
    let (backend, times) = Timed::new(Fast::new(Arc::new(Solo), 0, threads).expect("threads"));
    let limits = Limits {
        max_tokens: PROMPT_TOKENS,
        max_logits_rows: 1,
        num_pages: (PROMPT_TOKENS + DECODE_TOKENS).div_ceil(PAGE_TOKENS),
    };
    let placement = Placement::ALONE;
    let model = Model::load(backend, checkpoint, config, placement, limits, &mut |_| true);
    (Box::new(model.expect("model")), times)
}

struct Round {
    bandwidth_gbs: f64,
    decode_tokens: f64,
    decode_gbs: f64,
    prefill_tokens: f64,
    prefill_gflops: f64,
    /// Seconds of a decode step and of the prompt by op (`timed::OPS`).
    decode_ops: [f64; OPS.len()],
    prefill_ops: [f64; OPS.len()],
}

impl Round {
    fn decode_fraction(&self) -> f64 {
        self.decode_gbs / self.bandwidth_gbs
    }

    fn print(&self) {
        println!(
            "read {:5.1} GB/s   decode {:6.1} tok/s, {:5.1} GB/s ({:3.0} %)   \
             prefill of {PROMPT_TOKENS} {:7.1} tok/s, {:5.0} GFLOP/s",
            self.bandwidth_gbs,
            self.decode_tokens,
            self.decode_gbs,
            100.0 * self.decode_fraction(),
            self.prefill_tokens,
            self.prefill_gflops,
        );
    }
}

struct Bench {
    vocab: u32,
    /// Bytes of weights that every token reads.
    token_bytes: f64,
    kv_token_bytes: f64,
    /// FLOPs of the prompt: linears, lm_head once, causal attention.
    prefill_flops: f64,
    memory: MmapMut,
}

impl Bench {
    fn new(checkpoint: &Checkpoint, config: &ModelConfig) -> Bench {
        let (dtype, rows, cols) = checkpoint.shape(names::EMBEDDING).expect("embedding");
        let table = (rows * cols * dtype.size_bytes()) as f64;
        let heads = (config.num_heads * config.head_dim) as f64;
        let hidden = config.hidden_size as f64;
        let qkv = heads + 2.0 * (config.num_kv_heads * config.head_dim) as f64;
        let layer = hidden * (qkv + heads + 3.0 * config.intermediate_size as f64);
        let tokens = PROMPT_TOKENS as f64;
        let attention = 2.0 * heads * tokens * (tokens + 1.0);
        let layers = config.num_layers as f64;
        Bench {
            vocab: rows as u32,
            token_bytes: read_bytes(checkpoint) - table,
            kv_token_bytes: layers * (qkv - heads) * dtype.size_bytes() as f64,
            prefill_flops: layers * (2.0 * layer * tokens + attention) + 2.0 * (rows * cols) as f64,
            memory: streaming_memory(),
        }
    }

    fn batch(&self, start: usize, len: usize) -> Batch {
        let pages = (PROMPT_TOKENS + DECODE_TOKENS).div_ceil(PAGE_TOKENS);
        let positions: Vec<u32> = (start as u32..(start + len) as u32).collect();
        Batch {
            token_ids: positions.iter().map(|p| (p * 7919 + 13) % (self.vocab / 2)).collect(),
            slot_mapping: positions.clone(),
            positions,
            cu_seqlens: vec![0, len as u32],
            context_lens: vec![(start + len) as u32],
            block_table: (0..pages as u32).collect(),
            max_pages: pages,
            ntk_lens: vec![PROMPT_TOKENS as u32],
            logits_rows: vec![len as u32 - 1],
            ..Batch::default()
        }
    }

    /// The same logits whole and in two chunks: a benchmark of wrong results is worth nothing.
    fn check(&self, model: &mut dyn Rank) {
        let (mut whole, mut chunked) = (Vec::new(), Vec::new());
        model.forward(&self.batch(0, 100), &mut whole).expect("step");
        model.forward(&self.batch(0, 61), &mut chunked).expect("step");
        model.forward(&self.batch(61, 39), &mut chunked).expect("step");
        assert_eq!(whole, chunked, "chunked prefill gives other logits");
    }

    /// One prompt, then decoding in turns with reading: both see the same moods of the machine.
    fn round(&mut self, model: &mut dyn Rank, times: &Times, threads: usize) -> Round {
        let mut logits = Vec::new();
        *times.lock() = Default::default();
        let start = Instant::now();
        model.forward(&self.batch(0, PROMPT_TOKENS), &mut logits).expect("step");
        let prefill = start.elapsed().as_secs_f64();
        let prefill_ops = std::mem::take(&mut *times.lock());
        let (mut decode, mut read) = (0.0, 0.0);
        for token in 0..DECODE_TOKENS {
            if token % TURN_TOKENS == 0 {
                read += self.read_seconds(threads);
            }
            let start = Instant::now();
            model.forward(&self.batch(PROMPT_TOKENS + token, 1), &mut logits).expect("step");
            decode += start.elapsed().as_secs_f64() / DECODE_TOKENS as f64;
        }
        let decode_ops = std::mem::take(&mut *times.lock()).map(|time| time / DECODE_TOKENS as f64);
        let context = (PROMPT_TOKENS + DECODE_TOKENS / 2) as f64;
        let turns = (DECODE_TOKENS / TURN_TOKENS) as f64;
        Round {
            bandwidth_gbs: turns * self.memory.len() as f64 / read / 1e9,
            decode_tokens: 1.0 / decode,
            decode_gbs: (self.token_bytes + context * self.kv_token_bytes) / decode / 1e9,
            prefill_tokens: PROMPT_TOKENS as f64 / prefill,
            prefill_gflops: self.prefill_flops / prefill / 1e9,
            decode_ops,
            prefill_ops,
        }
    }

    /// Seconds of one pass over the streaming memory on all threads, by the faster way of reading.
    fn read_seconds(&self, threads: usize) -> f64 {
        let pass = |read: fn(&[u8]) -> u64| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for part in self.memory.chunks(self.memory.len().div_ceil(threads)) {
                    scope.spawn(move || black_box(read(part)));
                }
            });
            start.elapsed().as_secs_f64()
        };
        pass(fold).min(pass(fold_ahead))
    }
}

/// Bytes of all tensors, but for those of quantised linears that loading drops: zero points that are
/// all the middle, groups in order, biases of zero.
fn read_bytes(checkpoint: &Checkpoint) -> f64 {
    let dropped = [QuantPart::Zeros, QuantPart::Groups, QuantPart::Bias].map(Role::Quantised);
    let kept = checkpoint.names().filter(|name| !dropped.contains(&names::role(name)));
    kept.map(|name| checkpoint.num_bytes(name).expect("its name") as f64).sum()
}

/// 1 GiB in huge pages, the fastest memory to stream from, filled with numbers.
fn streaming_memory() -> MmapMut {
    let mut memory = MmapMut::map_anon(1 << 30).expect("memory");
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    for (index, word) in memory.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&index.to_le_bytes());
    }
    memory
}

/// How far ahead `fold_ahead` asks for lines: more than the hardware's own prefetchers reach.
const AHEAD_BYTES: usize = 4096;

/// The same as `fold`, asking for each line early and reading it with vectors as wide as there are.
fn fold_ahead(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the instructions are there.
        return unsafe { fold_ahead_avx512(bytes) };
    }
    fold(bytes)
}

/// # Safety
/// AVX-512 must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "newer compilers know that a prefetch is safe")]
unsafe fn fold_ahead_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let mut sums = [0_u64; 32];
    for block in bytes.chunks_exact(256) {
        for line in 0..4 {
            // SAFETY: a hint: no address is wrong for it.
            unsafe {
                let ahead = block.as_ptr().wrapping_add(AHEAD_BYTES + 64 * line);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
        }
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
            *sum ^= u64::from_le_bytes(word.try_into().expect("eight bytes"));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Exclusive or of 256-byte blocks: wide enough for the compiler to keep four vectors in flight.
fn fold(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 32];
    for block in bytes.chunks_exact(256) {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
            *sum ^= u64::from_le_bytes(word.try_into().expect("eight bytes"));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}
