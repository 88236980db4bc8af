//! The README is true: its programs compile, link and answer, its commands and paths exist.
//!
//! Reads README.md and runs the compilers on what it shows. Needs `make lib`, `make examples` and
//! `make demo-model`; `make test` makes them first. `QWEN_BLESS=1` copies examples/chat.c into the
//! README where they differ.

// Clippy knows test functions, but not their helpers: those may stop the test, too.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

const MODEL: &str = "demo/chat-model";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `path` under the root, which `make` with `target` brings into being.
fn made(path: &str, target: &str) -> PathBuf {
    let full = root().join(path);
    assert!(full.exists(), "{path} is missing: run `make {target}`");
    full
}

/// The contents of the fenced blocks in `language`.
fn fences<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("\n```{language}\n");
    text.match_indices(&opening)
        .map(|(at, _)| {
            // From the line end before the program, so that an empty one is found as well.
            let rest = &text[at + opening.len() - 1..];
            rest[..rest.find("\n```").expect("a closed fence") + 1].trim_start_matches('\n')
        })
        .collect()
}

fn only<'a>(programs: &[&'a str]) -> &'a str {
    assert_eq!(programs.len(), 1, "one program per language");
    programs[0]
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Compiles `program` as the README says, warnings being errors, and returns the executable.
fn build(program: &str, compiler: &str, standard: &str, extension: &str) -> PathBuf {
    let folder = root().join("build/readme");
    std::fs::create_dir_all(&folder).expect("a folder for the programs");
    let source = folder.join(format!("program.{extension}"));
    std::fs::write(&source, program).expect("a written program");
    let executable = folder.join(format!("program-{extension}"));
    let library = made("build/lib/libqwen.so", "lib");
    let library = library.parent().expect("its folder");
    run(Command::new(compiler)
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .arg(format!("-I{}", root().join("include").display()))
        .arg(&source)
        .args(["-o".as_ref(), executable.as_os_str()])
        .arg(format!("-L{}", library.display()))
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-lqwen"));
    executable
}

fn answers_paris(command: &mut Command) {
    let answer = run(command.arg("What is the capital of France?").current_dir(root()));
    assert!(answer.contains("Paris"), "{answer}");
}

#[test]
fn the_c_program_is_the_example_and_answers() {
    let readme = read("README.md");
    let (shown, example) = (only(&fences(&readme, "c")), read("examples/chat.c"));
    if shown != example && std::env::var_os("QWEN_BLESS").is_some() {
        let old = format!("\n```c\n{shown}```");
        let blessed = readme.replacen(&old, &format!("\n```c\n{example}```"), 1);
        std::fs::write(root().join("README.md"), blessed).expect("a written README");
    } else {
        assert_eq!(shown, example, "README.md and examples/chat.c differ: QWEN_BLESS=1 copies it");
    }
    assert!(example.lines().count() <= 25, "the smallest program has grown");
    let program = build(&example, "cc", "-std=c99", "c");
    answers_paris(Command::new(program).arg(made(MODEL, "demo-model")));
}

#[test]
fn the_cpp_program_answers() {
    let readme = read("README.md");
    let program = build(only(&fences(&readme, "cpp")), "c++", "-std=c++17", "cpp");
    answers_paris(Command::new(program).arg(made(MODEL, "demo-model")));
}

#[test]
fn the_first_command_answers() {
    let chat = made("build/bin/chat", "examples");
    answers_paris(Command::new(chat).arg("--model").arg(made(MODEL, "demo-model")).arg("--prompt"));
}

#[test]
fn every_make_command_exists() {
    let rules = read("Makefile") + &read("build.mk");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
    let readme = read("README.md");
    let targets: Vec<&str> = readme
        .match_indices("make ")
        .filter(|(at, _)| readme[..*at].ends_with(['`', '\n']))
        .map(|(at, make)| &readme[at + make.len()..])
        .map(|rest| &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())])
        .collect();
    assert!(targets.contains(&"chat") && targets.contains(&"test"), "{targets:?}");
    for target in targets {
        assert!(rules.lines().any(|line| line.starts_with(&format!("{target}:"))), "make {target}");
    }
}

#[test]
fn every_path_in_the_tree_exists() {
    let readme = read("README.md");
    let tree = only(&fences(&readme, "text"));
    let mut parent = "";
    for line in tree.lines() {
        let path = line.split_whitespace().next().unwrap_or_default();
        let path = if line.starts_with(' ') { format!("{parent}{path}") } else { path.to_string() };
        assert!(root().join(Path::new(&path)).exists(), "{path} is not in the tree");
        parent = if line.starts_with(' ') { parent } else { line.split(' ').next().unwrap_or("") };
    }
}
