//! Cancelling: seen within one step, pages back, nobody else disturbed.

use std::time::{Duration, Instant};

use qwen::engine::{EventKind, FinishReason, GenerationParams};
use qwen::error::Error;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

#[test]
fn a_cancel_is_seen_within_one_step_of_a_long_prefill() {
    for keep in [false, true] {
        for step in [1, 2, 17, 60] {
            let mut lab = lab();
            lab.options.prefill_chunk_tokens = 16;
            let (engine, control) = lab.start();
            control.hold();
            let request = engine.submit_tokens(prompt(1, 1000), &greedy(10), None).expect("ok");
            control.allow(step - 1);
            control.wait_for_step(step);
            request.cancel(keep);
            control.allow(1);
            let told = read(&request);
            let error = (!keep).then_some(Error::Cancelled);
            assert_eq!((told.last.error, told.last.finish.is_some()), (error, keep));
            assert_eq!(control.steps(), step, "steps after the cancel");
            assert_eq!(metric(&engine, "pages_used"), 0);
            assert_eq!(metric(&engine, "requests_cancelled"), 1);
        }
    }
}

#[test]
fn cancelled_neighbours_leave_no_trace() {
    let mut dice = Dice(77);
    for round in 0..20 {
        let mut lab = Lab { draws: round % 2 == 1, ..lab() };
        lab.options.prefill_chunk_tokens = 32;
        lab.num_pages = 100;
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_micros(100));
        let steady = prompt(round, 100);
        let params = endless(60);
        let kept = engine.submit_tokens(steady.clone(), &params, None).expect("accepted");
        // They go on until the context is full: none ends before it is cancelled.
        let long = endless(7000);
        let submit = |n: u64| engine.submit_tokens(prompt(round + n, 700), &long, None);
        let others: Vec<_> = (1..5).map(|n| submit(n).expect("accepted")).collect();
        for other in others {
            std::thread::sleep(Duration::from_micros(dice.roll(4000) as u64));
            match dice.roll(3) {
                0 => drop(other),
                choice => {
                    other.cancel(choice == 1);
                    let told = read(&other);
                    assert_eq!(told.last.kind == EventKind::Finished, choice == 1);
                }
            }
        }
        assert_expected(&read(&kept), &steady, &params);
        wait_until(|| metric(&engine, "requests_cancelled") == 4);
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn a_waiting_request_can_be_cancelled_before_it_starts() {
    let mut lab = lab();
    lab.options.max_batch_sequences = 1;
    let (engine, control) = lab.start();
    control.hold();
    let first = engine.submit_tokens(prompt(1, 10), &endless(3), None).expect("accepted");
    control.wait_for_step(1);
    let second = engine.submit_tokens(prompt(2, 10), &endless(3), None).expect("accepted");
    second.cancel(true);
    second.cancel(false); // The first wish stands.
    control.release();
    let told = read(&second);
    assert_eq!((told.started, told.last.finish), (false, Some(FinishReason::Cancelled)));
    assert_eq!(told.last.usage.completion_tokens, 0);
    assert_eq!(read(&first).ids.len(), 3);
}

#[test]
fn a_kept_cancel_delivers_all_that_was_generated() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.hold();
        let prompt = prompt(9, 10);
        let request = engine.submit_tokens(prompt.clone(), &endless(1000), None).expect("accepted");
        control.allow(7);
        control.wait_for_step(8);
        request.cancel(true);
        control.release();
        let told = read(&request);
        // The eighth step was running and is seen to its end.
        assert_eq!(told.ids, expected(&prompt, &endless(8)).0);
        assert_eq!(told.last.finish, Some(FinishReason::Cancelled));
        assert_eq!(told.last.usage.completion_tokens, 8);
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn the_last_dropped_handle_cancels_but_a_clone_keeps_it() {
    let (engine, control) = lab().start();
    control.hold();
    let request = engine.submit_tokens(prompt(1, 10), &endless(4), None).expect("accepted");
    let clone = request.clone();
    drop(request);
    control.allow(2);
    control.wait_for_step(3);
    assert_eq!(metric(&engine, "requests_cancelled"), 0);
    drop(clone);
    control.release();
    wait_until(|| metric(&engine, "requests_cancelled") == 1);
    assert_eq!(metric(&engine, "pages_used"), 0);
}

#[test]
fn a_slow_reader_stalls_nobody_and_loses_nothing() {
    let (engine, _) = lab().start();
    let (prompt, params) = (prompt(1, 10), endless(200));
    let unread = engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
    for seed in 0..10 {
        let other = engine.submit_tokens(crate::fake::prompt(seed, 10), &params, None);
        read(&other.expect("accepted"));
    }
    let told = read(&unread);
    assert_expected(&told, &prompt, &params);
    assert_eq!((told.started, told.deltas), (true, 1), "undelivered deltas coalesce");
}

#[test]
fn a_reader_can_be_impatient() {
    let (engine, control) = lab().start();
    control.hold();
    let request = engine.submit_tokens(prompt(1, 10), &endless(2), None).expect("accepted");
    assert_eq!(request.next(Some(LONG)).expect("started").kind, EventKind::Started);
    assert_eq!(request.next(Some(Duration::ZERO)), Err(Error::Timeout { timeout_ms: 0 }));
    let soon = Some(Duration::from_millis(20));
    assert_eq!(request.next(soon), Err(Error::Timeout { timeout_ms: 20 }));
    control.release();
    assert_eq!(read(&request).ids.len(), 2);
    assert_eq!(request.next(None), Err(Error::End));
}

#[test]
fn ten_thousand_requests_with_cancels_take_seconds() {
    let mut lab = lab();
    lab.num_pages = 600;
    lab.options.max_queue_requests = 10_000;
    let (engine, _) = lab.start();
    let start = Instant::now();
    let mut dice = Dice(5);
    let mut requests = Vec::new();
    for n in 0..10_000 {
        let params = endless(1 + dice.roll(8));
        let prompt = prompt(n, 1 + dice.roll(60));
        let request = engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
        match dice.roll(4) {
            0 => drop(request),
            1 => request.cancel(dice.roll(2) == 0),
            2 => requests.push((request, prompt, params, true)),
            _ => requests.push((request, prompt, params, false)),
        }
    }
    for (request, prompt, params, cancel) in &requests {
        if *cancel {
            request.cancel(true);
        } else {
            assert_expected(&read(request), prompt, params);
        }
    }
    let ended = ["requests_finished", "requests_cancelled"];
    wait_until(|| ended.iter().map(|name| metric(&engine, name)).sum::<u64>() == 10_000);
    assert_eq!(metric(&engine, "pages_used"), 0);
    println!("10,000 requests in {:.2} s", start.elapsed().as_secs_f64());
    assert!(start.elapsed() < Duration::from_secs(60));
}
