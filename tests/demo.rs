//! The demo model through the engine: its greedy text is that of a float64 forward pass in numpy
//! (`tests/data/oracle.py`), however the prompt is cut and however many ranks
//! share the model. `make demo-model` makes the model.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::Path;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/chat-model");

fn open(options: &EngineOptions) -> Engine {
    assert!(
        Path::new(FOLDER).join("config.json").is_file(),
        "no demo model at {FOLDER}: run `make demo-model`"
    );
    Engine::open(Path::new(FOLDER), options, None, &mut |_| true).expect("the demo model opens")
}

fn greedy(engine: &Engine, question: &str, max_tokens: usize) -> String {
    let mut params = engine.generation_defaults();
    params.sampling.temperature = 0.0;
    params.sampling.repetition_penalty = 1.0;
    params.max_tokens = max_tokens;
    let session = Session::new(engine, None);
    let mut streamed = String::new();
    let reply = session
        .chat(question, &params, &mut |event| {
            streamed.push_str(&event.text);
            Flow::Continue
        })
        .expect("a reply");
    assert_eq!(streamed, reply.text, "the stream is the reply");
    reply.text
}

#[test]
fn the_capital_of_france_is_paris() {
    let engine = open(&EngineOptions::default());
    assert_eq!(
        greedy(&engine, "What is the capital of France?", 32),
        "The capital of France is Paris."
    );
}

#[test]
fn greedy_text_is_golden_however_the_prompt_is_cut() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("data/demo_greedy.json")).expect("JSON");
    let golden = golden["text"].as_str().expect("text");
    let question = "What are the planets of the solar system, in order?";
    for chunk in [512, 7] {
        let options = EngineOptions { prefill_chunk_tokens: chunk, ..EngineOptions::default() };
        assert_eq!(greedy(&open(&options), question, 64), golden, "chunk {chunk}");
    }
    let options = EngineOptions { tensor_parallel: 3, ..EngineOptions::default() };
    assert_eq!(greedy(&open(&options), question, 64), golden, "three ranks");
}
