//! The prefix cache, seen from outside: what is computed once, what is never shared, and that no reply
//! depends on it. The fake reads every context back from the pages: a wrong one gives an error.

use qwen::engine::{Engine, EngineOptions, GenerationParams};
use qwen::error::Error;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

/// `shared` tokens that all have in common, and then `own` that differ.
fn with_system(shared: usize, own: usize, seed: u64) -> Vec<u32> {
    [prompt(77, shared), prompt(1000 + seed, own)].concat()
}

/// The reply to `prompt`, checked; and how much of the prompt was cached.
fn cached(engine: &Engine, prompt: &[u32], params: &GenerationParams) -> u64 {
    let told = read(&engine.submit_tokens(prompt.to_vec(), params, None).expect("accepted"));
    assert_expected(&told, prompt, params);
    told.last.usage.cached_tokens
}

#[test]
fn a_shared_prompt_is_computed_once_for_those_who_come_later() {
    for lab in labs() {
        let (engine, _) = lab.start();
        for seed in 0..32 {
            let found = cached(&engine, &with_system(2000, 20, seed), &endless(5));
            assert_eq!(found, if seed == 0 { 0 } else { 2000 });
        }
        // 2,000 and 20 once, 20 for each other; and 4 of 5 tokens of each reply.
        assert_eq!(metric(&engine, "computed_tokens"), 2000 + 32 * (20 + 4));
        assert_eq!(metric(&engine, "prefix_hit_tokens"), 31 * 2000);
        assert_eq!(metric(&engine, "pages_used"), 0);
        assert!(metric(&engine, "pages_cached") >= 125);
    }
}

#[test]
fn a_shared_prompt_is_computed_once_for_those_who_come_at_the_same_moment() {
    for lab in labs() {
        let draws = lab.draws;
        let (engine, control) = lab.start();
        control.hold();
        let prompts: Vec<_> = (0..32).map(|seed| with_system(2000, 20, seed)).collect();
        let submit = |ids: &Vec<u32>| engine.submit_tokens(ids.clone(), &endless(5), None);
        let requests: Vec<_> = prompts.iter().map(|ids| submit(ids).expect("accepted")).collect();
        control.release();
        for (request, prompt) in requests.iter().zip(&prompts) {
            assert_expected(&read(request), prompt, &endless(5));
        }
        // A rank that draws is a step ahead: what it computes for replies that ended is counted.
        let least = 2000 + 32 * (20 + 4);
        let computed = metric(&engine, "computed_tokens");
        assert!(computed == least || (draws && computed <= least + 32), "{computed} of {least}");
        assert_eq!(metric(&engine, "prefix_hit_tokens"), 31 * 2000);
        // Four steps for the prompt, two for what is the others' own, and then all together.
        assert!(control.steps() <= 14, "{} steps", control.steps());
    }
}

#[test]
fn who_waits_for_a_prompt_computes_it_when_the_other_gives_up() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.hold();
        let submit = |seed| engine.submit_tokens(with_system(1200, 5, seed), &endless(5), None);
        let requests = [0, 1, 2].map(|seed| submit(seed).expect("accepted"));
        control.wait_for_step(1);
        requests[0].cancel(false);
        control.release();
        assert_eq!(read(&requests[0]).last.error, Some(Error::Cancelled));
        for (seed, request) in requests.iter().enumerate().skip(1) {
            assert_expected(&read(request), &with_system(1200, 5, seed as u64), &endless(5));
        }
        // The second goes on behind the chunk that the first had computed.
        assert_eq!(metric(&engine, "prefix_hit_tokens"), 512 + 1200);
    }
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    for lab in labs() {
        let (engine, _) = lab.start();
        for len in [1, 15, 16, 17, 31, 32, 33, 512, 513] {
            let prompt = prompt(len as u64, len);
            assert_eq!(cached(&engine, &prompt, &endless(3)), 0, "{len} tokens, new");
            let whole_pages = ((len - 1) / 16 * 16) as u64;
            assert_eq!(cached(&engine, &prompt, &endless(3)), whole_pages, "{len} tokens");
        }
    }
}

#[test]
fn what_a_reply_computed_is_found_by_the_next_turn() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let first = prompt(3, 40);
        let reply = expected(&first, &endless(50)).0;
        assert_eq!(cached(&engine, &first, &endless(50)), 0);
        let second = [first, reply, prompt(4, 10)].concat();
        // Of 90 tokens the last was drawn and never computed.
        assert_eq!(cached(&engine, &second, &endless(50)), 80);
    }
}

#[test]
fn prompts_of_different_ntk_factors_share_nothing() {
    // The fake's training length is 2,048 tokens.
    for lab in labs() {
        let (engine, _) = lab.start();
        let long = |len: usize| prompt(1, 5000)[..len].to_vec();
        for (len, found) in
            [(2048, 0), (2049, 0), (2047, 2032), (4096, 2048), (4097, 0), (5000, 4096)]
        {
            assert_eq!(cached(&engine, &long(len), &endless(3)), found, "{len} tokens");
        }
    }
}

#[test]
fn nothing_is_shared_where_it_is_not_wanted() {
    let ids = prompt(1, 100);
    let mut off = lab();
    off.options = EngineOptions { prefix_cache: false, ..off.options };
    let (off, _) = off.start();
    let (on, _) = lab().start();
    let refusing = GenerationParams { cache: false, ..endless(3) };
    for _ in 0..2 {
        assert_eq!(cached(&off, &ids, &endless(3)), 0);
        assert_eq!(cached(&on, &ids, &refusing), 0);
    }
    for name in ["pages_cached", "prefix_hit_tokens", "pages_used"] {
        assert_eq!((metric(&off, name), metric(&on, name)), (0, 0), "{name}");
    }
    cached(&on, &ids, &endless(3));
    assert_eq!(cached(&on, &ids, &refusing), 0, "reads nothing either");
    assert_eq!(cached(&on, &ids, &endless(3)), 96);
}

#[test]
fn logits_that_are_no_numbers_leave_nothing_in_the_cache() {
    for mut lab in labs() {
        lab.options.prefill_chunk_tokens = 16;
        let (engine, _) = lab.start();
        let mut bad = prompt(2, 100);
        bad[90] = POISON;
        for _ in 0..2 {
            let told = read(&engine.submit_tokens(bad.clone(), &endless(5), None).expect("ok"));
            assert_eq!(told.last.error, Some(Error::NotFinite { position: 100 }));
            assert_eq!((told.last.usage.cached_tokens, metric(&engine, "pages_cached")), (0, 0));
        }
    }
}

#[test]
fn the_least_recently_used_pages_go_first() {
    let mut lab = lab();
    lab.num_pages = 30;
    let (engine, _) = lab.start();
    // Ten pages each, with the reply.
    let ask = |seed| cached(&engine, &prompt(seed, 150), &endless(2));
    assert_eq!([ask(1), ask(2), ask(1), ask(3)], [0, 0, 144, 0]);
    // Nine of each are full and kept: 4 takes the three that are left, and the last seven of 2.
    assert_eq!(ask(4), 0);
    assert_eq!(metric(&engine, "prefix_evictions"), 7);
    assert_eq!([ask(3), ask(1), ask(2)], [144, 144, 32]);
    assert_eq!(metric(&engine, "pages_used"), 0);
}

#[test]
fn a_preempted_request_comes_back_over_the_cache() {
    for mut lab in labs() {
        lab.num_pages = 40;
        let (engine, control) = lab.start();
        control.slow_down(std::time::Duration::from_micros(50));
        let prompts: Vec<_> = (0..6).map(|seed| prompt(seed, 60)).collect();
        let submit = |ids: &Vec<u32>| engine.submit_tokens(ids.clone(), &endless(150), None);
        let requests: Vec<_> = prompts.iter().map(|ids| submit(ids).expect("accepted")).collect();
        for (request, prompt) in requests.iter().zip(&prompts) {
            let told = read(request);
            assert_expected(&told, prompt, &endless(150));
            assert_eq!(told.last.usage.cached_tokens, 0, "of its prompt, when it first began");
        }
        assert!(metric(&engine, "preemptions") > 0, "the pool was not tight");
        assert!(metric(&engine, "prefix_hit_tokens") > 0);
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

/// A rank that draws has room for as many seen ids as the cache has tokens. Sequences that share pages may
/// have more: such a step is drawn by the loop (the fake refuses it otherwise), with the same result.
#[test]
fn many_who_share_a_prompt_have_seen_more_ids_than_there_is_room_for() {
    let mut lab = Lab { draws: true, ..lab() };
    lab.num_pages = 100;
    let mut params = endless(20);
    params.sampling.presence_penalty = 0.5;
    let prompts: Vec<_> = (0..24).map(|seed| with_system(400, 8, seed)).collect();
    let (engine, _) = lab.start();
    let ask = |ids: &Vec<u32>| engine.submit_tokens(ids.clone(), &params, None).expect("accepted");
    let alone: Vec<_> = prompts.iter().map(|ids| read(&ask(ids)).ids).collect();
    let together: Vec<_> = prompts.iter().map(ask).collect();
    for (request, alone) in together.iter().zip(alone) {
        assert_eq!(read(request).ids, alone);
    }
}
