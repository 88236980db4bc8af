//! What ends a reply, and what of it is shown.

use qwen::engine::{Engine, FinishReason, GenerationParams};
use qwen::model::generation::ChatFormat;

use crate::fake::*;

fn run(engine: &Engine, prompt: &[u32], params: &GenerationParams) -> Told {
    read(&engine.submit_tokens(prompt.to_vec(), params, None).expect("accepted"))
}

/// The reply's text if nothing stopped it.
fn endless(prompt: &[u32], max_tokens: usize) -> (GenerationParams, String) {
    let params = GenerationParams { ignore_eos: true, ..greedy(max_tokens) };
    let (ids, _) = expected(prompt, &params);
    let text = ids.iter().filter(|&&id| id < 256).map(|&id| id as u8 as char).collect();
    (params, text)
}

#[test]
fn a_control_token_ends_the_reply_and_is_no_part_of_it() {
    let (engine, _) = lab().start();
    let params = greedy(500);
    let mut stopped = 0;
    for seed in 0..20 {
        let prompt = prompt(seed, 9);
        let told = run(&engine, &prompt, &params);
        assert_expected(&told, &prompt, &params);
        stopped += usize::from(told.last.finish == Some(FinishReason::Stop));
    }
    assert!(stopped > 10, "the fake hardly ever ends");
}

#[test]
fn ignored_control_tokens_are_counted_but_not_shown() {
    let (engine, _) = lab().start();
    let mut seen = false;
    for seed in 0..10 {
        let prompt = prompt(seed, 9);
        let (params, text) = endless(&prompt, 60);
        let told = run(&engine, &prompt, &params);
        assert_eq!((told.ids.len(), &told.text), (60, &text));
        seen |= told.ids.contains(&IM_END);
    }
    assert!(seen, "no control token was drawn: the test says nothing");
}

#[test]
fn a_callers_stop_token_ends_the_reply_even_when_control_tokens_do_not() {
    let (engine, _) = lab().start();
    let prompt = prompt(4, 30);
    let (mut params, _) = endless(&prompt, 200);
    params.stop_token_ids = vec![u32::from(b'd')];
    let told = run(&engine, &prompt, &params);
    assert_expected(&told, &prompt, &params);
    assert_eq!(told.last.finish, Some(FinishReason::Stop));
    assert!(!told.text.contains('d'));
}

#[test]
fn a_stop_text_never_shows_not_even_in_part() {
    let (engine, _) = lab().start();
    for seed in 0..30 {
        let prompt = prompt(seed, 12);
        let (params, text) = endless(&prompt, 60);
        for len in 1..6 {
            let at = 5 + seed as usize % 40;
            let stop = text[at..at + len].to_string();
            let end = text.find(&stop).expect("it is there");
            let params = GenerationParams { stop: vec!["nothing".into(), stop], ..params.clone() };
            let told = run(&engine, &prompt, &params);
            assert_eq!(
                (told.text.as_str(), told.last.finish),
                (&text[..end], Some(FinishReason::Stop))
            );
            assert_eq!(told.last.usage.completion_tokens as usize, told.ids.len());
        }
    }
}

#[test]
fn what_was_held_back_for_a_stop_text_comes_with_the_end() {
    let (engine, _) = lab().start();
    let prompt = prompt(8, 12);
    let (mut params, text) = endless(&prompt, 40);
    params.stop = vec![format!("{}nothing follows like this", &text[text.len() - 3..])];
    let told = run(&engine, &prompt, &params);
    assert_eq!((told.text, told.last.finish), (text, Some(FinishReason::Length)));
}

#[test]
fn a_base_model_stops_where_it_begins_to_play_the_human() {
    let mut raw = lab();
    raw.chat_format = ChatFormat::Raw;
    let (engine, _) = raw.start();
    // The chat control tokens mean nothing to a base model.
    let prompt = (0..)
        .map(|seed| prompt(seed, 9))
        .find(|prompt| expected(prompt, &greedy(60)).1 == FinishReason::Stop);
    let told = run(&engine, &prompt.expect("one that ends"), &greedy(60));
    assert!(told.ids.contains(&IM_END), "{told:?}");
}
