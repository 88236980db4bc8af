//! On the CPU a request's tokens and log-probabilities are the same to the bit whatever else runs: at any
//! number of requests, in any order of arrival, beside some that are given up, in a pool too small for
//! all, with the prefix cache and without it, wherever prompts are cut. With `deterministic` and without.
//!
//! What each is compared with ran alone, in an engine that keeps nothing.
#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Random;
use qwen::engine::{Engine, EngineOptions, GenerationParams, Request};

/// How an engine is opened, besides the checkpoint.
#[derive(Debug, Clone, Copy)]
struct Setting {
    kv_cache_tokens: usize,
    prefill_chunk_tokens: usize,
    prefix_cache: bool,
    tensor_parallel: usize,
    deterministic: bool,
}

const ALONE: Setting = Setting {
    kv_cache_tokens: 8 << 10,
    prefill_chunk_tokens: 512,
    prefix_cache: false,
    tensor_parallel: 1,
    deterministic: true,
};

/// Room for all; room for a few of many, who then lose their pages; the same without the cache.
const SETTINGS: [Setting; 4] = [
    Setting { prefix_cache: true, prefill_chunk_tokens: 64, ..ALONE },
    Setting { prefix_cache: true, prefill_chunk_tokens: 24, kv_cache_tokens: 208, ..ALONE },
    Setting { prefill_chunk_tokens: 7, kv_cache_tokens: 208, ..ALONE },
    Setting { prefix_cache: true, prefill_chunk_tokens: 33, deterministic: false, ..ALONE },
];

/// Of a reply, besides four.
const MOST_TOKENS: usize = 80;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn open(folder: &Path, backend: &str, setting: Setting) -> Engine {
    let options = EngineOptions {
        backend: backend.to_string(),
        num_threads: 2,
        max_context_tokens: 256,
        max_batch_sequences: 32,
        kv_cache_tokens: setting.kv_cache_tokens,
        prefill_chunk_tokens: setting.prefill_chunk_tokens,
        prefix_cache: setting.prefix_cache,
        tensor_parallel: setting.tensor_parallel,
        deterministic: setting.deterministic,
        ..EngineOptions::default()
    };
    Engine::open(folder, &options, None, &mut |_| true).expect("it opens")
}

struct Job {
    prompt: Vec<u32>,
    params: GenerationParams,
}

/// Prompts of one to several chunks, many of them alike at the beginning; greedy and sampled.
fn jobs(engine: &Engine, count: usize, most_tokens: usize, random: &mut Random) -> Vec<Job> {
    let job = |index: usize| {
        let mut params = engine.generation_defaults();
        let sampling = &mut params.sampling;
        sampling.seed = index as u64;
        sampling.temperature = if index.is_multiple_of(2) { 0.0 } else { 1.0 };
        (sampling.top_p, sampling.repetition_penalty) = (1.0, 1.0 + 0.1 * (index % 3) as f32);
        (params.logprobs, params.top_logprobs, params.ignore_eos) = (true, 2, true);
        params.max_tokens = 4 + random.below(most_tokens);
        params.priority = random.below(2) as i32;
        let shared = if random.below(3) > 0 { 16 * random.below(4) } else { 0 };
        let shared = (0..shared).map(|at| (at * 31 % 250) as u32);
        let own = (0..1 + random.below(50)).map(|at| ((at + 3) * (index + 7) % 250) as u32);
        Job { prompt: shared.chain(own).collect(), params }
    };
    (0..count).map(job).collect()
}

fn submit(engine: &Engine, job: &Job) -> Request {
    engine.submit_tokens(job.prompt.clone(), &job.params, None).expect("accepted")
}

/// Ids, and all log-probabilities by their bits.
type Told = (Vec<u32>, Vec<u64>);

fn read(request: &Request) -> Told {
    let mut told = (Vec::new(), Vec::new());
    loop {
        let event = request.next(Some(Duration::from_secs(60))).expect("an event");
        assert_eq!(event.error, None);
        told.0.extend(&event.token_ids);
        let entries =
            event.logprobs.iter().flat_map(|token| token.top.iter().chain([&token.token]));
        told.1.extend(entries.map(|entry| entry.logprob.to_bits()));
        if event.finish.is_some() {
            return told;
        }
    }
}

/// All `jobs`, in a random order, some of them a while after others, beside some that are given up.
fn read_together(engine: &Engine, jobs: &[Job], random: &mut Random) -> Vec<Told> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    (0..order.len()).for_each(|at| order.swap(at, random.below(jobs.len())));
    let pauses = random.below(2) == 0;
    let mut requests = Vec::new();
    let mut given_up = Vec::new();
    for index in order {
        requests.push((index, submit(engine, &jobs[index])));
        match random.below(4) {
            0 => given_up.push(submit(engine, random.pick(&jobs.iter().collect::<Vec<_>>()))),
            1 => drop(given_up.pop()),
            2 if pauses => std::thread::sleep(Duration::from_micros(random.below(300) as u64)),
            _ => {}
        }
    }
    drop(given_up);
    requests.sort_by_key(|(index, _)| *index);
    requests.iter().map(|(_, request)| read(request)).collect()
}

/// Compares at the batch sizes `counts`; preemptions on the way.
fn compare(
    folder: &Path,
    backend: &str,
    counts: &[usize],
    settings: &[Setting],
    most_tokens: usize,
) -> u64 {
    let mut random = Random::from_env();
    let alone =
        open(folder, backend, Setting { tensor_parallel: settings[0].tensor_parallel, ..ALONE });
    let most = *counts.last().expect("a count");
    let jobs = jobs(&alone, most, most_tokens, &mut random);
    let expected: Vec<Told> = jobs.iter().map(|job| read(&submit(&alone, job))).collect();
    assert!(expected.iter().all(|(ids, bits)| bits.len() == 3 * ids.len()), "three for each token");
    let mut preemptions = 0;
    for setting in settings {
        let engine = open(folder, backend, *setting);
        for &count in counts {
            let found = read_together(&engine, &jobs[..count], &mut random);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{}, {backend}, {setting:?}", folder.display());
                assert!(found == expected, "{random}: job {index} of {count}, {what}");
            }
        }
        preemptions += engine.metrics()["preemptions"].as_u64().expect("a metric");
    }
    preemptions
}

#[test]
fn replies_of_plain_checkpoints_depend_on_nothing_else() {
    let names = ["plain-bf16", "logn-f16", "ntk-logn-bf16"];
    let compare =
        |name| compare(&data("tiny").join(name), "cpu", &[1, 2, 8, 32], &SETTINGS, MOST_TOKENS);
    assert!(names.map(compare).iter().sum::<u64>() > 0, "the pool was not tight");
}

#[test]
fn replies_of_quantised_checkpoints_depend_on_nothing_else() {
    let names = ["int4", "int8-v2", "int4-order", "int8-order"];
    let compare = |name| {
        compare(&data("quantised").join(name), "cpu", &[1, 2, 8, 32], &SETTINGS, MOST_TOKENS)
    };
    assert!(names.map(compare).iter().sum::<u64>() > 0, "the pool was not tight");
}

#[test]
fn replies_of_the_plain_loops_and_of_several_ranks_depend_on_nothing_else() {
    compare(&data("tiny/plain-bf16"), "cpu-reference", &[1, 8], &SETTINGS[1..2], MOST_TOKENS);
    let divided = Setting { tensor_parallel: 2, ..SETTINGS[1] };
    compare(&data("quantised/int4"), "cpu", &[2, 16], &[divided], MOST_TOKENS);
}

#[test]
fn replies_of_the_demo_model_depend_on_nothing_else() {
    for name in ["chat-model", "chat-model-int4"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(name);
        assert!(folder.join("config.json").is_file(), "no demo model: run `make fixtures`");
        compare(&folder, "cpu", &[4], &SETTINGS[1..2], 8);
    }
}
