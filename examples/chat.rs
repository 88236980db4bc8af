//! Asks a model one question and prints the answer as it is made: chat.c in Rust.
//!
//! ```text
//! chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] [--temperature X] [--seed N]
//! ```
//!
//! A Rust program needs no C ABI: it uses the crate.

// This is a program, and may print.
#![allow(clippy::print_stderr)]

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions, Event};

const USAGE: &str = "usage: chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] \
                     [--temperature X] [--seed N]";

#[derive(Default)]
struct Flags {
    model: Option<String>,
    prompt: Option<String>,
    system: Option<String>,
    max_tokens: Option<usize>,
    temperature: f32,
    seed: Option<u64>,
}

/// The flags, or what is wrong with them.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Flags, String> {
    let mut flags = Flags::default();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let wrong = |reason: String| format!("{name}: {reason}");
        match name.as_str() {
            "--model" => flags.model = Some(value),
            "--prompt" => flags.prompt = Some(value),
            "--system" => flags.system = Some(value),
            "--max-tokens" => {
                flags.max_tokens = Some(value.parse().map_err(|e| wrong(format!("{e}")))?);
            }
            "--temperature" => {
                flags.temperature = value.parse().map_err(|e| wrong(format!("{e}")))?;
            }
            "--seed" => flags.seed = Some(value.parse().map_err(|e| wrong(format!("{e}")))?),
            _ => return Err(USAGE.to_string()),
        }
    }
    Ok(flags)
}

/// Prints what is new; ends the reply where nobody takes it.
fn print(event: &Event) -> Flow {
    let mut out = std::io::stdout();
    match out.write_all(event.text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Cancel,
    }
}

fn chat(flags: Flags) -> Result<(), String> {
    let (Some(model), Some(prompt)) = (flags.model, flags.prompt) else {
        return Err(USAGE.to_string());
    };
    let said = |error: qwen::error::Error| error.to_string();
    let engine = Engine::open(Path::new(&model), &EngineOptions::default(), None, &mut |_| true)
        .map_err(said)?;
    let mut params = engine.generation_defaults();
    params.sampling.temperature = flags.temperature;
    params.sampling.seed = flags.seed.unwrap_or(params.sampling.seed);
    params.max_tokens = flags.max_tokens.unwrap_or(params.max_tokens);
    Session::new(&engine, flags.system).chat(&prompt, &params, &mut print).map_err(said)?;
    writeln!(std::io::stdout()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(chat) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
