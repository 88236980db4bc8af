//! Encoding speed against Python `tiktoken`: the same text, one thread each, in one run.
//!
//! `cargo bench --bench tokenizer`. Python, with tiktoken installed, is `$QWEN_PYTHON` or
//! `.venv/bin/python`. The ids are compared before any figure is printed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qwen::text::tokenizer::{Specials, Tokenizer};

const RUNS: usize = 5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `benches/tokenizer.py action path`; what it printed.
fn python(action: &str, path: &Path) -> String {
    let python = std::env::var_os("QWEN_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| root().join(".venv/bin/python"));
    let mut command = Command::new(&python);
    let output = command.arg(root().join("benches/tokenizer.py")).arg(action).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn seconds_of<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

fn main() {
    let corpus = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer_corpus.txt");
    python("corpus", &corpus);
    let text = std::fs::read_to_string(&corpus).unwrap();
    let (open_seconds, tokenizer) =
        seconds_of(|| Tokenizer::open(&root().join("demo/vocabulary")).unwrap());

    let python_seconds: f64 = python("encode", &corpus).trim().parse().unwrap();
    let python_ids = std::fs::read(corpus.with_extension("ids")).unwrap();
    let runs: Vec<(f64, Vec<u32>)> =
        (0..RUNS).map(|_| seconds_of(|| tokenizer.encode(&text, Specials::AsText))).collect();
    for (_, ids) in &runs {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert!(bytes == python_ids, "the ids are not those of tiktoken");
    }

    let own_seconds = runs.iter().map(|(seconds, _)| *seconds).fold(f64::INFINITY, f64::min);
    let mb_per_s = |seconds: f64| text.len() as f64 / 1e6 / seconds;
    println!("text        {:6.2} MB, {} tokens", text.len() as f64 / 1e6, runs[0].1.len());
    println!("open        {:6.0} ms", open_seconds * 1e3);
    println!("libqwen     {:6.2} MB/s", mb_per_s(own_seconds));
    println!("tiktoken    {:6.2} MB/s", mb_per_s(python_seconds));
    println!("ratio       {:6.2}  (above 1: libqwen is faster)", python_seconds / own_seconds);
}
