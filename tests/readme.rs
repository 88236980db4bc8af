//! The README and the pages of C, C++ and Rust are true: their programs compile, link and answer, their
//! commands and paths exist, and what else they show is part of a program that runs. (The pages of Go
//! and Java are their own tests' matter.)
//!
//! Reads the pages and runs the compilers on what they show. Needs `make lib`, `make examples` and
//! `make demo-model`; `make test` makes them first.

// Clippy knows test functions, but not their helpers: those may stop the test, too.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "pages/page.rs"]
#[allow(clippy::print_stdout, clippy::print_stderr)]
mod page;

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
fn build(name: &str, program: &str, language: &str) -> PathBuf {
    let (compiler, standard) = match language {
        "c" => ("cc", "-std=c99"),
        _ => ("c++", "-std=c++17"),
    };
    let folder = root().join("build/readme");
    std::fs::create_dir_all(&folder).expect("a folder for the programs");
    let source = folder.join(format!("{name}.{language}"));
    std::fs::write(&source, program).expect("a written program");
    let executable = folder.join(format!("{name}-{language}"));
    let library = made("build/lib/libqwen.so", "lib");
    let library = library.parent().expect("its folder");
    run(Command::new(compiler)
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-pthread"])
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

/// Code without indentation.
fn flat(code: &str) -> String {
    code.lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// What `page` shows in `language` is the README's whole program, or part of one of `programs`; all of
/// it is there.
fn shows_what_runs(page: &str, language: &str, whole: &str, programs: &[&str]) {
    let text = read(page);
    let fences = fences(&text, language);
    assert!(fences.len() > 5, "{page} shows {} snippets", fences.len());
    let known: Vec<String> = programs.iter().map(|path| flat(&read(path))).collect();
    for fence in &fences {
        let is_known = *fence == whole || known.iter().any(|code| code.contains(&flat(fence)));
        assert!(is_known, "{page}: no program that runs has this code:\n{fence}");
    }
    for heading in
        ["Install", "Hello", "Streaming", "Cancellation", "Concurrency", "Errors", "Deployment"]
    {
        assert!(text.contains(&format!("\n## {heading}\n")), "{page} has no {heading}");
    }
}

/// The README's program of a language answers, and so does the code of its page.
fn answers(language: &str) -> String {
    let readme = read("README.md");
    let whole = only(&fences(&readme, language));
    assert!(whole.lines().count() <= 25, "the smallest program has grown");
    let model = made(MODEL, "demo-model");
    answers_paris(Command::new(build("program", whole, language)).arg(&model));
    let page = read(&format!("tests/pages/page.{language}"));
    run(Command::new(build("page", &page, language)).arg(&model));
    whole.to_string()
}

#[test]
fn the_c_programs_answer() {
    shows_what_runs("bindings/c/README.md", "c", &answers("c"), &["tests/pages/page.c"]);
}

#[test]
fn the_cpp_programs_answer() {
    shows_what_runs("bindings/cpp/README.md", "cpp", &answers("cpp"), &["tests/pages/page.cpp"]);
}

#[test]
fn the_rust_code_runs() {
    page::run(&made(MODEL, "demo-model")).expect("code that works");
    let programs = ["tests/pages/page.rs", "examples/chat.rs"];
    shows_what_runs("bindings/rust/README.md", "rust", "", &programs);
}

/// The table shows each language's program and page.
#[test]
fn the_table_has_every_language() {
    let readme = read("README.md");
    let section = readme.split("\n## ").find(|part| part.starts_with("The same chat"));
    let rows: Vec<&str> =
        section.expect("the table").lines().filter(|line| line.contains("](")).collect();
    let twins = read("tests/twins.sh");
    let programs = twins.lines().filter(|line| line.starts_with("    \"")).count();
    assert_eq!(rows.len(), programs, "the README and tests/twins.sh have different languages");
    for row in rows {
        let code = row.split('`').nth(1).expect("code");
        let behind = row.rsplit('`').next().unwrap_or_default();
        let links: Vec<&str> = behind
            .split("](")
            .skip(1)
            .map(|link| link.split(')').next().unwrap_or_default())
            .collect();
        assert_eq!(links.len(), 2, "{row}");
        for link in &links {
            assert!(root().join(link).is_file(), "{link} is not in the tree");
        }
        // The call is the program's, whatever its arguments are called there.
        let call = &code[..=code.find('(').expect("a call")];
        let call = call.rsplit([' ', '.']).next().unwrap_or_default();
        assert!(read(links[0]).contains(call), "{} has no {call}", links[0]);
    }
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
