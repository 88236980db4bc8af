//! Who goes first, and who has no more time: priorities, deadlines, time limits of the queue.

use std::time::{Duration, Instant};

use qwen::engine::{Engine, GenerationParams, Request};
use qwen::error::Error;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

fn submit(engine: &Engine, seed: u64, params: &GenerationParams) -> Request {
    engine.submit_tokens(prompt(seed, 20), params, None).expect("accepted")
}

#[test]
fn a_higher_priority_goes_first_and_the_lower_one_resumes_as_if_nothing_was() {
    for lab in labs() {
        let mut lab = lab;
        lab.options.max_batch_sequences = 1;
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_micros(200));
        let low = submit(&engine, 1, &endless(300));
        wait_until(|| metric(&engine, "generated_tokens") > 5);
        let second = submit(&engine, 2, &endless(5));
        let high = submit(&engine, 3, &GenerationParams { priority: 2, ..endless(10) });
        assert_expected(&read(&high), &prompt(3, 20), &endless(10));
        assert_eq!(metric(&engine, "preemptions"), 1);
        assert_eq!(metric(&engine, "requests_finished"), 1, "nobody of a lower priority ended");
        assert_expected(&read(&low), &prompt(1, 20), &endless(300));
        assert_expected(&read(&second), &prompt(2, 20), &endless(5));
        assert_eq!((metric(&engine, "preemptions"), metric(&engine, "pages_used")), (1, 0));
    }
}

#[test]
fn a_deadline_ends_a_reply_with_what_there_is() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_millis(1));
        let other = submit(&engine, 1, &endless(150));
        let start = Instant::now();
        let late = submit(&engine, 2, &GenerationParams { deadline_ms: 50, ..endless(8000) });
        let told = read(&late);
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!(told.last.error, Some(Error::Deadline { deadline_ms: 50 }));
        let whole = told.ids.len();
        assert!((1..=50).contains(&whole), "{whole} tokens of 1 ms");
        assert_eq!(told.last.usage.completion_tokens as usize, whole);
        assert_expected(&read(&other), &prompt(1, 20), &endless(150));
        assert_eq!(metric(&engine, "pages_used"), 0);
        // In time, nothing is different.
        let params =
            GenerationParams { deadline_ms: 60_000, queue_timeout_ms: 60_000, ..endless(9) };
        assert_expected(&read(&submit(&engine, 3, &params)), &prompt(3, 20), &params);
    }
}

#[test]
fn a_request_that_waits_for_too_long_ends_and_one_that_began_does_not() {
    let mut lab = lab();
    lab.options.max_batch_sequences = 1;
    let (engine, control) = lab.start();
    control.slow_down(Duration::from_millis(1));
    let patient = GenerationParams { queue_timeout_ms: 30, ..endless(100) };
    let first = submit(&engine, 1, &patient);
    let waits = submit(&engine, 2, &patient);
    let due = submit(&engine, 3, &GenerationParams { deadline_ms: 20, ..endless(5) });
    let ends = [&waits, &due].map(read);
    assert_eq!(ends[0].last.error, Some(Error::Timeout { timeout_ms: 30 }));
    assert_eq!(ends[1].last.error, Some(Error::Deadline { deadline_ms: 20 }));
    assert!(ends.iter().all(|told| !told.started && told.ids.is_empty()));
    assert_expected(&read(&first), &prompt(1, 20), &patient);
    assert_eq!((metric(&engine, "requests_failed"), metric(&engine, "requests_waiting")), (2, 0));
}
