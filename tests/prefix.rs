//! The prefix cache on real arithmetic: with it and without it a reply has the same tokens, on both CPU
//! backends, across the borders of dynamic NTK too; and a shared prompt is computed once.
//!
//! Why bits can be equal: on the CPU a row's numbers do not depend on the rows beside it, which
//! `logits::chunked_equals_unchunked` shows. The pages' bookkeeping is tested in `engine::prefix`.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::Path;

use qwen::engine::{Engine, EngineOptions, GenerationParams, Usage};

const BACKENDS: [&str; 2] = ["cpu", "cpu-reference"];

fn open(name: &str, backend: &str, prefix_cache: bool) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name);
    let options = EngineOptions {
        backend: backend.to_string(),
        num_threads: 1,
        max_context_tokens: 2200,
        kv_cache_tokens: 16 << 10,
        prefill_chunk_tokens: 300,
        prefix_cache,
        ..EngineOptions::default()
    };
    Engine::open(&folder, &options, None, &mut |_| true).expect("it opens")
}

/// Draws from what the model says: a token is another one soon after a number is.
fn params(engine: &Engine, seed: u64) -> GenerationParams {
    let mut params = engine.generation_defaults();
    (params.sampling.temperature, params.sampling.top_p) = (1.0, 1.0);
    (params.sampling.seed, params.max_tokens, params.ignore_eos) = (seed, 24, true);
    params
}

/// `shared` tokens that all prompts begin with, then `own` that differ.
fn prompt(shared: usize, own: usize, seed: usize) -> Vec<u32> {
    let shared = (0..shared).map(|at| (at * 31 % 250) as u32);
    shared.chain((0..own).map(|at| ((at + 3) * (seed + 7) % 250) as u32)).collect()
}

/// Ids and usage of the replies to `prompts`, all asked at once.
fn ask(engine: &Engine, prompts: &[Vec<u32>]) -> Vec<(Vec<u32>, Usage)> {
    let submit = |(seed, ids): (usize, &Vec<u32>)| {
        engine.submit_tokens(ids.clone(), &params(engine, seed as u64), None).expect("accepted")
    };
    let requests: Vec<_> = prompts.iter().enumerate().map(submit).collect();
    let read = |request: qwen::engine::Request| {
        let mut ids = Vec::new();
        loop {
            let event = request.next(None).expect("an event");
            ids.extend(&event.token_ids);
            assert_eq!(event.error, None);
            if event.finish.is_some() {
                return (ids, event.usage);
            }
        }
    };
    requests.into_iter().map(read).collect()
}

fn metric(engine: &Engine, name: &str) -> u64 {
    engine.metrics()[name].as_u64().expect("a metric")
}

#[test]
fn a_system_prompt_of_2000_tokens_is_computed_once_for_32_requests() {
    let engine = open("plain-bf16", "cpu", true);
    let prompts: Vec<_> = (0..32).map(|seed| prompt(2000, 30, seed)).collect();
    let replies = ask(&engine, &prompts);
    assert_eq!(metric(&engine, "computed_tokens"), 2000 + 32 * (30 + 23));
    assert_eq!(metric(&engine, "prefix_hit_tokens"), 31 * 2000);
    let cached: Vec<u64> = replies.iter().map(|(_, usage)| usage.cached_tokens).collect();
    assert_eq!(cached, [vec![0], vec![2000; 31]].concat());
    assert_eq!(metric(&engine, "pages_used"), 0);
    let without = open("plain-bf16", "cpu", false);
    let ids = |replies: Vec<(Vec<u32>, Usage)>| replies.into_iter().map(|(ids, _)| ids);
    assert!(ids(replies).eq(ids(ask(&without, &prompts))));
    assert_eq!(metric(&without, "computed_tokens"), 32 * (2030 + 23));
}

#[test]
fn replies_over_the_cache_are_the_same_across_ntk_borders() {
    // Trained for 16 tokens: the factor changes above 512 and above 1,024.
    let lengths = [500, 510, 516, 600, 1000, 1023, 1030, 1100];
    for (name, backend) in ["ntk-logn-f32", "ntk-bf16", "logn-f16"]
        .iter()
        .flat_map(|name| BACKENDS.iter().map(move |backend| (*name, *backend)))
    {
        let (with, without) = (open(name, backend, true), open(name, backend, false));
        for (index, length) in lengths.iter().enumerate() {
            let prompts = [prompt(length - 5, 5, index)];
            let (reply, usage) = ask(&with, &prompts).remove(0);
            assert_eq!(reply, ask(&without, &prompts).remove(0).0, "{name} {backend} {length}");
            // The first of each factor finds nothing; where there is no NTK, only the first of all.
            let is_first = match name {
                "logn-f16" => index == 0,
                _ => [0, 2, 6].contains(&index),
            };
            assert_eq!(usage.cached_tokens == 0, is_first, "{name} {backend} {length}");
        }
    }
}
