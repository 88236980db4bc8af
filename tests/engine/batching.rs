//! Same tokens whatever else is in the batch: any arrival order, any chunk size, any page pressure.

use qwen::engine::{Engine, FinishReason, GenerationParams};
use qwen::error::Error;
use qwen::text::chat::{Message, Role};

use crate::fake::*;

struct Job {
    prompt: Vec<u32>,
    params: GenerationParams,
}

/// Greedy and sampled requests of many lengths; some have rules that only the host can carry out.
fn jobs(count: usize, seed: u64) -> Vec<Job> {
    let mut dice = Dice(seed);
    let job = |index: usize| {
        let mut params = greedy(1 + dice.roll(50));
        params.ignore_eos = dice.roll(2) == 0;
        if index % 2 == 1 {
            params.sampling.temperature = 0.9;
            params.sampling.repetition_penalty = 1.1;
            params.sampling.seed = index as u64;
        }
        params.priority = dice.roll(3) as i32;
        if index % 5 == 4 {
            params.logit_bias = vec![(98, -3.0), (150, 2.5)];
            params.logprobs = true;
        }
        Job { prompt: prompt(seed + index as u64, 1 + dice.roll(120)), params }
    };
    (0..count).map(job).collect()
}

fn run_alone(engine: &Engine, jobs: &[Job]) -> Vec<Told> {
    let run = |job: &Job| {
        read(&engine.submit_tokens(job.prompt.clone(), &job.params, None).expect("accepted"))
    };
    jobs.iter().map(run).collect()
}

/// Each job from a thread of its own, at a random moment.
fn run_together(engine: &Engine, jobs: &[Job], seed: u64) -> Vec<Told> {
    let mut dice = Dice(seed);
    std::thread::scope(|scope| {
        let spawn = |job| {
            let pause = std::time::Duration::from_micros(dice.roll(3000) as u64);
            scope.spawn(move || {
                std::thread::sleep(pause);
                run_alone(engine, std::slice::from_ref(job)).remove(0)
            })
        };
        let threads: Vec<_> = jobs.iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn assert_same(alone: &[Told], together: &[Told]) {
    for (index, (alone, together)) in alone.iter().zip(together).enumerate() {
        assert_eq!(alone.ids, together.ids, "job {index}");
        // What the prefix cache had of it is all that may differ.
        let [mut last, other] = [alone, together].map(|told| told.last.clone());
        last.usage.cached_tokens = other.usage.cached_tokens;
        assert_eq!((&alone.bytes, last), (&together.bytes, other), "job {index}");
    }
}

#[test]
fn a_greedy_reply_is_what_the_model_says() {
    for lab in labs() {
        let (engine, _) = lab.start();
        for len in [1, 2, 15, 16, 17, 31, 32, 33, 511, 512, 513, 1100] {
            for max_tokens in [1, 2, 17, 60] {
                let (prompt, params) = (prompt(len as u64, len), greedy(max_tokens));
                let request =
                    engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
                assert_expected(&read(&request), &prompt, &params);
            }
        }
    }
}

#[test]
fn batched_equals_alone_at_every_batch_size() {
    for (count, chunk) in [(1, 512), (2, 7), (8, 16), (32, 64), (32, 1)] {
        let jobs = jobs(count, 100 + count as u64);
        let alone = run_alone(&lab().start().0, &jobs);
        for mut lab in labs() {
            lab.options.prefill_chunk_tokens = chunk;
            let (engine, control) = lab.start();
            assert_same(&alone, &run_alone(&engine, &jobs));
            control.slow_down(std::time::Duration::from_micros(50));
            for seed in 0..3 {
                assert_same(&alone, &run_together(&engine, &jobs, seed));
            }
            assert_eq!(metric(&engine, "pages_used"), 0);
        }
    }
}

#[test]
fn a_batch_really_runs_together() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.hold();
        let params = GenerationParams { ignore_eos: true, ..greedy(10) };
        let submit = |seed| engine.submit_tokens(prompt(seed, 5), &params, None).expect("accepted");
        let requests: Vec<_> = (0..40).map(submit).collect();
        // The first step may have begun with fewer than all.
        wait_until(|| metric(&engine, "requests_submitted") == 40);
        control.release();
        requests.iter().for_each(|request| assert_eq!(read(request).ids.len(), 10));
        assert!(control.steps() <= 11, "{} steps for 40 x 10 tokens", control.steps());
    }
}

#[test]
fn ranks_see_the_same_batch() {
    for lab in labs() {
        let (engine, _) = Lab { num_ranks: 3, ..lab }.start();
        let params = greedy(30);
        let prompt = prompt(5, 100);
        let request = engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
        assert_expected(&read(&request), &prompt, &params);
    }
}

#[test]
fn too_few_pages_delay_requests_but_change_nothing() {
    for (seed, draws) in [(0, false), (1, false), (2, false), (0, true), (1, true), (3, true)] {
        let (roomy, _) = lab().start();
        let mut tight = Lab { draws, ..lab() };
        tight.num_pages = 12;
        tight.options.prefill_chunk_tokens = 32;
        let (tight, control) = tight.start();
        control.slow_down(std::time::Duration::from_micros(100));
        let mut jobs = jobs(24, 1000 * seed);
        for job in &mut jobs {
            // Little to be admitted with, much to grow to: more than the pool in sum.
            job.prompt.truncate(40);
            (job.params.ignore_eos, job.params.max_tokens) = (true, job.params.max_tokens + 50);
        }
        let alone = run_alone(&roomy, &jobs);
        assert_same(&alone, &run_together(&tight, &jobs, seed));
        assert!(metric(&tight, "preemptions") > 5, "the pool was not tight");
        for gauge in ["pages_used", "requests_running", "requests_waiting", "requests_preempted"] {
            assert_eq!(metric(&tight, gauge), 0, "{gauge}");
        }
    }
}

#[test]
fn a_request_that_can_never_fit_is_refused_with_the_numbers() {
    let refused = |engine: &Engine, len: usize| {
        engine.submit_tokens(prompt(1, len), &greedy(1), None).err().expect("refused")
    };
    let mut few_pages = lab();
    few_pages.num_pages = 2;
    let (engine, _) = few_pages.start();
    let full =
        |needed_tokens, available_tokens| Error::ContextFull { needed_tokens, available_tokens };
    assert_eq!(refused(&engine, 32), full(33, 32));
    let mut short_context = lab();
    short_context.options.max_context_tokens = 100;
    let (engine, _) = short_context.start();
    assert_eq!(refused(&engine, 100), full(101, 100));
    // The model's own maximum: four training lengths with dynamic NTK.
    let (engine, _) = lab().start();
    assert_eq!(refused(&engine, 9000), full(9001, 8192));
}

#[test]
fn a_reply_ends_where_the_context_ends() {
    for lab in labs() {
        let (engine, _) = Lab { num_pages: 2, ..lab }.start();
        let params = GenerationParams { ignore_eos: true, ..greedy(1000) };
        let told = read(&engine.submit_tokens(prompt(3, 20), &params, None).expect("accepted"));
        assert_eq!((told.ids.len(), told.last.finish), (12, Some(FinishReason::Length)));
        let told = read(&engine.submit_tokens(prompt(3, 31), &params, None).expect("accepted"));
        assert_eq!((told.ids.len(), told.last.finish), (1, Some(FinishReason::Length)));
    }
}

#[test]
fn prompts_and_parameters_are_checked() {
    let (engine, _) = lab().start();
    let argument = |prompt: Vec<u32>| match engine.submit_tokens(prompt, &greedy(1), None).err() {
        Some(Error::Argument { argument, reason }) => (argument, reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(vec![]).0, "prompt");
    assert_eq!(argument(vec![1, 464]), ("prompt", "id 464 at index 1 is not below 464".into()));
    type Case = (&'static str, fn(&mut GenerationParams));
    let cases: [Case; 6] = [
        ("max_tokens", |p| p.max_tokens = 0),
        ("max_window_size", |p| p.max_window_size = 0),
        ("stop", |p| p.stop = vec![String::new()]),
        ("stop", |p| p.stop = vec!["x".into(); 1000]),
        ("stop_token_ids", |p| p.stop_token_ids = vec![1; 1000]),
        ("top_p", |p| p.sampling.top_p = 2.0),
    ];
    for (name, spoil) in cases {
        let mut params = greedy(1);
        spoil(&mut params);
        match engine.submit_tokens(vec![1], &params, None).err() {
            Some(Error::Option { key, .. }) => assert_eq!(key, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let good = prompt(1, 50);
        let mut bad = prompt(2, 50);
        bad[20] = POISON;
        let params = greedy(40);
        let good_request = engine.submit_tokens(good.clone(), &params, None).expect("accepted");
        let bad_request = engine.submit_tokens(bad, &params, None).expect("accepted");
        let told = read(&bad_request);
        assert_eq!(told.last.error, Some(Error::NotFinite { position: 50 }));
        assert_expected(&read(&good_request), &good, &params);
        assert_eq!(engine.health(), Ok(()));
        assert_eq!(metric(&engine, "requests_failed"), 1);
    }
}

#[test]
fn info_and_metrics_say_what_is() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let info = engine.info();
        assert_eq!(info["model"], "fake");
        assert_eq!(info["kv_cache_tokens"], 4096 * 16);
        assert_eq!(info["max_context_tokens"], 8192);
        let params = GenerationParams { ignore_eos: true, ..greedy(5) };
        read(&engine.submit_tokens(prompt(1, 50), &params, None).expect("accepted"));
        let counters =
            [("prompt_tokens", 50), ("generated_tokens", 5), ("computed_tokens", 54), ("steps", 5)];
        for (name, value) in counters {
            assert_eq!(metric(&engine, name), value, "{name}");
        }
        assert_eq!(metric(&engine, "requests_finished"), 1);
        assert_eq!(metric(&engine, "pages_total"), 4096);
        let seeds = [0, 1].map(|_| engine.generation_defaults().sampling.seed);
        assert_ne!(seeds[0], seeds[1]);
    }
}

#[test]
fn a_chat_that_can_never_fit_is_refused_and_turns_beyond_the_window_are_not_encoded() {
    let (engine, _) = lab().start();
    let say = |role, content: String| Message::new(role, content);
    // Encoded, each would take several gigabytes.
    let huge = || "x".repeat(48 << 20);
    for messages in [
        vec![say(Role::User, huge())],
        vec![say(Role::System, huge()), say(Role::User, "a".into())],
    ] {
        let refused = engine.submit_chat(&messages, &greedy(1), None).err();
        assert!(matches!(refused, Some(Error::ContextFull { .. })), "{refused:?}");
    }
    let last = say(Role::User, "a".into());
    let old = [say(Role::User, huge()), say(Role::Assistant, "b".into()), last.clone()];
    let of = |messages: &[Message]| {
        read(&engine.submit_chat(messages, &greedy(1), None).expect("accepted")).last.usage
    };
    assert_eq!(of(&old).prompt_tokens, of(&[last]).prompt_tokens);
}
