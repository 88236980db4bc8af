//! The chat program as its user meets it: commands, settings that count, Ctrl-C.
//!
//! Runs build/bin/chat (`make examples`) on the demo model (`make demo-model`) with a pipe as its
//! input.

// Clippy knows test functions, but not their helpers: those may stop the test, too.
#![allow(clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

fn made(path: &str, target: &str) -> PathBuf {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(full.exists(), "{path} is missing: run `make {target}`");
    full
}

fn start(arguments: &[&str]) -> Child {
    Command::new(made("build/bin/chat", "examples"))
        .arg("--model")
        .arg(made("demo/chat-model", "demo-model"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a running chat")
}

/// What the program writes when it is told `lines`.
fn talk(arguments: &[&str], lines: &str) -> Output {
    let mut chat = start(arguments);
    // A program that refuses its arguments reads nothing.
    let _ = chat.stdin.take().expect("its input").write_all(lines.as_bytes());
    chat.wait_with_output().expect("its output")
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn one_prompt_has_one_answer_and_always_the_same() {
    let ask = ["--prompt", "  What is the capital of France?\n"];
    let (first, second) = (talk(&ask, ""), talk(&ask, ""));
    assert!(first.status.success());
    assert!(said(&first).0.contains("Paris"), "{first:?}");
    assert!(said(&first).1.contains("loading: 100 %"), "{first:?}");
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn seeds_and_settings_count() {
    let answer = |arguments: &[&str]| {
        let mut all = vec!["--prompt", "Tell me a story.", "--conf", "max_tokens=30"];
        all.extend(arguments);
        said(&talk(&all, "")).0
    };
    let hot = ["--conf", "temperature=1.5", "--conf", "top_p=1", "--seed"];
    let seeded = |seed| answer(&[&hot[..], &[seed]].concat());
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
    assert_eq!(answer(&["--conf", "stop=\" \""]).trim().split(' ').count(), 1);
    assert_ne!(answer(&["--system", "You are a pirate."]), answer(&[]));
}

#[test]
fn history_is_kept_shown_and_forgotten() {
    let script = "\n  \n:conf max_tokens=5\nHello.\n:his\n:regenerate\n:system Be brief.\n:his\n\
                  :clear-his\n:history\n:seed 7\n:seed\n:conf top_p=9\n:conf tempo=1\n:reset-conf\n\
                  :seed x\n:help\n:quit\nnever said\n";
    let output = talk(&["--conf", "temperature=0"], script);
    let (out, err) = said(&output);
    assert!(output.status.success());
    assert_eq!(out.matches("User: Hello.").count(), 2, "{out}");
    assert!(out.contains("System: Be brief.\nUser: Hello."), "{out}");
    assert!(out.contains("System: Be brief.\nNothing has been said."), "{out}");
    assert_eq!(out.matches("Seed: 7").count(), 2, "{out}");
    assert!(out.contains("Yours: {\"temperature\":0.0,\"max_tokens\":5"), "{out}");
    assert!(out.contains("Ctrl-D"), "{out}");
    assert_eq!(err.matches("say something").count(), 2, "{err}");
    assert!(err.contains("`top_p`") && err.contains("`tempo`"), "{err}");
    assert!(err.contains("a seed is a whole number"), "{err}");
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, status, wanted) in [
        (&["--tempo", "1"][..], 2, "--tempo is not known"),
        (&["--seed"][..], 2, "--seed wants a value"),
        (&["--seed", "-1"][..], 2, "--seed wants a number"),
        (&["--prompt", " \n"][..], 2, "--prompt is empty"),
        (&["--conf", "top_p=9"][..], 1, "`top_p`"),
        (&["--model", "/nowhere"][..], 1, "/nowhere"),
    ] {
        let output = talk(arguments, "");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(said(&output).1.contains(wanted), "{arguments:?}: {output:?}");
    }
}

#[test]
fn interrupt_stops_the_answer_and_not_the_program() {
    let mut chat = start(&["--conf", "max_tokens=1500", "--conf", "ignore_eos=true"]);
    let mut input = chat.stdin.take().expect("its input");
    let mut output = BufReader::new(chat.stdout.take().expect("its output"));
    let mut greeting = String::new();
    output.read_line(&mut greeting).expect("a greeting");
    input.write_all(b"Count to a thousand.\n").expect("a question");
    assert!(!output.fill_buf().expect("the first words").is_empty());
    let process = chat.id().to_string();
    assert!(Command::new("kill").args(["-INT", &process]).status().expect("kill").success());
    input.write_all(b":history\n:quit\n").expect("commands");
    drop(input);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut output, &mut rest).expect("the rest");
    let ended = chat.wait_with_output().expect("its end");
    assert!(ended.status.success());
    assert!(said(&ended).1.contains("(stopped; this answer is not remembered)"), "{ended:?}");
    assert!(rest.contains("Nothing has been said."), "{rest}");
}
