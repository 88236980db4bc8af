//! The code that bindings/rust/README.md shows, in functions that tests/readme.rs runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{CompletionQueue, Engine, EngineOptions, EventKind, GenerationParams};
use qwen::error::{Error, Result};
use qwen::text::chat::{Message, Role};

fn stream(engine: &Engine) -> Result<()> {
    let mut params = engine.generation_defaults();
    params.sampling.temperature = 0.7;
    params.max_tokens = 20;
    let session = Session::new(engine, None);
    let reply = session.chat("My name is Ada.", &params, &mut |event| {
        print!("{}", event.text); // whole characters, as they come
        Flow::Continue
    })?;
    println!("\n{} tokens", reply.usage.completion_tokens);
    Ok(())
}

fn pull(engine: &Engine, params: &GenerationParams) -> Result<()> {
    let messages = [Message::new(Role::User, "Hello!")];
    let request = engine.submit_chat(&messages, params, None)?;
    loop {
        let event = request.next(None)?;
        print!("{}", event.text);
        match event.kind {
            EventKind::Finished => return Ok(()),
            EventKind::Failed => return event.error.map_or(Ok(()), Err),
            _ => {}
        }
    }
}

fn cancel(engine: &Engine, endless: &GenerationParams) {
    let session = Session::new(engine, None);
    let said = std::thread::scope(|scope| {
        let reply =
            scope.spawn(|| session.chat("Count to a thousand.", endless, &mut |_| Flow::Continue));
        while !reply.is_finished() {
            let _ = session.cancel(false); // any thread; `true` keeps what there is
            std::thread::sleep(Duration::from_millis(1));
        }
        reply.join()
    });
    assert!(matches!(said, Ok(Err(Error::Cancelled))));
}

fn many(engine: &Engine, params: &GenerationParams) {
    std::thread::scope(|scope| {
        for question in ["Hello!", "What is a tree?", "Who are you?"] {
            scope.spawn(move || {
                // One batch computes them all.
                Session::new(engine, None).chat(question, params, &mut |_| Flow::Continue)
            });
        }
    });
}

fn queue(engine: &Engine, params: &GenerationParams) -> Result<Vec<String>> {
    let queue = CompletionQueue::new();
    let mut replies = vec![String::new(); 3];
    let requests: Vec<_> = (0..3)
        .map(|tag| engine.submit_tokens(vec![1, 2, 3], params, Some((Arc::clone(&queue), tag))))
        .collect::<Result<_>>()?;
    let mut running = requests.len();
    while running > 0 {
        for event in queue.next(64, None)? {
            replies[event.tag as usize] += &event.text;
            running -= usize::from(matches!(event.kind, EventKind::Finished | EventKind::Failed));
        }
    }
    Ok(replies)
}

fn errors(folder: &Path) {
    match Engine::open(folder, &EngineOptions::default(), None, &mut |_| true) {
        Ok(engine) => println!("{}", engine.info()),
        Err(Error::NotFound { path }) => eprintln!("{} is missing", path.display()),
        Err(error) => eprintln!("{error}"),
    }
}

/// Runs all of it.
pub(crate) fn run(model: &Path) -> Result<()> {
    let engine = Engine::open(model, &EngineOptions::default(), None, &mut |_| true)?;
    let few = GenerationParams { max_tokens: 8, ..engine.generation_defaults() };
    let endless = GenerationParams { max_tokens: 1000, ignore_eos: true, ..few.clone() };
    stream(&engine)?;
    pull(&engine, &few)?;
    cancel(&engine, &endless);
    many(&engine, &few);
    assert_eq!(queue(&engine, &few)?.len(), 3);
    errors(Path::new("/no/such/folder"));
    errors(model);
    Ok(())
}
