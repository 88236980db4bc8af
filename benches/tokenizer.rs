//! Encoding speed against Python `tiktoken`: the same texts, one thread each, in one run.
//!
//! `cargo bench --bench tokenizer`. Python, with tiktoken installed, is `$QWEN_PYTHON` or
//! `.venv/bin/python`. The ids are compared before any figure is printed. Speeds are medians of
//! five runs in decimal MB/s of UTF-8; both sides give their ids as a list of their language.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program, no library"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qwen::text::tokenizer::{Specials, Tokenizer};

const RUNS: usize = 5;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let start = Instant::now();
    let tokenizer = Tokenizer::open(&root.join("demo/vocabulary"))
        .unwrap_or_else(|error| panic!("{error}: `make test` fetches it"));
    println!("open: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer");
    python(root, "corpus", &folder);
    println!("text          MB    tokens   libqwen MB/s   tiktoken MB/s   ratio");
    for name in ["english", "chinese", "code", "mixed"] {
        compare(&tokenizer, root, &folder.join(name).with_extension("txt"));
    }
}

/// Prints the row of one text.
fn compare(tokenizer: &Tokenizer, root: &Path, path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let (own_seconds, ids) = encode(tokenizer, &text);
    let printed = python(root, "encode", path);
    let python_seconds: Vec<f64> =
        printed.split_whitespace().map(|seconds| seconds.parse().unwrap()).collect();
    let python_ids = std::fs::read(path.with_extension("ids")).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
    assert!(bytes == python_ids, "{}: the ids are not those of tiktoken", path.display());

    let (own, python) = (median(own_seconds), median(python_seconds));
    let megabytes = text.len() as f64 / 1e6;
    println!(
        "{:8} {megabytes:7.2} {:9} {:14.1} {:15.1} {:7.2}",
        path.file_stem().unwrap_or_default().to_string_lossy(),
        ids.len(),
        megabytes / own,
        megabytes / python,
        python / own,
    );
}

/// The seconds of each run, and the ids.
fn encode(tokenizer: &Tokenizer, text: &str) -> (Vec<f64>, Vec<u32>) {
    let mut ids = Vec::new();
    let run = |_| {
        let start = Instant::now();
        ids = tokenizer.encode(std::hint::black_box(text), Specials::AsText);
        start.elapsed().as_secs_f64()
    };
    ((0..RUNS).map(run).collect(), ids)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Runs `benches/tokenizer.py action path`; what it printed.
fn python(root: &Path, action: &str, path: &Path) -> String {
    let python = std::env::var_os("QWEN_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| root.join(".venv/bin/python"));
    let mut command = Command::new(&python);
    let output = command.arg(root.join("benches/tokenizer.py")).arg(action).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
