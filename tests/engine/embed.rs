//! Embeddings: the states of a prompt, however its computation was cut.

use std::time::Duration;

use qwen::engine::{Engine, GenerationParams, Pooling, Shutdown};
use qwen::error::Error;

use crate::fake::*;

const POOLINGS: [Pooling; 3] = [Pooling::Last, Pooling::Mean, Pooling::None];

/// By the definition.
fn wanted(ids: &[u32], pooling: Pooling) -> Vec<f32> {
    let states: Vec<Vec<f32>> =
        (1..=ids.len()).map(|end| state_after(&ids[..end], ids.len())).collect();
    match pooling {
        Pooling::Last => states[ids.len() - 1].clone(),
        Pooling::None => states.concat(),
        Pooling::Mean => (0..states[0].len())
            .map(|at| {
                let sum: f64 = states.iter().map(|state| f64::from(state[at])).sum();
                (sum / ids.len() as f64) as f32
            })
            .collect(),
    }
}

fn embed(engine: &Engine, ids: &[u32], pooling: Pooling, params: &GenerationParams) -> Vec<f32> {
    engine.embed(ids, (pooling, false), params).expect("states")
}

#[test]
fn states_are_the_models_however_the_work_is_cut() {
    for (places, chunk, draws, num_ranks) in
        [(1, 512, false, 1), (2, 7, true, 1), (5, 16, true, 2), (64, 100, false, 3)]
    {
        let mut lab = Lab { draws, num_ranks, ..lab() };
        (lab.options.max_batch_sequences, lab.options.prefill_chunk_tokens) = (places, chunk);
        let (engine, _) = lab.start();
        for (seed, len) in [(1, 1), (2, 16), (3, 17), (4, 250)] {
            let ids = prompt(seed, len);
            for pooling in POOLINGS {
                let states = embed(&engine, &ids, pooling, &greedy(1));
                assert_eq!(states, wanted(&ids, pooling), "{len} tokens, {pooling:?}");
            }
        }
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

/// Too few pages for all of them at once: sequences step back in the middle of their prompts.
#[test]
fn embeddings_and_replies_share_the_batch_and_change_nothing() {
    for draws in [false, true] {
        let mut lab = Lab { draws, ..lab() };
        (lab.num_pages, lab.options.prefill_chunk_tokens) = (30, 48);
        lab.options.max_batch_sequences = 8;
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_micros(100));
        std::thread::scope(|scope| {
            for seed in 0..12 {
                let engine = &engine;
                scope.spawn(move || {
                    let ids = prompt(seed, 100 + 10 * seed as usize);
                    let params = GenerationParams { priority: seed as i32 % 3, ..greedy(1) };
                    for pooling in POOLINGS {
                        let states = embed(engine, &ids, pooling, &params);
                        assert_eq!(states, wanted(&ids, pooling), "{seed} {pooling:?}");
                    }
                });
                scope.spawn(move || {
                    let params = GenerationParams { ignore_eos: true, ..greedy(100) };
                    let prompt = prompt(100 + seed, 30);
                    let request = engine.submit_tokens(prompt.clone(), &params, None);
                    assert_expected(&read(&request.expect("accepted")), &prompt, &params);
                });
            }
        });
        assert!(metric(&engine, "preemptions") > 0, "the pool was not tight");
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn states_taken_before_a_preemption_are_not_taken_again() {
    for (draws, pooling) in [(false, Pooling::Mean), (true, Pooling::None), (true, Pooling::Last)] {
        let mut lab = Lab { draws, ..lab() };
        (lab.options.max_batch_sequences, lab.options.prefill_chunk_tokens) = (1, 16);
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_millis(1));
        let ids = prompt(1, 1000);
        std::thread::scope(|scope| {
            let low = scope.spawn(|| embed(&engine, &ids, pooling, &greedy(1)));
            wait_until(|| metric(&engine, "computed_tokens") > 100);
            let params = GenerationParams { priority: 1, ignore_eos: true, ..greedy(5) };
            let high = engine.submit_tokens(prompt(2, 20), &params, None).expect("accepted");
            assert_expected(&read(&high), &prompt(2, 20), &params);
            assert_eq!(low.join().expect("states"), wanted(&ids, pooling), "{pooling:?}");
        });
        assert_eq!(metric(&engine, "preemptions"), 1);
    }
}

#[test]
fn the_last_state_takes_a_known_prefix_from_the_cache_and_the_mean_computes_all() {
    let (engine, _) = lab().start();
    let ids = prompt(1, 200);
    let computed = |pooling, params: &GenerationParams| {
        let before = metric(&engine, "computed_tokens");
        assert_eq!(embed(&engine, &ids, pooling, params), wanted(&ids, pooling));
        metric(&engine, "computed_tokens") - before
    };
    assert_eq!(computed(Pooling::Last, &greedy(1)), 200);
    assert_eq!(computed(Pooling::Last, &greedy(1)), 8);
    assert_eq!(computed(Pooling::Last, &GenerationParams { cache: false, ..greedy(1) }), 200);
    assert_eq!(computed(Pooling::Mean, &greedy(1)), 200);
}

#[test]
fn rows_are_scaled_to_length_one_where_that_is_wanted() {
    let (engine, _) = lab().start();
    let ids = prompt(1, 20);
    let plain = embed(&engine, &ids, Pooling::None, &greedy(1));
    let scaled = engine.embed(&ids, (Pooling::None, true), &greedy(1)).expect("states");
    for (plain, scaled) in plain.chunks(8).zip(scaled.chunks(8)) {
        let length = plain.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for (x, y) in plain.iter().zip(scaled) {
            // One rounding to f32 of a number of at most 1.
            assert!((f64::from(*x) / length - f64::from(*y)).abs() <= 2f64.powi(-24));
        }
    }
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let mut lab = lab();
    (lab.options.max_context_tokens, lab.options.prefill_chunk_tokens) = (64, 16);
    let (engine, control) = lab.start();
    let fails = |ids: &[u32], params: &GenerationParams| {
        engine.embed(ids, (Pooling::Mean, false), params).expect_err("refused")
    };
    assert!(matches!(fails(&[], &greedy(1)), Error::Argument { .. }));
    assert!(matches!(fails(&[999], &greedy(1)), Error::Argument { .. }));
    assert!(matches!(fails(&prompt(1, 64), &greedy(1)), Error::ContextFull { .. }));
    assert!(matches!(fails(&[20, POISON, 30], &greedy(1)), Error::NotFinite { .. }));
    control.slow_down(Duration::from_millis(30));
    let late = GenerationParams { deadline_ms: 1, ..greedy(1) };
    assert_eq!(fails(&prompt(1, 60), &late), Error::Deadline { deadline_ms: 1 });
    engine.shutdown(Shutdown::Drain, LONG).expect("a shutdown");
    assert!(matches!(fails(&[1], &greedy(1)), Error::Closed { .. }));
}
