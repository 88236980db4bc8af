//! What a format costs for each token: the mask over Qwen-1's vocabulary, and taking the token.
//!
//! `cargo bench --bench grammar`. The replies are given, and checked to be allowed token by token.

// A measurement prints, and stops where something is missing.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use qwen::grammar::{Format, Grammars};
use qwen::text::tokenizer::{Specials, Tokenizer};
use serde_json::{Value, json};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/vocabulary");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let start = Instant::now();
    let grammars = Grammars::new(tokenizer.ordinary_tokens(), tokenizer.im_end()).unwrap();
    println!("vocabulary made ready: {} ms", start.elapsed().as_millis());
    let person = json!({ "type": "object", "properties": { "name": { "type": "string" },
        "age": { "type": "integer" }, "tags": { "type": "array", "items": { "type": "string" } } },
        "required": ["name", "age", "tags"], "additionalProperties": false });
    let schema = json!({ "type": "json_schema", "json_schema": { "schema": person } });
    let reply = r#"{"name": "Ada Lovelace, 女士", "age": 36, "tags": ["mathematics", "engines", "poetry"]}"#;
    measure(&tokenizer, &grammars, "json_schema", &schema, reply);
    measure(&tokenizer, &grammars, "json_object", &json!({ "type": "json_object" }), reply);
    let regex = json!({ "type": "regex", "regex": "[a-z ]{1,80}: [0-9]+(\\.[0-9]+)?" });
    measure(&tokenizer, &grammars, "regex", &regex, "the answer to all of it: 42.0");
}

fn measure(tokenizer: &Tokenizer, grammars: &Grammars, name: &str, format: &Value, reply: &str) {
    let format = Format::parse(format).unwrap().unwrap();
    let ids = tokenizer.encode(reply, Specials::AsText);
    let start = Instant::now();
    let mut state = grammars.begin(&format).unwrap();
    let compile_us = start.elapsed().as_micros();
    let mut logits = vec![0.0_f32; tokenizer.num_tokens()];
    let mut times_us = Vec::new();
    for &id in &ids {
        logits.fill(0.0);
        let start = Instant::now();
        state.mask(&mut logits).unwrap();
        let allowed = logits[id as usize] == 0.0;
        state.accept(id).unwrap();
        times_us.push(start.elapsed().as_secs_f64() * 1e6);
        assert!(allowed);
    }
    let first = times_us[0];
    times_us.sort_by(f64::total_cmp);
    println!(
        "{name}: compiled in {compile_us} us; {} tokens, mask and accept: median {:.0} us, largest {:.0} us, \
         first {first:.0} us",
        ids.len(),
        times_us[times_us.len() / 2],
        times_us[times_us.len() - 1],
    );
}
