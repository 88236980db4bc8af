//! Opening engines on folders that are wrong as a whole: each part may be sound by itself.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions, LogHook, LogLevel};
use qwen::error::Error;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn fails(folder: &Path, options: &EngineOptions) -> Error {
    match Engine::open(folder, options, None, &mut |_| true) {
        Ok(_) => panic!("{} opened", folder.display()),
        Err(error) => error,
    }
}

/// A copy of a tiny checkpoint for a test to spoil.
fn copy(name: &str, to: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwen-open-{}-{to}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    for entry in std::fs::read_dir(data(name)).expect("the tiny checkpoint") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

#[test]
fn a_vocabulary_with_more_ids_than_rows_is_refused() {
    let error = fails(&data("hostile/vocabulary-over-rows"), &EngineOptions::default());
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("rows"), "{error}");
}

/// Cut at a line's end it is a sound vocabulary, of another model: every special id moves.
#[test]
fn a_vocabulary_cut_short_is_refused() {
    let folder = copy("tiny/plain-f32", "cut");
    let path = folder.join("qwen.tiktoken");
    let text = std::fs::read_to_string(&path).expect("the vocabulary");
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&path, lines[..lines.len() - 5].join("\n")).expect("a shorter vocabulary");
    let error = fails(&folder, &EngineOptions::default());
    std::fs::remove_dir_all(&folder).expect("clean up");
    assert!(error.to_string().contains("eos_token_id"), "{error}");
}

#[test]
fn a_vocabulary_far_shorter_than_the_model_is_refused_without_further_evidence() {
    let folder = copy("tiny/plain-f32", "far");
    edit_config(&folder, "vocab_size", 5000);
    std::fs::remove_file(folder.join("generation_config.json")).expect("removed");
    // Random weights have as many rows as the configuration says.
    let options = EngineOptions { weights: "random".to_string(), ..EngineOptions::default() };
    let error = fails(&folder, &options);
    std::fs::remove_dir_all(&folder).expect("clean up");
    assert!(error.to_string().contains("it is cut short"), "{error}");
}

/// The vocabulary is read beside the rest; what is told does not depend on which is quicker.
#[test]
fn a_bad_vocabulary_is_told_of_after_all_else_that_is_bad() {
    let folder = copy("tiny/plain-f32", "precedence");
    std::fs::write(folder.join("qwen.tiktoken"), "no vocabulary").expect("written");
    let options = EngineOptions::default();
    let of_vocabulary = fails(&folder, &options);
    assert!(of_vocabulary.to_string().contains("qwen.tiktoken"), "{of_vocabulary}");
    let too_large = EngineOptions { kv_cache_tokens: u32::MAX as usize, ..options.clone() };
    assert!(matches!(fails(&folder, &too_large), Error::OutOfHostMemory { .. }));
    let wrong = EngineOptions { backend: "abacus".to_string(), ..options.clone() };
    assert!(matches!(fails(&folder, &wrong), Error::Option { .. }));
    std::fs::remove_file(folder.join("model.safetensors")).expect("removed");
    assert!(fails(&folder, &options).to_string().contains("model.safetensors"));
    std::fs::remove_file(folder.join("config.json")).expect("removed");
    assert!(fails(&folder, &options).to_string().contains("config.json"));
    std::fs::remove_dir_all(&folder).expect("clean up");
}

#[test]
fn opening_tells_how_long_its_parts_took() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let ears = Arc::clone(&heard);
    let log: LogHook = Arc::new(move |level, _, line| {
        if level == LogLevel::Info {
            ears.lock().expect("nobody panics").push(line.to_string());
        }
    });
    let opened =
        Engine::open(&data("tiny/plain-f32"), &EngineOptions::default(), Some(log), &mut |_| true);
    drop(opened.expect("it opens"));
    let lines = heard.lock().expect("nobody panics");
    let stages = ["opened in ", "files and device ", "vocabulary", "weights ", "after them "];
    let line = lines.iter().find(|line| stages.iter().all(|stage| line.contains(stage)));
    assert!(line.is_some(), "{lines:?}");
}

#[test]
fn more_layers_than_the_files_hold_are_refused_before_loading() {
    let folder = copy("tiny/plain-f32", "more-layers");
    edit_config(&folder, "num_hidden_layers", 3);
    let error = fails(&folder, &EngineOptions::default());
    let estimate = Engine::estimate(&folder, &EngineOptions::default());
    std::fs::remove_dir_all(&folder).expect("clean up");
    assert!(error.to_string().contains("transformer.h.2."), "{error}");
    assert_eq!(estimate.err(), Some(error), "no weight need be read for it");
}

/// Sets `key` of the folder's config.json.
fn edit_config(folder: &Path, key: &str, value: usize) {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).expect("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config[key] = value.into();
    std::fs::write(&path, config.to_string()).expect("a config");
}

#[test]
fn fewer_layers_than_the_files_hold_are_refused() {
    let folder = copy("tiny/plain-f32", "layers");
    edit_config(&folder, "num_hidden_layers", 1);
    let error = fails(&folder, &EngineOptions::default());
    std::fs::remove_dir_all(&folder).expect("clean up");
    assert!(error.to_string().contains("num_hidden_layers"), "{error}");
}

#[test]
fn a_world_that_does_not_divide_the_heads_is_refused() {
    let options = EngineOptions { tensor_parallel: 3, ..EngineOptions::default() };
    let error = fails(&data("tiny/plain-f32"), &options);
    assert!(matches!(&error, Error::Option { key, .. } if key == "tensor_parallel"), "{error}");
    assert!(error.to_string().contains("[1, 2, 4]"), "{error}");
}

/// Ranks are loaded side by side; what is told is what happened, and nobody waits for ever.
#[test]
fn ranks_load_side_by_side_and_fail_as_one_would() {
    let options = EngineOptions { tensor_parallel: 4, ..EngineOptions::default() };
    let folder = data("tiny/plain-f32");
    let here = std::thread::current().id();
    let mut most = 0;
    let opened = Engine::open(&folder, &options, None, &mut |progress| {
        assert_eq!(std::thread::current().id(), here, "the caller's own thread");
        assert!(progress.done_bytes >= most && progress.done_bytes <= progress.total_bytes);
        most = progress.done_bytes;
        true
    });
    drop(opened.expect("it opens"));
    for patience in [0, 1, 5] {
        let mut calls = 0;
        let cancelled = Engine::open(&folder, &options, None, &mut |_| {
            calls += 1;
            calls <= patience
        });
        assert_eq!(cancelled.err(), Some(Error::Cancelled), "after {patience}");
        assert_eq!(calls, patience + 1, "who has said no is not asked again");
    }
    let folder = copy("tiny/plain-f32", "ranks");
    edit_config(&folder, "intermediate_size", 8 * 1024);
    let (one, four) = (fails(&folder, &EngineOptions::default()), fails(&folder, &options));
    std::fs::remove_dir_all(&folder).expect("clean up");
    assert_eq!(one, four, "the same error however many ranks meet it");
}

#[test]
fn more_ranks_than_layers_are_refused() {
    let split = "layers".to_string();
    let options = EngineOptions { tensor_parallel: 3, split, ..EngineOptions::default() };
    let error = fails(&data("tiny/plain-f32"), &options);
    assert!(matches!(&error, Error::Option { key, .. } if key == "tensor_parallel"), "{error}");
    assert!(error.to_string().contains("2 layers"), "{error}");
    assert_eq!(Engine::estimate(&data("tiny/plain-f32"), &options).err(), Some(error));
}

#[test]
fn an_unknown_split_is_refused() {
    let options = EngineOptions { split: "rows".to_string(), ..EngineOptions::default() };
    let error = fails(&data("tiny/plain-f32"), &options);
    assert!(matches!(&error, Error::Option { key, .. } if key == "split"), "{error}");
}

/// Whole layers are the same arithmetic: the reply of one rank, also from a copy of the weights, of
/// which nothing is cut.
#[test]
fn an_engine_of_whole_layers_replies_as_one_rank_does() {
    let folder = data("tiny/plain-f32");
    let reply = |ranks: usize, weights: &str| {
        let options = EngineOptions {
            backend: "cpu".to_string(),
            split: "layers".to_string(),
            weights: weights.to_string(),
            tensor_parallel: ranks,
            max_context_tokens: 200,
            ..EngineOptions::default()
        };
        let estimate = Engine::estimate(&folder, &options).expect("an estimate");
        let engine = Engine::open(&folder, &options, None, &mut |_| true).expect("it opens");
        let info = engine.info();
        assert_eq!((&info["split"], &info["tensor_parallel"]), (&"layers".into(), &ranks.into()));
        assert_eq!(info["rank_layers"], serde_json::json!(vec![2 / ranks; ranks]));
        let mut params = engine.generation_defaults();
        params.sampling.temperature = 0.0;
        params.max_tokens = 20;
        params.ignore_eos = true;
        let session = Session::new(&engine, None);
        let chat = session.chat("Hello.", &params, &mut |_| Flow::Continue);
        (chat.expect("a reply").text, estimate.weight_bytes)
    };
    let want = reply(1, "map");
    assert!(!want.0.is_empty());
    assert_eq!(reply(2, "map"), want);
    assert_eq!(reply(2, "copy"), want);
}

/// Estimates never wrap, whatever is asked for.
#[test]
fn a_cache_that_cannot_fit_is_refused_with_the_numbers() {
    let options = EngineOptions { kv_cache_tokens: u32::MAX as usize, ..EngineOptions::default() };
    let folder = data("tiny/plain-f32");
    let estimate = Engine::estimate(&folder, &options).expect("an estimate");
    assert!(!estimate.fits && estimate.kv_cache_bytes > 1 << 36);
    let error = fails(&folder, &options);
    assert!(matches!(error, Error::OutOfHostMemory { .. }), "{error}");
}

#[test]
fn loading_can_be_cancelled() {
    let opened =
        Engine::open(&data("tiny/plain-f32"), &EngineOptions::default(), None, &mut |_| false);
    assert!(matches!(opened, Err(Error::Cancelled)));
}

/// The replies of a model that has a shape but no weights: its folder needs no weight files.
#[test]
fn random_weights_need_no_files_and_are_always_the_same() {
    let folder = copy("tiny/plain-bf16", "random");
    std::fs::remove_file(folder.join("model.safetensors")).expect("no weights");
    let backend = "cpu".to_string();
    let options = EngineOptions { backend, max_context_tokens: 200, ..EngineOptions::default() };
    assert!(matches!(fails(&folder, &options), Error::NotFound { .. }));
    let random = EngineOptions { weights: "random".to_string(), ..options.clone() };
    let reply = || {
        let engine = Engine::open(&folder, &random, None, &mut |_| true).expect("it opens");
        assert_eq!(engine.info()["weights"], "random");
        let mut params = engine.generation_defaults();
        params.sampling.temperature = 0.0;
        params.max_tokens = 20;
        params.ignore_eos = true;
        let session = Session::new(&engine, None);
        session.chat("Hello.", &params, &mut |_| Flow::Continue).expect("a reply").text
    };
    let (first, second) = (reply(), reply());
    assert!(!first.is_empty());
    assert_eq!(first, second);
    let estimate = Engine::estimate(&folder, &random).expect("an estimate");
    let stored = Engine::estimate(&data("tiny/plain-bf16"), &options).expect("an estimate");
    assert_eq!(estimate.weight_bytes, stored.weight_bytes);
    std::fs::remove_dir_all(&folder).expect("clean up");
}
