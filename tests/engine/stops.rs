//! What ends a reply, and what of it is shown.

use std::sync::Arc;

use parking_lot::Mutex;
use qwen::engine::{Engine, FinishReason, GenerationParams, LogLevel};
use qwen::model::generation::ChatFormat;
use qwen::text::chat::{Message, Role, render};

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

/// A prompt whose reply is `text`.
fn echo(text: &str) -> (Vec<u32>, GenerationParams) {
    let prompt = std::iter::once(ECHO).chain(text.bytes().map(u32::from)).collect();
    (prompt, greedy(text.len()))
}

#[test]
fn a_base_model_stops_where_it_begins_to_play_the_human() {
    let (prompt, params) = echo("I see. Human: go on");
    let (chat, _) = lab().start();
    assert_eq!(run(&chat, &prompt, &params).text, "I see. Human: go on");
    let mut raw = lab();
    raw.chat_format = ChatFormat::Raw;
    let (raw, _) = raw.start();
    let told = run(&raw, &prompt, &params);
    assert_eq!((told.text.as_str(), told.last.finish), ("I see. ", Some(FinishReason::Stop)));
    // The chat control tokens mean nothing to a base model.
    let ends = |prompt: &Vec<u32>| expected(prompt, &greedy(60)).1 == FinishReason::Stop;
    let prompt = (0..).map(|seed| crate::fake::prompt(seed, 9)).find(ends).expect("one that ends");
    assert!(run(&raw, &prompt, &greedy(60)).ids.contains(&IM_END));
}

#[test]
fn a_chat_with_a_base_model_stops_as_chats_do() {
    let mut raw = lab();
    raw.chat_format = ChatFormat::Raw;
    let (raw, _) = raw.start();
    let mut stopped = 0;
    for seed in 0..20 {
        let content = format!("question {seed}");
        let messages = [Message::new(Role::User, content)];
        let params = greedy(500);
        let prompt = render(raw.tokenizer(), &messages, params.max_window_size).expect("a chat");
        let told = read(&raw.submit_chat(&messages, &params, None).expect("accepted"));
        assert_expected(&told, &prompt, &params);
        stopped += usize::from(told.last.finish == Some(FinishReason::Stop));
    }
    assert!(stopped > 10, "the fake hardly ever ends");
}

#[test]
fn the_checkpoints_stop_sequences_end_the_reply_and_never_show() {
    let mut lab = lab();
    lab.stop_words_ids = vec![vec![], vec![u32::from(b'#')], vec![u32::from(b'!'); 2]];
    let (engine, _) = lab.start();
    for (text, shown) in [("a!b!!c", "a!b"), ("a#b", "a"), ("a!", "a!")] {
        let (prompt, params) = echo(text);
        assert_eq!(run(&engine, &prompt, &params).text, shown);
        let params = GenerationParams { ignore_eos: true, ..params };
        assert_eq!(run(&engine, &prompt, &params).text, text);
    }
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let (engine, _) = lab().start();
    let (prompt, params) = echo("你好, 😀!");
    let request = engine.submit_tokens(prompt, &params, None).expect("accepted");
    let told = read(&request);
    assert_eq!((told.text.as_str(), told.bytes.as_slice()), ("你好, 😀!", "你好, 😀!".as_bytes()));
}

#[test]
fn a_stop_sequence_that_is_no_text_is_warned_of() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let mut lab = lab();
    lab.stop_words_ids = vec![vec![IM_END, 10], vec![0xE4, 0xBD], vec![33, 33], vec![IM_END]];
    let kept = Arc::clone(&lines);
    lab.log = Some(Arc::new(move |level, _: &str, line: &str| {
        if level == LogLevel::Warn {
            kept.lock().push(line.to_string());
        }
    }));
    drop(lab.start());
    let lines = lines.lock();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("[258, 10]") && lines[1].contains("[228, 189]"), "{lines:?}");
}
