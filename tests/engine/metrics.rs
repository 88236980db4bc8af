//! Metrics: histograms agree with counters and with the clock, and Prometheus's own parser reads the text.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qwen::engine::{Engine, GenerationParams, Request};
use serde_json::Value;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

fn submit(engine: &Engine, seed: u64, len: usize, params: &GenerationParams) -> Request {
    engine.submit_tokens(prompt(seed, len), params, None).expect("accepted")
}

fn histogram(engine: &Engine, name: &str) -> Value {
    let metrics = engine.metrics();
    assert!(metrics["histograms"][name].is_object(), "no histogram {name}");
    metrics["histograms"][name].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// How many values are above the bound next below `seconds`.
fn slower_than(histogram: &Value, seconds: f64) -> u64 {
    let bounds = histogram["bounds"].as_array().expect("bounds");
    let at = bounds.iter().take_while(|bound| number(bound) <= seconds).count();
    let counts = histogram["counts"].as_array().expect("counts");
    counts.iter().skip(at).map(|count| count.as_u64().expect("a count")).sum()
}

/// A load of replies, replies cut short, replies refused in their prompts, and deadlines.
fn load(engine: &Engine) -> u64 {
    let mut dice = Dice(5);
    let mut generated = 0;
    for wave in 0..6 {
        let requests: Vec<Request> = (0..20)
            .map(|n| {
                let n_choices = 1 + dice.roll(3) as u32;
                let deadline_ms = if dice.roll(6) == 0 { 3 } else { 0 };
                let params =
                    GenerationParams { n: n_choices, deadline_ms, ..greedy(1 + dice.roll(60)) };
                submit(engine, wave * 100 + n, 1 + dice.roll(90), &params)
            })
            .collect();
        for request in &requests {
            if dice.roll(4) == 0 {
                std::thread::sleep(Duration::from_micros(dice.roll(3000) as u64));
                request.cancel(dice.roll(2) == 0);
            }
        }
        for request in requests {
            let last = std::iter::from_fn(|| request.next(Some(LONG)).ok()).last();
            generated += last.expect("an end").usage.completion_tokens;
        }
    }
    generated
}

#[test]
fn histograms_count_what_the_counters_count() {
    for mut lab in labs() {
        (lab.num_pages, lab.options.prefill_chunk_tokens) = (60, 48);
        let (engine, control) = lab.start();
        control.slow_down(Duration::from_micros(200));
        let generated = load(&engine);
        let count = |name| histogram(&engine, name)["count"].as_u64().expect("a count");
        let sum = |name| number(&histogram(&engine, name)["sum"]);
        let submitted = metric(&engine, "requests_submitted");
        let ended = ["requests_finished", "requests_cancelled", "requests_failed"];
        let ended = ended.map(|name| metric(&engine, name));
        assert!(ended.iter().all(|count| *count > 0), "{ended:?}");
        assert_eq!(ended.iter().sum::<u64>(), submitted);
        for name in
            ["request_duration_seconds", "request_prompt_tokens", "request_generated_tokens"]
        {
            assert_eq!(count(name), submitted, "{name}");
        }
        let (first, next) =
            (count("time_to_first_token_seconds"), count("time_between_tokens_seconds"));
        assert_eq!(first + next, metric(&engine, "generated_tokens"));
        assert!(first <= count("queue_time_seconds") && count("queue_time_seconds") <= submitted);
        assert_eq!(sum("request_generated_tokens"), generated as f64);
        // Who got a token waited for it longer than in the queue alone.
        assert!(sum("time_to_first_token_seconds") + sum("time_between_tokens_seconds") > 0.0);
        assert!(sum("request_duration_seconds") > sum("queue_time_seconds"));
        for (name, histogram) in engine.metrics()["histograms"].as_object().expect("histograms") {
            let counts = histogram["counts"].as_array().expect("counts");
            let total: u64 = counts.iter().map(|count| count.as_u64().expect("a count")).sum();
            assert_eq!(Some(total), histogram["count"].as_u64(), "{name}");
            assert_eq!(counts.len(), histogram["bounds"].as_array().expect("bounds").len() + 1);
        }
    }
}

/// Held for 60 ms before its first step, then 12 ms a step.
#[test]
fn times_are_those_of_the_clock_from_the_submit_on() {
    for lab in labs() {
        // The fake's time passes where a step is submitted; a rank that draws has the last one ahead.
        let slow = if lab.draws { 3 } else { 4 };
        let (engine, control) = lab.start();
        control.hold();
        let first = submit(&engine, 1, 20, &endless(1));
        control.wait_for_step(1);
        let start = Instant::now();
        // It waits in the queue while the step before it is held.
        let second = submit(&engine, 2, 20, &endless(5));
        std::thread::sleep(Duration::from_millis(60));
        control.slow_down(Duration::from_millis(12));
        control.release();
        read(&first);
        read(&second);
        let took = start.elapsed().as_secs_f64();
        let of = |name: &str| histogram(&engine, name);
        assert!(slower_than(&of("queue_time_seconds"), 0.06) >= 1);
        assert_eq!(slower_than(&of("time_to_first_token_seconds"), 0.06), 2);
        assert!(slower_than(&of("request_duration_seconds"), 0.1) >= 1);
        let between = of("time_between_tokens_seconds");
        assert!(slower_than(&between, 0.01) >= slow && between["count"] == 4, "{between}");
        assert!((0.012 * slow as f64..took).contains(&number(&between["sum"])), "{between}");
        let (queued, token) =
            (of("queue_time_seconds"), number(&of("time_to_first_token_seconds")["sum"]));
        assert!(token > number(&queued["sum"]) + 0.012 && token < 2.0 * (took + 1.0));
        assert_eq!(number(&of("request_prompt_tokens")["sum"]), 40.0);
        assert_eq!(number(&of("request_generated_tokens")["sum"]), 6.0);
    }
}

/// Name with labels -> value, and name -> type; whole lines only.
fn read_text(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut samples, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let mut described = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and help");
            assert!(!help.is_empty() && !kinds.contains_key(name), "{line}");
            described = name.to_string();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, described);
            kinds.insert(name.to_string(), kind.to_string());
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            assert!(name.starts_with(&described), "{line} stands under {described}");
            samples.insert(name.to_string(), value.parse().expect("a number"));
        }
    }
    assert!(text.ends_with('\n'));
    (samples, kinds)
}

#[test]
fn the_text_for_prometheus_says_what_the_json_says() {
    let (engine, _) = lab().start();
    load(&engine);
    let (text, json) = (engine.metrics_prometheus(""), engine.metrics());
    let (samples, kinds) = read_text(&text);
    let mut numbers = 0;
    for (name, value) in json.as_object().expect("an object") {
        let Some(value) = value.as_f64() else { continue };
        let stem = match name.strip_suffix("_us") {
            Some(stem) => format!("qwen_{stem}_seconds"),
            None => format!("qwen_{}", name.replace("pages_", "kv_pages_").replace("_total", "")),
        };
        let total = format!("{stem}_total");
        let (name, scale) = match samples.contains_key(&total) {
            true => (total, if stem.ends_with("_seconds") { 1e-6 } else { 1.0 }),
            false => (stem, 1.0),
        };
        assert!((samples[&name] - value * scale).abs() < 1e-9, "{name}");
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert_eq!(kinds[&name], kind);
        numbers += 1;
    }
    assert_eq!(numbers, 20);
    for (name, histogram) in json["histograms"].as_object().expect("histograms") {
        assert_eq!(kinds[&format!("qwen_{name}")], "histogram");
        let bounds = histogram["bounds"].as_array().expect("bounds");
        let bounds = bounds.iter().map(|bound| number(bound).to_string());
        let mut below = 0.0;
        let counts = histogram["counts"].as_array().expect("counts");
        for (bound, count) in bounds.chain(["+Inf".to_string()]).zip(counts) {
            below += number(count);
            assert_eq!(samples[&format!("qwen_{name}_bucket{{le=\"{bound}\"}}")], below);
        }
        assert_eq!(samples[&format!("qwen_{name}_count")], below);
        assert_eq!(samples[&format!("qwen_{name}_sum")], number(&histogram["sum"]));
    }
    let told = samples.len() - numbers;
    let buckets = |histogram: &Value| histogram["counts"].as_array().expect("counts").len();
    let histograms = json["histograms"].as_object().expect("histograms").values();
    assert_eq!(told, histograms.map(|histogram| buckets(histogram) + 2).sum::<usize>());
}

/// Families and samples as `prometheus_client` of PyPI reads them.
fn parsed(text: &str) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "no {}: run `make fixtures`", python.display());
    let mut child = Command::new(python)
        .arg(root.join("tests/data/read_prometheus.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("python ends");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn prometheus_client_reads_the_text() {
    let (engine, _) = lab().start();
    load(&engine);
    let odd = "a \"quoted\\name\"\nof two lines, \u{5343}\u{95ee}";
    for model in ["", "Qwen-7B-Chat", odd] {
        let text = engine.metrics_prometheus(model);
        let families = parsed(&text);
        assert_eq!(families.len(), 26);
        for family in &families {
            let (name, kind) = (family["name"].as_str().expect("a name"), &family["type"]);
            let samples = family["samples"].as_array().expect("samples");
            assert!(name.starts_with("qwen_") && !name.ends_with("_us"), "{name}");
            let is_histogram = kind == "histogram";
            assert_eq!(samples.len() > 1, is_histogram, "{name}");
            assert!(is_histogram || kind == "gauge" || kind == "counter", "{name} {kind}");
            for sample in samples {
                let label = sample["labels"]["model"].as_str().unwrap_or_default();
                assert_eq!(label, model, "{name}");
            }
        }
        let value = |family: &str, sample: &str| {
            let family = families.iter().find(|it| it["name"] == family).expect("a family");
            let samples = family["samples"].as_array().expect("samples");
            let found = samples.iter().find(|it| it["name"] == sample).expect("a sample");
            number(&found["value"])
        };
        let finished = value("qwen_requests_finished", "qwen_requests_finished_total");
        assert_eq!(finished, metric(&engine, "requests_finished") as f64);
        let ended = value("qwen_request_duration_seconds", "qwen_request_duration_seconds_count");
        assert_eq!(ended, metric(&engine, "requests_submitted") as f64);
    }
}
