//! Who has to give its pages back: nobody does in vain, where pages are shared.

use qwen::engine::{Engine, GenerationParams, Request};

use crate::fake::*;

fn of_priority(priority: i32, max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, priority, ..greedy(max_tokens) }
}

/// `shared` tokens that all have in common, and then `own` that differ.
fn with_system(shared: usize, own: usize, seed: u64) -> Vec<u32> {
    [prompt(77, shared), prompt(1000 + seed, own)].concat()
}

fn ask(engine: &Engine, prompt: &[u32], params: &GenerationParams) -> Request {
    engine.submit_tokens(prompt.to_vec(), params, None).expect("accepted")
}

/// Pages of the pool, and three requests: two that run, and a third that comes when the second has begun
/// to draw and cannot be admitted. Nobody steps back for it.
fn nobody_steps_back(num_pages: usize, jobs: [(Vec<u32>, GenerationParams); 3]) {
    for lab in labs() {
        let (engine, control) = Lab { num_pages, ..lab }.start();
        control.hold();
        let [first, second, third] = &jobs;
        let running = [ask(&engine, &first.0, &first.1), ask(&engine, &second.0, &second.1)];
        control.wait_for_step(1);
        control.allow(8);
        control.wait_for_step(9);
        assert_eq!(metric(&engine, "requests_running"), 2);
        let late = ask(&engine, &third.0, &third.1);
        control.release();
        for (request, (prompt, params)) in running.iter().chain([&late]).zip(&jobs) {
            assert_expected(&read(request), prompt, params);
        }
        assert_eq!(metric(&engine, "preemptions"), 0, "displaced in vain");
    }
}

#[test]
fn a_higher_priority_displaces_nobody_for_pages_that_another_one_shares() {
    // Of 60 pages the two hold 25 together and two each. The third wants 35 and one to grow into; the
    // second has 27, but only two of them would come back.
    let (high, low) = (of_priority(1, 40), of_priority(0, 30));
    nobody_steps_back(
        60,
        [
            (with_system(400, 10, 0), high.clone()),
            (with_system(400, 10, 1), low),
            (prompt(3, 555), high),
        ],
    );
}

#[test]
fn a_higher_priority_displaces_nobody_for_pages_that_it_would_share() {
    // The first holds 20 pages, the second 27. The third wants 51, 25 of them the second's: 13 are free,
    // and without the second there were 40 for all 51.
    let (high, low) = (of_priority(1, 15), of_priority(0, 30));
    nobody_steps_back(
        60,
        [
            (prompt(3, 300), high.clone()),
            (with_system(400, 10, 1), low),
            (with_system(400, 405, 2), high),
        ],
    );
}
