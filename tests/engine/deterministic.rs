//! `deterministic` where numbers depend on the steps that compute them: the fake's logits then hash the
//! shape of every step that computed a part of their context. Who gets the same tokens anyway was
//! computed in the same steps.

use qwen::engine::{Engine, EngineOptions, GenerationParams};

use crate::fake::*;

/// Prompts of one to several chunks, some that begin alike, and what is wanted of each.
fn jobs() -> Vec<(Vec<u32>, GenerationParams)> {
    let mut dice = Dice(5);
    let job = |index: usize| {
        let mut params = GenerationParams { ignore_eos: true, ..greedy(5 + dice.roll(20)) };
        params.priority = dice.roll(3) as i32;
        if index % 2 == 1 {
            (params.sampling.temperature, params.sampling.seed) = (0.9, index as u64);
        }
        if index.is_multiple_of(4) {
            params.logprobs = true;
            params.echo = index.is_multiple_of(8);
        }
        let shared = if index.is_multiple_of(3) { prompt(77, 100) } else { Vec::new() };
        ([shared, prompt(index as u64, 1 + dice.roll(150))].concat(), params)
    };
    (0..24).map(job).collect()
}

fn open(draws: bool, deterministic: bool) -> Engine {
    // Room for about two at a time.
    let mut lab = Lab { draws, varies: true, num_pages: 40, ..lab() };
    lab.options = EngineOptions {
        deterministic,
        prefill_chunk_tokens: 48,
        max_batch_sequences: 8,
        ..lab.options
    };
    let (engine, control) = lab.start();
    control.slow_down(std::time::Duration::from_micros(30));
    engine
}

fn ask(engine: &Engine, (prompt, params): &(Vec<u32>, GenerationParams)) -> qwen::engine::Request {
    engine.submit_tokens(prompt.clone(), params, None).expect("accepted")
}

/// Ids and log-probabilities, to the bit.
fn told(request: &qwen::engine::Request) -> (Vec<u32>, Vec<u64>) {
    let mut told = (Vec::new(), Vec::new());
    loop {
        let event = request.next(Some(LONG)).expect("an event");
        assert_eq!(event.error, None);
        told.0.extend(&event.token_ids);
        told.1.extend(event.logprobs.iter().map(|logprobs| logprobs.token.logprob.to_bits()));
        if event.finish.is_some() {
            return told;
        }
    }
}

/// All jobs in an order of its own, some at the same moment, beside others that are given up.
fn told_together(engine: &Engine, seed: u64) -> Vec<(Vec<u32>, Vec<u64>)> {
    let jobs = jobs();
    let mut dice = Dice(seed);
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    (0..order.len()).for_each(|at| order.swap(at, dice.roll(jobs.len())));
    let mut requests = Vec::new();
    for index in order {
        requests.push((index, ask(engine, &jobs[index])));
        let given_up = ask(engine, &jobs[dice.roll(jobs.len())]);
        std::thread::sleep(std::time::Duration::from_micros(dice.roll(400) as u64));
        drop(given_up);
    }
    requests.sort_by_key(|(index, _)| *index);
    requests.iter().map(|(_, request)| told(request)).collect()
}

#[test]
fn with_it_a_reply_depends_on_nothing_else_where_numbers_depend_on_the_step() {
    for draws in [false, true] {
        let alone: Vec<_> = jobs().iter().map(|job| told(&ask(&open(draws, true), job))).collect();
        let engine = open(draws, true);
        for seed in 0..4 {
            assert!(told_together(&engine, seed) == alone, "draws: {draws}, seed {seed}");
        }
        assert_eq!((metric(&engine, "preemptions"), metric(&engine, "prefix_hit_tokens")), (0, 0));
        assert_eq!(metric(&engine, "pages_used"), 0);
        // And without it they do depend on it, or nothing was shown.
        assert!(told_together(&open(draws, false), 0) != alone, "draws: {draws}");
    }
}

#[test]
fn it_changes_nothing_where_numbers_do_not_depend_on_the_step() {
    for deterministic in [false, true] {
        for varies in [false, true] {
            let mut lab = Lab { varies, ..lab() };
            lab.options.deterministic = deterministic;
            let (engine, _) = lab.start();
            let info = engine.info();
            let is_alone = varies && deterministic;
            assert_eq!(info["deterministic"], deterministic);
            assert_eq!(info["max_batch_sequences"], if is_alone { 1 } else { 64 });
            assert_eq!(info["prefix_cache"], !is_alone);
        }
    }
}

#[test]
fn an_echo_is_measured_as_fast_with_it() {
    let steps = [false, true].map(|deterministic| {
        let mut lab = Lab { varies: true, ..lab() };
        lab.options.deterministic = deterministic;
        let (engine, control) = lab.start();
        let mut params = greedy(1);
        (params.echo, params.logprobs) = (true, true);
        read(&engine.submit_tokens(prompt(1, 300), &params, None).expect("accepted"));
        control.steps()
    });
    assert_eq!(steps[0], steps[1]);
}
