//! Replies of a given format, whatever the model would rather say.

use qwen::engine::{FinishReason, GenerationParams};
use qwen::error::Error;
use qwen::grammar::Format;
use serde_json::{Value, json};

use crate::fake::*;

fn of(format: &Value, max_tokens: usize) -> GenerationParams {
    let response_format = Format::parse(format).expect("a format");
    GenerationParams { response_format, ..greedy(max_tokens) }
}

fn regex(regex: &str) -> Value {
    json!({ "type": "regex", "regex": regex })
}

#[test]
fn a_reply_keeps_its_format_and_others_are_as_ever() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let format = of(&regex("(yes|no), [0-9]{3}!"), 200);
        let plain = greedy(60);
        let prompts: Vec<Vec<u32>> = (0..12).map(|seed| prompt(seed, 9)).collect();
        let requests: Vec<_> = prompts
            .iter()
            .enumerate()
            .map(|(at, prompt)| {
                let mut params = if at % 2 == 0 { format.clone() } else { plain.clone() };
                params.sampling.temperature = if at % 4 == 0 { 1.0 } else { 0.0 };
                engine.submit_tokens(prompt.clone(), &params, None).expect("accepted")
            })
            .collect();
        let mut replies = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            let told = read(request);
            if at % 2 == 1 {
                assert_expected(&told, &prompts[at], &plain);
                continue;
            }
            assert_eq!(told.last.finish, Some(FinishReason::Stop));
            let numbers = told.text.strip_prefix("yes, ").or(told.text.strip_prefix("no, "));
            let digits = numbers.and_then(|text| text.strip_suffix('!')).expect("as it must be");
            assert!(digits.len() == 3 && digits.bytes().all(|digit| digit.is_ascii_digit()));
            replies.push(told.text);
        }
        replies.dedup();
        assert!(replies.len() > 1, "the model has no say: {replies:?}");
    }
}

#[test]
fn json_comes_out_and_ends_by_itself() {
    let (engine, _) = lab().start();
    let schema = json!({ "type": "object", "properties": {
        "name": { "type": "string", "maxLength": 6 }, "age": { "enum": [1, 2, 3] } },
        "required": ["name", "age"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
    for ignore_eos in [false, true] {
        let params = GenerationParams { ignore_eos, ..of(&format, 400) };
        let told = read(&engine.submit_tokens(prompt(3, 9), &params, None).expect("accepted"));
        assert_eq!(told.last.finish, Some(FinishReason::Stop));
        let value: Value = serde_json::from_str(&told.text).expect("JSON");
        assert!(value["name"].is_string() && value["age"].is_u64(), "{value}");
    }
}

#[test]
fn a_limit_or_a_stop_text_still_ends_it() {
    let (engine, _) = lab().start();
    let told = |params: GenerationParams| {
        read(&engine.submit_tokens(prompt(3, 9), &params, None).expect("accepted"))
    };
    let cut = told(of(&regex("a{30}"), 7));
    assert_eq!((cut.text.as_str(), cut.last.finish), ("aaaaaaa", Some(FinishReason::Length)));
    let whole = told(of(&regex("a{7}"), 7));
    assert_eq!((whole.text.as_str(), whole.last.finish), ("aaaaaaa", Some(FinishReason::Stop)));
    let stop = vec!["b".to_string()];
    let stopped = told(GenerationParams { stop, ..of(&regex("aaba"), 40) });
    assert_eq!((stopped.text.as_str(), stopped.last.finish), ("aa", Some(FinishReason::Stop)));
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let (engine, _) = lab().start();
    let refused = engine.submit_tokens(prompt(1, 9), &of(&regex("("), 9), None).err();
    assert!(matches!(refused, Some(Error::Option { key, .. }) if key == "response_format"));
    let tools = qwen::text::tools::Tools::parse(&json!([{ "name": "f" }])).ok();
    let both = GenerationParams { tools: tools.map(Into::into), ..of(&regex("a"), 9) };
    assert!(matches!(both.validate(), Err(Error::Option { key, .. }) if key == "response_format"));
}
