//! The demo model through the engine: its greedy text is that of a float64 forward pass in numpy
//! (`tests/data/oracle.py`), however the prompt is cut and however many ranks
//! share the model. `make demo-model` makes the model.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::Path;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/chat-model");

fn open(options: &EngineOptions) -> Engine {
    open_folder(FOLDER, options)
}

fn open_folder(folder: &str, options: &EngineOptions) -> Engine {
    assert!(
        Path::new(folder).join("config.json").is_file(),
        "no demo model at {folder}: run `make fixtures`"
    );
    Engine::open(Path::new(folder), options, None, &mut |_| true).expect("the demo model opens")
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
    let options = EngineOptions { split: "layers".to_string(), ..options };
    assert_eq!(greedy(&open(&options), question, 64), golden, "three ranks of whole layers");
}

/// Quantised to four bits the model still knows what it is asked, and its reply is that of the oracle.
#[test]
fn the_quantised_model_answers_sensibly_and_as_the_oracle_does() {
    let folder = format!("{FOLDER}-int4");
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("data/demo_int4_greedy.json")).expect("JSON");
    let golden = golden["text"].as_str().expect("text");
    let question = "How do plants make food?";
    for (chunk, ranks) in [(512, 1), (7, 1), (512, 3)] {
        let options = EngineOptions {
            backend: "cpu".to_string(),
            prefill_chunk_tokens: chunk,
            tensor_parallel: ranks,
            ..EngineOptions::default()
        };
        let engine = open_folder(&folder, &options);
        assert_eq!(greedy(&engine, question, 48), golden, "chunk {chunk}, {ranks} ranks");
        let capital = greedy(&engine, "What is the capital of France?", 32);
        assert_eq!(capital, "The capital of France is Paris.");
    }
    let engine = open_folder(&format!("{FOLDER}-int8"), &EngineOptions::default());
    let capital = greedy(&engine, "What is the capital of France?", 32);
    assert_eq!(capital, "The capital of France is Paris.");
}
