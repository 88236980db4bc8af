//! Scores and echoes: log-probabilities of tokens that were given, not drawn.

use qwen::engine::{Engine, Event, EventKind, GenerationParams, Request, Score, TokenLogprobs};
use qwen::error::Error;

use crate::fake::*;
use crate::logprobs::{ROUNDING, log_softmax};

/// `scored`, by the definition; NTK of a prompt of all tokens but the last.
fn assert_score(score: &Score, context: &[u32], continuation: &[u32], top: usize) {
    let all = [context, continuation].concat();
    assert_eq!(score.tokens.len(), continuation.len());
    let mut sum = 0.0;
    for (at, scored) in score.tokens.iter().enumerate() {
        let end = context.len() + at;
        let wanted = log_softmax(&all[..end], all.len() - 1);
        let (id, told) = (all[end], &scored.logprobs);
        assert_eq!((told.token.id, told.top.len()), (id, top));
        assert!((told.token.logprob - wanted[id as usize]).abs() < ROUNDING, "token {at}");
        let best =
            (0..464u32).rev().max_by(|a, b| wanted[*a as usize].total_cmp(&wanted[*b as usize]));
        assert_eq!((Some(told.top[0].id), scored.is_greedy), (best, best == Some(id)));
        sum += told.token.logprob;
    }
    assert_eq!(score.logprob, sum);
}

fn submit(engine: &Engine, ids: &[u32], params: &GenerationParams) -> Request {
    engine.submit_tokens(ids.to_vec(), params, None).expect("accepted")
}

#[test]
fn a_score_is_the_models_own_sum_however_the_work_is_cut() {
    for (places, chunk, draws) in
        [(1, 512, false), (2, 7, true), (5, 16, true), (64, 512, false), (64, 100, true)]
    {
        let mut lab = Lab { draws, ..lab() };
        (lab.options.max_batch_sequences, lab.options.prefill_chunk_tokens) = (places, chunk);
        let (engine, _) = lab.start();
        for (seed, num_context, num_continuation) in
            [(1, 1, 1), (2, 1, 40), (3, 40, 1), (4, 100, 3), (5, 17, 150)]
        {
            let all = prompt(seed, num_context + num_continuation);
            let (context, continuation) = all.split_at(num_context);
            let params = GenerationParams { top_logprobs: 2, logprobs: true, ..greedy(1) };
            let score = engine.score(context, continuation, &params).expect("a score");
            assert_score(&score, context, continuation, 2);
        }
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn scores_and_replies_share_the_batch_and_change_nothing() {
    for draws in [false, true] {
        let mut lab = Lab { draws, ..lab() };
        // Too few pages for all of them at once.
        (lab.num_pages, lab.options.prefill_chunk_tokens) = (30, 48);
        lab.options.max_batch_sequences = 8;
        let (engine, control) = lab.start();
        control.slow_down(std::time::Duration::from_micros(100));
        std::thread::scope(|scope| {
            for seed in 0..12 {
                let engine = &engine;
                scope.spawn(move || {
                    let all = prompt(seed, 120);
                    let (context, continuation) = all.split_at(10 + 5 * seed as usize);
                    let params = GenerationParams { priority: seed as i32 % 3, ..greedy(1) };
                    let score = engine.score(context, continuation, &params).expect("a score");
                    assert_score(&score, context, continuation, 1);
                });
                scope.spawn(move || {
                    let params = GenerationParams { ignore_eos: true, ..greedy(100) };
                    let prompt = prompt(100 + seed, 30);
                    assert_expected(&read(&submit(engine, &prompt, &params)), &prompt, &params);
                });
            }
        });
        assert!(metric(&engine, "preemptions") > 0, "the pool was not tight");
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn what_the_model_would_say_itself_is_greedy() {
    let (engine, _) = lab().start();
    let context = prompt(3, 25);
    let found = engine.score(&context, &[0], &greedy(1)).expect("a score");
    let best = found.tokens[0].logprobs.top[0].id;
    let greedy_score = engine.score(&context, &[best], &greedy(1)).expect("a score");
    assert!(greedy_score.tokens[0].is_greedy && !found.tokens[0].is_greedy);
    assert!(greedy_score.logprob > found.logprob);
}

#[test]
fn wrong_scores_are_refused_and_failures_are_typed() {
    let (engine, _) = lab().start();
    let argument = |context: &[u32], continuation: &[u32]| match engine.score(
        context,
        continuation,
        &greedy(1),
    ) {
        Err(Error::Argument { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(&[], &[1]), "context");
    assert_eq!(argument(&[1], &[]), "continuation");
    assert_eq!(argument(&[1], &[464]), "prompt");
    let too_long = engine.score(&prompt(1, 8000), &prompt(2, 200), &greedy(1));
    assert!(matches!(too_long, Err(Error::ContextFull { .. })), "{too_long:?}");
    let poisoned = engine.score(&[1, 2, POISON], &prompt(1, 20), &greedy(1));
    assert_eq!(poisoned, Err(Error::NotFinite { position: 22 }));
    let hurried = GenerationParams { deadline_ms: 1, ..greedy(1) };
    let mut lab = lab();
    lab.options.max_batch_sequences = 1;
    let (engine, control) = lab.start();
    control.slow_down(std::time::Duration::from_millis(1));
    let late = engine.score(&[1], &prompt(1, 300), &hurried);
    assert_eq!(late, Err(Error::Deadline { deadline_ms: 1 }));
    assert_eq!(metric(&engine, "pages_used"), 0);
}

fn deltas(request: &Request) -> Vec<Event> {
    let mut deltas = Vec::new();
    while let Ok(event) = request.next(Some(LONG)) {
        assert_eq!(event.error, None);
        deltas.extend((event.kind == EventKind::Delta).then_some(event));
    }
    deltas
}

#[test]
fn an_echo_is_the_prompt_with_what_the_model_thought_of_it_then_the_reply() {
    for (chunk, places, draws) in [(512, 64, false), (7, 3, false), (16, 64, true)] {
        let mut lab = Lab { draws, ..lab() };
        (lab.options.prefill_chunk_tokens, lab.options.max_batch_sequences) = (chunk, places);
        let (engine, _) = lab.start();
        for len in [1, 2, 50] {
            let plain = GenerationParams { ignore_eos: true, ..greedy(10) };
            let echo = GenerationParams { echo: true, ..plain.clone() };
            let telling = GenerationParams { logprobs: true, top_logprobs: 1, ..echo.clone() };
            let prompt = prompt(len as u64, len);
            let (reply, _) = expected(&prompt, &plain);
            let wanted = [&prompt[..], &reply].concat();
            for params in [echo, telling] {
                let all = deltas(&submit(&engine, &prompt, &params));
                let ids: Vec<u32> = all.iter().flat_map(|event| event.token_ids.clone()).collect();
                let bytes: Vec<u8> = all.iter().flat_map(|event| event.bytes.clone()).collect();
                assert_eq!(ids, wanted);
                assert_eq!(bytes, tokenizer().decode_bytes(&wanted, false));
                let told: Vec<TokenLogprobs> =
                    all.into_iter().flat_map(|event| event.logprobs).collect();
                assert_eq!(told.len(), if params.logprobs { wanted.len() } else { 0 });
                for (at, told) in told.iter().enumerate() {
                    assert_eq!(told.token.id, wanted[at]);
                    let Some(before) = (at > 0).then(|| log_softmax(&wanted[..at], len)) else {
                        assert!(told.token.logprob.is_nan() && told.top.is_empty());
                        continue;
                    };
                    let difference = told.token.logprob - before[wanted[at] as usize];
                    assert!(difference.abs() < ROUNDING && told.top.len() == 1);
                }
            }
        }
    }
}

#[test]
fn a_chat_has_no_echo() {
    let (engine, _) = lab().start();
    let say = qwen::text::chat::Message::new(qwen::text::chat::Role::User, "hello");
    let params = GenerationParams { echo: true, ..greedy(3) };
    match engine.submit_chat(&[say], &params, None).err() {
        Some(Error::Option { key, .. }) => assert_eq!(key, "echo"),
        other => panic!("{other:?}"),
    }
}
