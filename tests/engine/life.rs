//! Beginning and end: full queues, failures, shutdown, drops in any order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use qwen::batch::{Batch, Output};
use qwen::engine::session::Session;
use qwen::engine::{
    CompletionQueue, Engine, EngineOptions, EngineParts, GenerationParams, LogLevel, Request,
    Shutdown,
};
use qwen::error::{Error, Result};
use qwen::model::Rank;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

fn submit(engine: &Engine, seed: u64, max_tokens: usize) -> Result<Request> {
    engine.submit_tokens(prompt(seed, 10), &endless(max_tokens), None)
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let mut lab = lab();
    lab.options.max_batch_sequences = 1;
    lab.options.max_queue_requests = 2;
    let (engine, control) = lab.start();
    control.hold();
    let running = submit(&engine, 0, 2).expect("accepted");
    control.wait_for_step(1);
    let waiting = [1, 2].map(|seed| submit(&engine, seed, 2).expect("accepted"));
    assert_eq!(submit(&engine, 3, 2).err(), Some(Error::QueueFull { limit_requests: 2 }));
    assert_eq!(metric(&engine, "requests_refused"), 1);
    control.release();
    waiting.iter().chain([&running]).for_each(|request| assert_eq!(read(request).ids.len(), 2));
    assert_eq!(read(&submit(&engine, 3, 2).expect("room again")).ids.len(), 2);
}

#[test]
fn a_failed_or_panicked_step_ends_all_requests_and_the_engine_but_nothing_else() {
    let faults = [Fault::Error, Fault::Panic, Fault::Late];
    for (fault, draws) in faults.into_iter().flat_map(|fault| [(fault, false), (fault, true)]) {
        for at in [1, 2, 5] {
            let mut lab1 = Lab { draws, ..lab() };
            lab1.options.max_batch_sequences = 2;
            let (engine, control) = lab1.start();
            control.break_at(at, fault);
            control.hold();
            let requests: Vec<_> =
                (0..5).map(|n| submit(&engine, n, 100).expect("accepted")).collect();
            control.release();
            for request in &requests {
                let error = read(request).last.error.expect("failed");
                assert!(error.to_string().contains("injected"), "{error}");
                assert!(matches!(error, Error::EngineFailed { .. }), "{error:?}");
            }
            let refused = submit(&engine, 9, 1).err().expect("refused");
            assert!(refused.to_string().contains("injected"), "{refused}");
            assert_eq!(engine.health(), Err(refused));
            assert_eq!(metric(&engine, "requests_failed"), 5);
            assert_eq!(metric(&engine, "pages_used"), 0);
            assert_eq!(engine.shutdown(Shutdown::Cancel, LONG), Ok(()));
            let (next, _) = lab().start();
            assert_eq!(read(&submit(&next, 1, 3).expect("accepted")).ids.len(), 3);
        }
    }
}

/// One of two ranks that meet in every step, as in a collective: the broken one panics in its
/// second step, and the other waits for it there until it is dropped.
struct Partner {
    rank: usize,
    broken: bool,
    steps: usize,
    wanted: usize,
    line: SyncSender<()>,
    other: Receiver<()>,
}

impl Rank for Partner {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.steps += 1;
        assert!(!self.broken || self.steps < 2, "this rank breaks");
        let lost = || Error::EngineFailed { reason: "lost the other rank".into() };
        self.line.send(()).map_err(|_| lost())?;
        self.other.recv_timeout(LONG).map_err(|_| lost())?;
        self.wanted = batch.logits_rows.len();
        Ok(())
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        if self.rank == 0 {
            output.logits.resize(self.wanted * VOCAB, 0.0);
        }
        Ok(())
    }
}

#[test]
fn a_panic_of_one_rank_ends_the_engine_without_a_deadlock() {
    for broken in [0, 1] {
        let begin = std::time::Instant::now();
        let (to_first, from_second) = sync_channel(1);
        let (to_second, from_first) = sync_channel(1);
        let lines = [(to_second, from_second), (to_first, from_first)];
        let ranks = lines.into_iter().enumerate().map(|(rank, (line, other))| {
            let broken = rank == broken;
            Box::new(Partner { rank, broken, steps: 0, wanted: 0, line, other }) as Box<dyn Rank>
        });
        let engine = lab().start_with(ranks.collect());
        let told = read(&submit(&engine, 1, 10).expect("accepted"));
        assert!(matches!(told.last.error, Some(Error::EngineFailed { .. })), "{told:?}");
        assert_eq!(engine.shutdown(Shutdown::Drain, LONG), Ok(()));
        assert!(begin.elapsed() < LONG, "the other rank was left to wait");
    }
}

/// A rank that returns too few logits.
struct Short;

impl Rank for Short {
    fn submit(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        output.logits.resize(3, 0.0);
        Ok(())
    }
}

#[test]
fn logits_of_a_wrong_size_are_an_error() {
    let engine = lab().start_with(vec![Box::new(Short)]);
    let told = read(&submit(&engine, 1, 10).expect("accepted"));
    assert!(told.last.error.expect("failed").to_string().contains("3 logits instead of 480"));
}

#[test]
fn a_drain_finishes_what_was_accepted() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.hold();
        let requests = [1, 2].map(|seed| submit(&engine, seed, 20).expect("accepted"));
        let soon = Duration::from_millis(20);
        assert_eq!(engine.shutdown(Shutdown::Drain, soon), Err(Error::Timeout { timeout_ms: 20 }));
        assert_eq!(submit(&engine, 3, 1).err(), Some(Error::Closed { object: "engine" }));
        assert_eq!(engine.health(), Err(Error::Closed { object: "engine" }));
        control.release();
        assert_eq!(engine.shutdown(Shutdown::Drain, LONG), Ok(()));
        requests.iter().for_each(|request| assert_eq!(read(request).ids.len(), 20));
        assert_eq!(engine.shutdown(Shutdown::Cancel, Duration::ZERO), Ok(()), "idempotent");
    }
}

#[test]
fn a_cancelling_shutdown_ends_what_was_accepted_also_after_a_drain() {
    for (drain_first, draws) in [(false, false), (true, false), (false, true), (true, true)] {
        let (engine, control) = Lab { draws, ..lab() }.start();
        control.hold();
        let requests = [1, 2].map(|seed| submit(&engine, seed, 1000).expect("accepted"));
        if drain_first {
            assert!(engine.shutdown(Shutdown::Drain, Duration::ZERO).is_err());
        }
        assert!(engine.shutdown(Shutdown::Cancel, Duration::ZERO).is_err());
        control.release();
        assert_eq!(engine.shutdown(Shutdown::Cancel, LONG), Ok(()));
        for request in &requests {
            assert_eq!(read(request).last.error, Some(Error::Cancelled));
        }
    }
}

/// Tells when it is dropped, as the model's memory would be released.
struct Canary(Arc<Mutex<bool>>, Fake);

impl Drop for Canary {
    fn drop(&mut self) {
        *self.0.lock() = true;
    }
}

impl Rank for Canary {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.1.submit(batch)
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        self.1.collect(output)
    }
}

fn canary() -> (Engine, Arc<Mutex<bool>>, Arc<Control>) {
    let (released, control) = (Arc::new(Mutex::new(false)), Arc::new(Control::default()));
    let lab = lab();
    let fake = Fake::new(0, lab.num_pages, &control);
    let engine = lab.start_with(vec![Box::new(Canary(Arc::clone(&released), fake))]);
    (engine, released, control)
}

#[test]
fn the_model_is_released_with_the_last_handle_or_at_shutdown() {
    let (engine, released, _) = canary();
    let clone = engine.clone();
    drop(engine);
    assert!(!*released.lock());
    drop(clone);
    assert!(*released.lock(), "released when the last drop returns");
    let (engine, released, _) = canary();
    assert_eq!(engine.shutdown(Shutdown::Drain, LONG), Ok(()));
    assert!(*released.lock(), "released when shutdown returns");
    drop(engine);
}

#[test]
fn requests_outlive_their_engine_and_end_as_cancelled() {
    let (engine, released, control) = canary();
    control.slow_down(Duration::from_micros(200));
    let queue = CompletionQueue::new();
    let with_queue = engine
        .submit_tokens(prompt(1, 10), &endless(100_000), Some((Arc::clone(&queue), 5)))
        .expect("accepted");
    let without = submit(&engine, 2, 100_000).expect("accepted");
    control.wait_for_step(2);
    drop(engine);
    assert!(*released.lock());
    assert_eq!(read(&without).last.error, Some(Error::Cancelled));
    assert_eq!(read(&with_queue).last.error, Some(Error::Cancelled));
    assert_eq!(queue.next(1, Some(LONG)), Err(Error::End));
}

#[test]
fn a_session_holds_its_engine_open() {
    let (engine, released, _) = canary();
    let session = Session::new(&engine, None);
    drop(engine);
    assert!(!*released.lock());
    let reply = session.chat("hello", &greedy(5), &mut |_| qwen::engine::session::Flow::Continue);
    assert!(reply.is_ok(), "{reply:?}");
    drop(session);
    assert!(*released.lock());
}

#[test]
fn any_order_of_drops_is_safe() {
    for order in 0..24usize {
        let (engine, control) = lab().start();
        control.slow_down(Duration::from_micros(50));
        let queue = CompletionQueue::new();
        let request = engine
            .submit_tokens(prompt(1, 10), &endless(1000), Some((Arc::clone(&queue), 1)))
            .expect("accepted");
        let session = Session::new(&engine, None);
        let mut things: Vec<Box<dyn std::any::Any>> =
            vec![Box::new(engine), Box::new(queue), Box::new(request), Box::new(session)];
        let mut choice = order;
        while !things.is_empty() {
            drop(things.remove(choice % things.len()));
            choice /= things.len() + 1;
        }
    }
}

#[test]
fn engines_open_and_close_a_hundred_times() {
    for n in 0..100 {
        let (engine, _) = lab().start();
        let request = submit(&engine, n, 50).expect("accepted");
        if n % 2 == 0 {
            read(&request);
        }
    }
}

#[test]
fn the_log_hook_hears_of_failures_and_may_use_the_engine() {
    let heard: Arc<Mutex<Vec<(LogLevel, String)>>> = Arc::default();
    let slot: Arc<Mutex<Option<Engine>>> = Arc::default();
    let (hook_heard, hook_slot) = (Arc::clone(&heard), Arc::clone(&slot));
    let mut lab = lab();
    lab.log = Some(Arc::new(move |level, target: &str, message: &str| {
        if level != LogLevel::Error {
            return;
        }
        // On the loop's own thread: waiting for the loop here would never end.
        let shutdown = hook_slot.lock().as_ref().map(|e| e.shutdown(Shutdown::Cancel, LONG));
        assert_eq!(shutdown, Some(Err(Error::Reentrant { object: "engine" })));
        hook_heard.lock().push((level, format!("{target}: {message}")));
        // The last handle may go here, too: nobody joins their own thread.
        drop(hook_slot.lock().take());
    }));
    let (engine, control) = lab.start();
    control.break_at(1, Fault::Error);
    control.hold();
    let request = submit(&engine, 1, 1).expect("accepted");
    *slot.lock() = Some(engine);
    control.release();
    read(&request);
    wait_until(|| !heard.lock().is_empty());
    let expected = (LogLevel::Error, "engine: the engine failed: injected".to_string());
    assert_eq!(*heard.lock(), [expected]);
}

#[test]
fn options_that_can_never_work_are_refused_by_name() {
    type Case = (&'static str, fn(&mut EngineOptions));
    let cases: [Case; 4] = [
        ("max_batch_sequences", |o| o.max_batch_sequences = 0),
        ("prefill_chunk_tokens", |o| o.prefill_chunk_tokens = usize::MAX),
        ("max_queue_requests", |o| o.max_queue_requests = 0),
        ("max_queue_requests", |o| o.max_queue_requests = usize::MAX),
    ];
    for (name, spoil) in cases {
        let mut options = EngineOptions { prefill_chunk_tokens: 512, ..EngineOptions::default() };
        spoil(&mut options);
        match options.validate() {
            Err(Error::Option { key, .. }) => assert_eq!(key, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let start = |num_pages, ranks: Vec<Box<dyn Rank>>| {
        let parts = EngineParts { num_pages, ..lab().parts(ranks) };
        match Engine::start(parts).err() {
            Some(Error::Option { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(start(0, vec![Box::new(Short)]), "kv_cache_tokens");
    assert_eq!(start(usize::MAX, vec![Box::new(Short)]), "kv_cache_tokens");
    assert_eq!(start(1, vec![]), "tensor_parallel");
    // What `open` would have chosen.
    let mut parts = lab().parts(vec![Box::new(Short)]);
    parts.options.prefill_chunk_tokens = 0;
    assert!(matches!(Engine::start(parts), Err(Error::Option { .. })));
}
