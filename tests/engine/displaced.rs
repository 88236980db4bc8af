//! Who has to give its pages back, and what that costs: nobody does in vain, where pages are shared; and
//! what a long prompt has had computed is not computed again while its pages live.

use std::time::Duration;

use qwen::engine::{Engine, GenerationParams, Request};
use qwen::error::Error;

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

/// The first needs a page, and the last has only pages that the one between has found. What these are worth
/// is known when they are back: the plan is made again.
#[test]
fn a_plan_that_takes_pages_away_is_made_again() {
    for lab in labs() {
        let mut lab = Lab { num_pages: 43, ..lab };
        lab.options.prefill_chunk_tokens = 16;
        let (engine, control) = lab.start();
        control.hold();
        let (short, long) = (prompt(1, 16), prompt(2, 640));
        let first = ask(&engine, &short, &of_priority(2, 100));
        control.wait_for_step(1);
        // From step 2 on it takes a page in each, and has 39 of its 40 when none is left. The first needs
        // its fifth in step 50.
        let last = ask(&engine, &long, &of_priority(0, 3));
        control.allow(44);
        control.wait_for_step(45);
        assert_eq!(metric(&engine, "pages_used"), 43);
        let between = ask(&engine, &long, &of_priority(1, 3));
        control.release();
        assert_expected(&read(&first), &short, &of_priority(2, 100));
        assert_expected(&read(&between), &long, &of_priority(1, 3));
        assert_expected(&read(&last), &long, &of_priority(0, 3));
        assert_eq!(metric(&engine, "preemptions"), 1);
    }
}

#[test]
fn a_long_prompt_goes_on_where_it_was_displaced() {
    for lab in labs() {
        let mut lab = Lab { num_pages: 80, ..lab };
        lab.options.prefill_chunk_tokens = 64;
        let (engine, control) = lab.start();
        control.hold();
        let long = prompt(1, 1100);
        let low = ask(&engine, &long, &of_priority(0, 5));
        control.allow(7);
        control.wait_for_step(8);
        for seed in 0..3 {
            // 50 pages and 14 steps. The long one keeps 30 of its own, and gets three or four steps more.
            let short = prompt(10 + seed, 790);
            let high = ask(&engine, &short, &of_priority(1, 2));
            control.allow(18);
            assert_expected(&read(&high), &short, &of_priority(1, 2));
            control.wait_for_step(8 + 18 * (seed + 1));
            assert_eq!(metric(&engine, "preemptions"), seed + 1);
        }
        control.release();
        assert_expected(&read(&low), &long, &of_priority(0, 5));
        assert_eq!(metric(&engine, "prefix_hit_tokens"), 3 * 480);
        // What it lost are the pages that others needed: of at most 8 and 4 chunks all but 480 tokens.
        let least = 1104 + 3 * 791;
        let computed = metric(&engine, "computed_tokens");
        assert!(computed <= least + 3 * 288, "{computed} of {least}");
    }
}

#[test]
fn without_the_cache_a_displaced_prompt_leaves_nothing_behind() {
    let mut lab = Lab { num_pages: 80, ..lab() };
    lab.options.prefill_chunk_tokens = 64;
    let (engine, control) = lab.start();
    control.hold();
    let (long, short) = (prompt(1, 1100), prompt(2, 790));
    let refusing = GenerationParams { cache: false, ..of_priority(0, 5) };
    let low = ask(&engine, &long, &refusing);
    control.allow(7);
    control.wait_for_step(8);
    let high = ask(&engine, &short, &of_priority(1, 2));
    control.release();
    assert_expected(&read(&high), &short, &of_priority(1, 2));
    assert_expected(&read(&low), &long, &refusing);
    assert_eq!((metric(&engine, "preemptions"), metric(&engine, "prefix_hit_tokens")), (1, 0));
}

/// Pages of a prompt are found before anybody knows whether they hold numbers. Who has found them goes on,
/// but nobody else finds them, nor what is behind them.
#[test]
fn what_was_no_numbers_is_not_found_again_by_those_who_shared_its_beginning() {
    for mut lab in labs() {
        lab.options.prefill_chunk_tokens = 16;
        let (engine, control) = lab.start();
        control.hold();
        let mut bad = prompt(2, 200);
        bad[150] = POISON;
        let good = [&bad[..80], &prompt(9, 100)[..]].concat();
        let requests = [&bad, &good].map(|ids| ask(&engine, ids, &of_priority(0, 3)));
        control.release();
        assert_eq!(read(&requests[0]).last.error, Some(Error::NotFinite { position: 200 }));
        let told = read(&requests[1]);
        assert_expected(&told, &good, &of_priority(0, 3));
        assert_eq!((told.last.usage.cached_tokens, metric(&engine, "pages_cached")), (80, 0));
        let cached = || read(&ask(&engine, &good, &of_priority(0, 3))).last.usage.cached_tokens;
        assert_eq!([cached(), cached()], [0, 176]);
    }
}

#[test]
fn nobody_waits_for_a_beginning_that_was_withdrawn() {
    for mut lab in labs() {
        lab.options.prefill_chunk_tokens = 16;
        let (engine, control) = lab.start();
        control.hold();
        let mut bad = prompt(2, 200);
        bad[150] = POISON;
        let good = [&bad[..80], &prompt(9, 100)[..]].concat();
        let long = GenerationParams { ignore_eos: true, ..greedy(2000) };
        let requests = [(&bad, &of_priority(0, 3)), (&good, &long)];
        let requests = requests.map(|(ids, params)| ask(&engine, ids, params));
        control.release();
        assert_eq!(read(&requests[0]).last.error, Some(Error::NotFinite { position: 200 }));
        control.slow_down(Duration::from_millis(1));
        let follower = [&bad[..80], &prompt(11, 20)[..]].concat();
        let told = read(&ask(&engine, &follower, &of_priority(0, 3)));
        assert_expected(&told, &follower, &of_priority(0, 3));
        assert_eq!(metric(&engine, "requests_running"), 1, "the one that shared it still replies");
        requests[1].cancel(true);
        read(&requests[1]);
    }
}
