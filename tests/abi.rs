//! The ABI as a test: the committed header is what the code says, the symbols are those promised,
//! and the C and C++ programs under tests/c run against the library that `make lib` links.
//!
//! `QWEN_BLESS=1` rewrites include/qwen.h and tests/abi/symbols.txt instead of comparing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of src/capi that the header is made of, in the order it shows them.
const HEADER_FILES: &[&str] = &[
    "codes",
    "errors",
    "buffers",
    "version",
    "options",
    "log",
    "engine",
    "session",
    "event",
    "request",
    "queue",
    "tokenizer",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a committed file with what it should be, or writes it.
fn compare(path: &Path, wanted: &str, hint: &str) {
    if std::env::var_os("QWEN_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(found.lines().count().min(wanted.lines().count())) + 1;
    assert!(found == wanted, "{}:{line} is out of date: {hint}", path.display());
}

#[test]
fn header_is_what_the_code_says() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let versions = format!(
        "\n/** The version of this header; qwen_version() is the library's. */\n\
         #define QWEN_VERSION \"{}\"\n#define QWEN_VERSION_MAJOR {}\n\
         #define QWEN_VERSION_MINOR {}\n#define QWEN_VERSION_PATCH {}\n",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    );
    let mut builder = cbindgen::Builder::new().with_config(config).with_after_include(versions);
    for file in HEADER_FILES {
        builder = builder.with_src(root().join(format!("src/capi/{file}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    let header = String::from_utf8(header).unwrap();
    compare(&root().join("include/qwen.h"), &header, "run `make header`");
}
