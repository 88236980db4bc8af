//! Encoding speed against Python `tiktoken`: the same texts, one thread each, in one run.
//!
//! `cargo bench --bench tokenizer`. Python, with tiktoken installed, is `$QWEN_PYTHON` or
//! `.venv/bin/python`. The ids are compared before any figure is printed. The two take turns, so that
//! a busy machine slows both alike; figures are the fastest run and the median, in decimal MB/s of
//! UTF-8. Both sides give their ids as a list of their language.

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

/// Turns of each side, and runs in a turn; the Python script has its own copy of the latter.
const TURNS: usize = 3;
const RUNS: usize = 5;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let start = Instant::now();
    let tokenizer = Tokenizer::open(&root.join("demo/vocabulary"))
        .unwrap_or_else(|error| panic!("{error}: `make test` fetches it"));
    println!("open: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer");
    python(root, "corpus", &folder);
    println!("text          MB    tokens  libqwen MB/s     tiktoken MB/s    ratio");
    println!("                             best  median     best  median     best  median");
    for name in ["english", "chinese", "code", "mixed"] {
        compare(&tokenizer, root, &folder.join(name).with_extension("txt"));
    }
}

/// Prints the row of one text.
fn compare(tokenizer: &Tokenizer, root: &Path, path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut own, mut tiktoken) = (Vec::new(), Vec::new());
    let mut num_tokens = 0;
    for _ in 0..TURNS {
        let (seconds, ids) = encode(tokenizer, &text);
        let printed = python(root, "encode", path);
        let python_ids = std::fs::read(path.with_extension("ids")).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        assert!(bytes == python_ids, "{}: the ids are not those of tiktoken", path.display());
        own.extend(seconds);
        tiktoken.extend(printed.split_whitespace().map(|number| number.parse::<f64>().unwrap()));
        num_tokens = ids.len();
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let megabytes = text.len() as f64 / 1e6;
    let (best, median) = best_and_median(own);
    let (python_best, python_median) = best_and_median(tiktoken);
    println!(
        "{name:8} {megabytes:7.2} {num_tokens:9} {:7.1} {:7.1} {:8.1} {:7.1} {:8.2} {:7.2}",
        megabytes / best,
        megabytes / median,
        megabytes / python_best,
        megabytes / python_median,
        python_best / best,
        python_median / median,
    );
}

/// The seconds of each run of a turn, and the ids.
fn encode(tokenizer: &Tokenizer, text: &str) -> (Vec<f64>, Vec<u32>) {
    let mut ids = Vec::new();
    let run = |_| {
        let start = Instant::now();
        ids = tokenizer.encode(std::hint::black_box(text), Specials::AsText);
        start.elapsed().as_secs_f64()
    };
    ((0..RUNS).map(run).collect(), ids)
}

fn best_and_median(mut seconds: Vec<f64>) -> (f64, f64) {
    seconds.sort_by(f64::total_cmp);
    (seconds[0], seconds[seconds.len() / 2])
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
