//! Formats of replies on the real vocabulary of Qwen-1: every walk over allowed tokens is of the format,
//! by the word of independent judges (`jsonschema`, `fancy-regex`, a parser of JSON).

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::path::Path;
use std::sync::OnceLock;

use qwen::error::Error;
use qwen::grammar::{Format, Grammars, MAX_FORMAT_BYTES};
use qwen::text::tokenizer::{Specials, Tokenizer};
use serde_json::{Value, json};

fn qwen() -> &'static (Tokenizer, Grammars) {
    static QWEN: OnceLock<(Tokenizer, Grammars)> = OnceLock::new();
    QWEN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/vocabulary");
        let tokenizer = Tokenizer::open(&folder)
            .unwrap_or_else(|error| panic!("{error}: `make test` fetches it"));
        let grammars = Grammars::new(tokenizer.ordinary_tokens(), tokenizer.im_end()).unwrap();
        (tokenizer, grammars)
    })
}

/// A reproducible source of choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// A text that the format allows, drawn token by token: white space is rare, an end is likely.
fn walk(format: &Format, seed: u64) -> String {
    let (tokenizer, grammars) = qwen();
    let mut state = grammars.begin(format).unwrap();
    let mut dice = Dice(seed);
    let mut ids = Vec::new();
    while !state.is_over() {
        assert!(ids.len() < 3000, "no end: {}", text(&ids));
        let allowed = state.allowed_ids().unwrap();
        let may_end = allowed.contains(&tokenizer.im_end());
        assert!(allowed.iter().all(|&id| id == tokenizer.im_end() || !tokenizer.is_special(id)));
        let is_blank = |id: u32| tokenizer.token_bytes(id).unwrap().trim_ascii().is_empty();
        let mut id = allowed[dice.roll(allowed.len())];
        for _ in 0..20 {
            if is_blank(id) {
                id = allowed[dice.roll(allowed.len())];
            }
        }
        if may_end && dice.roll(3) == 0 {
            id = tokenizer.im_end();
        }
        state.accept(id).unwrap();
        ids.push(id);
    }
    ids.retain(|&id| id != tokenizer.im_end());
    text(&ids)
}

fn text(ids: &[u32]) -> String {
    String::from_utf8(qwen().0.decode_bytes(ids, false)).unwrap()
}

fn format(value: Value) -> Format {
    Format::parse(&value).unwrap().unwrap()
}

fn schema(schema: Value) -> Format {
    format(json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } }))
}

#[test]
fn walks_are_valid_by_the_schema() {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "mood": { "enum": ["glad", "sad", null, 3] },
            "tags": { "type": "array", "items": { "type": "string", "maxLength": 5 }, "maxItems": 3 },
            "code": { "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$" },
        },
        "required": ["name", "age", "code"],
        "additionalProperties": false,
    });
    let tree = json!({
        "$defs": { "node": {
            "type": "object",
            "properties": { "value": { "type": "boolean" },
                "next": { "anyOf": [{ "$ref": "#/$defs/node" }, { "type": "null" }] } },
            "required": ["value", "next"], "additionalProperties": false,
        } },
        "$ref": "#/$defs/node",
    });
    let number = json!({ "type": "number", "minimum": -1.5, "exclusiveMaximum": 2 });
    for description in [person, tree, number] {
        let judge = jsonschema::validator_for(&description).unwrap();
        let format = schema(description.clone());
        for seed in 0..25 {
            let text = walk(&format, seed);
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(judge.is_valid(&value), "{text}\n{description}");
        }
    }
}

#[test]
fn walks_match_the_regex_and_the_grammar() {
    let regex = r"(ja|nein|你好)( [0-9]{1,4})?!";
    let judge = fancy_regex::Regex::new(&format!("^(?:{regex})$")).unwrap();
    for seed in 0..40 {
        let text = walk(&format(json!({ "type": "regex", "regex": regex })), seed);
        assert!(judge.is_match(&text).unwrap(), "{text}");
    }
    let grammar = "start: \"(\" start \")\" | \"x\"";
    for seed in 0..20 {
        let text = walk(&format(json!({ "type": "grammar", "grammar": grammar })), seed);
        let depth = text.matches('(').count();
        assert_eq!(text, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
    }
}

#[test]
fn what_fits_is_allowed_however_it_is_cut() {
    let (tokenizer, grammars) = qwen();
    let text = r#"{"name": "你好 \"x\" 😀", "n": [1.5e3, true, null]}"#;
    let format = format(json!({ "type": "json_object" }));
    let canonical = tokenizer.encode(text, Specials::AsText);
    let bytes: Vec<u32> =
        text.chars().flat_map(|c| tokenizer.encode(&c.to_string(), Specials::AsText)).collect();
    for ids in [canonical, bytes] {
        let mut state = grammars.begin(&format).unwrap();
        let mut logits = Vec::new();
        for id in ids {
            assert!(!state.is_over());
            logits.clear();
            logits.resize(tokenizer.num_tokens(), 1.0);
            state.mask(&mut logits).unwrap();
            assert_eq!(logits[id as usize], 1.0, "{id}");
            assert_eq!(logits[tokenizer.im_start() as usize], f32::NEG_INFINITY);
            let allowed = logits.iter().filter(|logit| **logit == 1.0).count();
            assert_eq!(allowed, state.allowed_ids().unwrap().len());
            state.accept(id).unwrap();
        }
        assert!(state.is_over() || state.allowed_ids().unwrap().contains(&tokenizer.im_end()));
    }
}

#[test]
fn a_token_that_is_not_allowed_is_an_error_and_a_clone_goes_its_own_way() {
    let (tokenizer, grammars) = qwen();
    let id = |text: &str| tokenizer.encode(text, Specials::AsText)[0];
    let mut state = grammars.begin(&format(json!({ "type": "regex", "regex": "ab|ac" }))).unwrap();
    state.accept(id("a")).unwrap();
    let mut other = state.clone();
    state.accept(id("b")).unwrap();
    assert!(state.is_over());
    assert!(!other.is_over());
    assert!(matches!(other.accept(id("x")), Err(Error::Option { .. })));
}

#[test]
fn a_huge_format_costs_no_more_than_its_limits() {
    let (tokenizer, grammars) = qwen();
    let hostile = [
        json!({ "type": "regex", "regex": "((a{1000}){1000}){1000}" }),
        json!({ "type": "regex", "regex": "(a?){900}a{900}b|(.*a){40}c" }),
        json!({ "type": "grammar", "grammar": "start: start start | \"a\" | " }),
    ];
    for value in hostile {
        let Ok(mut state) = grammars.begin(&format(value)) else { continue };
        let mut logits = vec![0.0; tokenizer.num_tokens()];
        for _ in 0..20 {
            let id = tokenizer.encode("a", Specials::AsText)[0];
            if state.mask(&mut logits).and_then(|()| state.accept(id)).is_err() || state.is_over() {
                break;
            }
        }
    }
}

/// What nests in the compiler, on the small stack of a test's thread: it must not end the process.
#[test]
fn long_chains_do_not_overflow_a_stack() {
    let chain = |count: usize, separator: &str| {
        let rules = (1..count).map(|i| format!("r{i}: r{}{separator}", i + 1));
        format!("start: r1\n{}r{count}: \"a\"\n", rules.collect::<String>())
    };
    let refs = |count: usize| {
        let inner = (0..count).map(|i| {
            let to = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
            (format!("a{i}"), if i + 1 < count { to } else { json!({ "type": "null" }) })
        });
        let schema =
            json!({ "$ref": "#/$defs/a0", "$defs": inner.collect::<serde_json::Map<_, _>>() });
        json!({ "type": "json_schema", "json_schema": { "schema": schema } })
    };
    let conditions = format!("start: \"a\" %if {}true{}", "not(".repeat(900), ")".repeat(900));
    let folded = format!("(?i){}", "[ -\u{10FFFF}]".repeat(300));
    let terminals = chain(500, "\n").to_uppercase().replace("START", "start");
    for (value, is_refused) in [
        (json!({ "type": "grammar", "grammar": chain(500, "\n") }), false),
        (json!({ "type": "grammar", "grammar": terminals }), false),
        (json!({ "type": "grammar", "grammar": chain(600, "\n") }), true),
        (json!({ "type": "grammar", "grammar": conditions }), true),
        (json!({ "type": "grammar", "grammar": "start: <[151644]>" }), true),
        (json!({ "type": "regex", "regex": folded }), true),
        (json!({ "type": "regex", "regex": "a".repeat(5000) }), true),
        (refs(500), false),
        (refs(600), true),
    ] {
        let parsed = Format::parse(&value);
        assert_eq!(parsed.is_err(), is_refused, "{:.200}", value.to_string());
        // It may be refused here, too; nothing more is promised.
        let _ = parsed.map(|format| qwen().1.begin(&format.unwrap()).is_ok());
    }
}

#[test]
fn bad_formats_are_refused_with_a_reason() {
    let reason = |value: Value| {
        let begun =
            Format::parse(&value).and_then(|format| qwen().1.begin(&format.unwrap()).map(|_| ()));
        match begun {
            Err(Error::Option { key, reason }) if key == "response_format" => reason,
            other => panic!("{value}: {other:?}"),
        }
    };
    assert_eq!(Format::parse(&json!({ "type": "text" })), Ok(None));
    assert!(reason(json!({})).starts_with("`type` is one of"));
    assert!(reason(json!("json")).starts_with("`type` is one of"));
    assert!(reason(json!({ "type": "regex" })).starts_with("wants the text `regex`"));
    assert!(reason(json!({ "type": "json_schema" })).starts_with("wants `json_schema`"));
    let of_schema = |schema: Value| {
        reason(json!({ "type": "json_schema", "json_schema": { "schema": schema } }))
    };
    assert!(of_schema(json!(5)).contains("neither an object"));
    let deep = (0..80).fold(json!({}), |inner, _| json!({ "items": inner }));
    assert!(of_schema(deep).ends_with("nested more than 64 deep"));
    assert!(of_schema(json!({ "type": "colour" })).contains("colour"));
    assert!(of_schema(json!({ "$ref": "#/$defs/none" })).len() > 5);
    for regex in ["(".to_string(), "a".repeat(300) + "("] {
        let unclosed = reason(json!({ "type": "regex", "regex": regex }));
        assert!(unclosed.contains("unclosed group"), "{unclosed}");
    }
    let pattern = of_schema(json!({ "type": "string", "pattern": "a{2,1}" }));
    assert!(pattern.contains("error: "), "{pattern}");
    assert!(reason(json!({ "type": "grammar", "grammar": "start: none" })).len() > 5);
    assert!(reason(json!({ "type": "grammar", "grammar": "" })).len() > 5);
    let long = json!({ "type": "regex", "regex": "x".repeat(MAX_FORMAT_BYTES) });
    assert!(reason(long).ends_with("are allowed"));
}
