//! Load: far more requests than pages, cancels at any moment, for long. Nothing is lost, nothing stays.

use std::time::Duration;

use qwen::engine::{Engine, FinishReason, GenerationParams, Request};
use qwen::error::Error;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

/// Prompts of which many begin alike: a few system messages, then what is each one's own.
fn family_prompt(dice: &mut Dice, seed: u64) -> Vec<u32> {
    let shared = prompt(dice.roll(4) as u64, 16 * (1 + dice.roll(6)));
    [shared, prompt(1000 + seed, 1 + dice.roll(40))].concat()
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = status.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4096
}

fn assert_at_rest(engine: &Engine) {
    for gauge in ["pages_used", "requests_running", "requests_waiting", "requests_preempted"] {
        assert_eq!(metric(engine, gauge), 0, "{gauge}");
    }
}

#[test]
fn a_pool_of_a_tenth_of_the_demand_changes_no_reply() {
    for (seed, mut lab) in labs().into_iter().enumerate() {
        let mut dice = Dice(seed as u64);
        let jobs: Vec<_> =
            (0..60).map(|n| (family_prompt(&mut dice, n), 20 + dice.roll(60))).collect();
        let demand: usize = jobs.iter().map(|(ids, reply)| (ids.len() + reply).div_ceil(16)).sum();
        lab.num_pages = demand / 10;
        lab.options.prefill_chunk_tokens = 64;
        let (engine, _) = lab.start();
        let submit = |(ids, reply): &(Vec<u32>, usize)| {
            engine.submit_tokens(ids.clone(), &endless(*reply), None).expect("accepted")
        };
        let requests: Vec<Request> = jobs.iter().map(submit).collect();
        for (request, (ids, reply)) in requests.iter().zip(&jobs) {
            assert_expected(&read(request), ids, &endless(*reply));
        }
        for counter in ["preemptions", "prefix_hit_tokens", "prefix_evictions"] {
            assert!(metric(&engine, counter) > 0, "{counter}");
        }
        assert_at_rest(&engine);
    }
}

/// Some requests at once, most of them ended by their owners at a random moment.
fn a_wave(engine: &Engine, dice: &mut Dice, first: u64) {
    let submit = |n: u64| {
        let ids = family_prompt(dice, n);
        let params = endless(1 + dice.roll(60));
        let request = engine.submit_tokens(ids.clone(), &params, None).expect("accepted");
        (request, ids, params)
    };
    let requests: Vec<_> = (first..first + 50).map(submit).collect();
    let mut kept = Vec::new();
    for (request, ids, params) in requests {
        std::thread::sleep(Duration::from_micros(dice.roll(100) as u64));
        match dice.roll(4) {
            0 => {}
            1 => {
                drop(request);
                continue;
            }
            choice => request.cancel(choice == 2),
        }
        kept.push((request, ids, params));
    }
    for (request, ids, params) in kept {
        let told = read(&request);
        assert!([None, Some(Error::Cancelled)].contains(&told.last.error), "{:?}", told.last);
        // What came before the end is what would have come.
        let whole = expected(&ids, &params).0;
        assert_eq!(told.ids, whole[..told.ids.len()]);
        assert!(told.ids == whole || told.last.finish != Some(FinishReason::Length));
    }
}

/// In a process of its own: other tests' memory would be counted as well.
#[test]
fn ten_thousand_requests_with_random_cancels_leave_nothing_behind() {
    const ALONE: &str = "QWEN_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "soak::ten_thousand_requests_with_random_cancels_leave_nothing_behind";
        let program = std::env::current_exe().expect("this program");
        let mut again = std::process::Command::new(program);
        let output = again.args(["--exact", name]).env(ALONE, "1").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    for mut lab in labs() {
        lab.num_pages = 150;
        lab.options.prefill_chunk_tokens = 64;
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_micros(100));
        let mut dice = Dice(5);
        let mut early = 0;
        for wave in 0..100 {
            a_wave(&engine, &mut dice, wave * 50);
            if wave == 20 {
                early = resident_bytes();
            }
        }
        wait_until(|| metric(&engine, "requests_submitted") == 5000);
        let ended = ["requests_finished", "requests_cancelled", "requests_failed"];
        let num_ended = || ended.iter().map(|name| metric(&engine, name)).sum::<u64>();
        wait_until(|| num_ended() == 5000);
        assert_at_rest(&engine);
        assert_eq!(metric(&engine, "requests_failed"), 0);
        assert!(metric(&engine, "requests_cancelled") > 1000);
        // A kilobyte that each request of the last 79 waves left behind would be as much.
        let late = resident_bytes();
        assert!(late < early + (4 << 20), "{early} bytes became {late}");
    }
}
