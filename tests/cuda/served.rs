//! What the engine does with a GPU beside plain replies: logits that are drawn from on the host, formats,
//! the prefix cache, scores, several choices.

use std::time::Duration;

use qwen::engine::{Engine, EngineOptions, Event, GenerationParams, Pooling, Request};
use qwen::error::Error;

use crate::checkpoint::Shape;
use crate::device::{gpu, list, several, world};
use crate::model::{allowed, errors};
use crate::opened::{DIVIDED, Folder, SMALL, options};

fn greedy(engine: &Engine, max_tokens: usize) -> GenerationParams {
    let mut params = engine.generation_defaults();
    params.sampling.temperature = 0.0;
    params.sampling.repetition_penalty = 1.0;
    (params.max_tokens, params.ignore_eos) = (max_tokens, true);
    params
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * 37 + seed * 11) % 280).collect()
}

fn submit(engine: &Engine, ids: &[u32], params: &GenerationParams) -> Request {
    engine.submit_tokens(ids.to_vec(), params, None).expect("accepted")
}

fn read(request: &Request) -> Vec<Event> {
    let next = || match request.next(Some(Duration::from_secs(60))) {
        Ok(event) => Some(event),
        Err(Error::End) => None,
        Err(error) => panic!("{error}"),
    };
    let events: Vec<Event> = std::iter::from_fn(next).collect();
    let last = events.last().expect("an end");
    assert_eq!(last.error, None);
    events
}

fn ids(events: &[Event]) -> Vec<u32> {
    events.iter().flat_map(|event| event.token_ids.clone()).collect()
}

/// Plain requests, whose tokens the GPU draws, run beside one whose logits come to the host, and after it.
#[test]
fn steps_are_drawn_on_the_host_where_logits_are_wanted() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("served-host", &SMALL);
    let engine = Engine::open(folder.path(), &options(), None, &mut |_| true).expect("it opens");
    let plain = greedy(&engine, 60);
    let told =
        GenerationParams { logprobs: true, top_logprobs: 3, max_tokens: 20, ..plain.clone() };
    let alone = read(&submit(&engine, &prompt(1, 40), &told));
    let beside: Vec<Request> =
        (2..5).map(|seed| submit(&engine, &prompt(seed, 30), &plain)).collect();
    let again = read(&submit(&engine, &prompt(1, 40), &told));
    for request in &beside {
        assert_eq!(ids(&read(request)).len(), 60);
    }
    for events in [alone, again] {
        let logprobs: Vec<_> = events.iter().flat_map(|event| event.logprobs.clone()).collect();
        assert_eq!((ids(&events).len(), logprobs.len()), (20, 20));
        for (id, told) in ids(&events).into_iter().zip(logprobs) {
            // Greedy: what was drawn is the likeliest.
            assert_eq!((told.token.id, told.top[0].id, told.top.len()), (id, id, 3));
            assert!(told.token.logprob < 0.0 && told.token.logprob >= told.top[1].logprob);
        }
    }
}

#[test]
fn a_prompt_is_computed_once_and_choices_share_it() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("served-prefix", &SMALL);
    let engine = Engine::open(folder.path(), &options(), None, &mut |_| true).expect("it opens");
    let params = GenerationParams { n: 3, ..greedy(&engine, 8) };
    let events = read(&submit(&engine, &prompt(1, 200), &params));
    let mut told: Vec<Vec<u32>> = vec![Vec::new(); 3];
    for event in &events {
        told[event.choice as usize].extend(&event.token_ids);
    }
    assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8]);
    let again = read(&submit(&engine, &prompt(1, 200), &greedy(&engine, 8)));
    assert_eq!(again.last().expect("an end").usage.cached_tokens, 192);
    assert_eq!(engine.metrics()["pages_used"], 0);
}

#[test]
fn scores_are_log_likelihoods() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("served-score", &SMALL);
    let engine = Engine::open(folder.path(), &options(), None, &mut |_| true).expect("it opens");
    let (context, continuation) = (prompt(1, 50), prompt(2, 90));
    let params = greedy(&engine, 1);
    let whole = engine.score(&context, &continuation, &params).expect("a score");
    assert_eq!(whole.tokens.len(), 90);
    // The same of the CPU, whose random weights are the same: within the rounding of bf16.
    let on_cpu = qwen::engine::EngineOptions { backend: "cpu".to_string(), ..options() };
    let cpu = Engine::open(folder.path(), &on_cpu, None, &mut |_| true).expect("it opens");
    let wanted = cpu.score(&context, &continuation, &params).expect("a score");
    for (token, want) in whole.tokens.iter().zip(&wanted.tokens) {
        let off = (token.logprobs.token.logprob - want.logprobs.token.logprob).abs();
        assert!(off < 0.2, "{off}: {token:?} {want:?}");
    }
}

/// Hidden states of the GPU are those of the CPU, whose random weights are the same if its ranks have the
/// same parts of them, as near as logits must be (`model`): they lack the last product, and are rounded once more, to bf16. Prompts of more rows than
/// a step has and of one token (as long as a step of a recorded graph), beside replies and alone.
fn states_agree_with_the_cpus(
    (name, shape): (&str, &Shape),
    on_gpu: EngineOptions,
    tensor_parallel: usize,
) {
    let folder = Folder::new(name, shape);
    let open = |options: &EngineOptions| {
        Engine::open(folder.path(), options, None, &mut |_| true).expect("it opens")
    };
    let on_gpu = EngineOptions { prefill_chunk_tokens: 192, ..on_gpu };
    let on_cpu = EngineOptions { backend: "cpu".to_string(), tensor_parallel, ..options() };
    let (engine, cpu) = (open(&on_gpu), open(&on_cpu));
    let roundings = 8.0 * shape.layers as f64;
    let allowed = allowed(shape) * ((roundings + 1.0) / roundings).sqrt();
    for is_alone in [true, false] {
        let replies: Vec<Request> = (if is_alone { 0..0 } else { 7..10 })
            .map(|seed| submit(&engine, &prompt(seed, 30), &greedy(&engine, 300)))
            .collect();
        for len in [1, 2, 40, 192, 300] {
            let ids = prompt(len, len);
            for pooling in [Pooling::None, Pooling::Mean, Pooling::Last] {
                let params = GenerationParams { cache: false, ..greedy(&engine, 1) };
                let got = engine.embed(&ids, (pooling, false), &params).expect("states");
                let want = cpu.embed(&ids, (pooling, false), &params).expect("states");
                let (rms, largest) = errors(&got, &want);
                eprintln!("{name} {len} {pooling:?}: rms {rms:.2e} largest {largest:.2e}");
                assert!(rms < allowed, "{name} {len} {pooling:?}: {rms} of {allowed}");
                assert!(largest < 8.0 * allowed, "{name} {len} {pooling:?}: {largest}");
            }
        }
        for request in &replies {
            assert_eq!(ids(&read(request)).len(), 300);
        }
    }
}

#[test]
fn hidden_states_are_the_cpus() {
    let Some(_) = gpu() else { return };
    states_agree_with_the_cpus(("served-states", &SMALL), options(), 1);
}

#[test]
fn hidden_states_of_several_devices_are_the_cpus() {
    let Some(_) = several() else { return };
    for (split, tensor_parallel) in [("tensors", world()), ("layers", 1)] {
        let devices = list(world());
        let options = EngineOptions { devices, split: split.to_string(), ..options() };
        let name = format!("served-states-{split}");
        states_agree_with_the_cpus((&name, &DIVIDED), options, tensor_parallel);
    }
}

/// What a reply is, to the bit: its tokens and their log-probabilities, sampled.
fn told(request: &Request) -> Vec<(u32, u64)> {
    let events = read(request);
    let entries = events.iter().flat_map(|event| event.logprobs.iter());
    entries.map(|entry| (entry.token.id, entry.token.logprob.to_bits())).collect()
}

/// With `deterministic`, replies that run alone are those that run beside others which come before, with
/// and after them, are cancelled, and begin alike; on one device, several, and in a second engine.
#[test]
fn deterministic_replies_are_the_same_beside_others() {
    let Some(_) = gpu() else { return };
    let folder = Folder::new("served-deterministic", &DIVIDED);
    let mut places = vec![options()];
    if world() > 1 && several().is_some() {
        places.push(EngineOptions { devices: list(world()), ..options() });
    }
    for options in places {
        let options = EngineOptions { deterministic: true, ..options };
        let open = || Engine::open(folder.path(), &options, None, &mut |_| true).expect("it opens");
        let engine = open();
        let sampled = |seed: u32| {
            let mut params = greedy(&engine, 30 + seed as usize % 3);
            (params.logprobs, params.sampling.temperature) = (true, 1.0);
            (params.sampling.top_p, params.sampling.seed) = (0.9, u64::from(seed));
            params
        };
        let begin = |engine: &Engine, seed: u32| {
            submit(engine, &prompt(seed / 2, 20 + 17 * seed), &sampled(seed))
        };
        let alone: Vec<_> = (0..12).map(|seed| told(&begin(&engine, seed))).collect();
        for engine in [&engine, &open()] {
            let mut given_up = Vec::new();
            let start = |seed: u32| {
                given_up.push(begin(engine, 11 - seed));
                if seed.is_multiple_of(3) {
                    given_up.pop().expect("just begun").cancel(false);
                }
                std::thread::sleep(Duration::from_micros(u64::from(seed) * 700));
                begin(engine, seed)
            };
            let together: Vec<Request> = (0..12).map(start).collect();
            for (seed, (request, want)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(&told(request), want, "request {seed}");
            }
        }
    }
}
