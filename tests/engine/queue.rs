//! The completion queue: many requests, many readers, one entry per request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use qwen::engine::{CompletionQueue, Event, EventKind, GenerationParams, Shutdown};
use qwen::error::Error;

use crate::fake::*;

fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

/// Reads until no request is left.
fn drain(queue: &CompletionQueue, max: usize) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match queue.next(max, Some(LONG)) {
            Ok(more) => {
                assert!((1..=max).contains(&more.len()));
                events.extend(more);
            }
            Err(Error::End) => return events,
            Err(error) => panic!("{error}"),
        }
    }
}

fn by_tag(events: Vec<Event>) -> HashMap<u64, Vec<Event>> {
    let mut sorted: HashMap<u64, Vec<Event>> = HashMap::new();
    events.into_iter().for_each(|event| sorted.entry(event.tag).or_default().push(event));
    sorted
}

#[test]
fn one_reader_serves_many_requests() {
    for max in [1, 3, 1000] {
        let (engine, _) = lab().start();
        let queue = CompletionQueue::new();
        let submit = |tag: u64| {
            engine
                .submit_tokens(prompt(tag, 20), &greedy(40), Some((Arc::clone(&queue), tag)))
                .expect("accepted")
        };
        let _requests: Vec<_> = (0..50).map(submit).collect();
        let events = by_tag(drain(&queue, max));
        assert_eq!(events.len(), 50);
        for (tag, events) in events {
            assert_expected(&tell(events), &prompt(tag, 20), &greedy(40));
        }
    }
}

#[test]
fn many_threads_submit_and_many_read() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    // Keeps the queue alive until all have submitted: a request of an engine that stands still.
    let (idle, control) = lab().start();
    control.hold();
    let guard = idle
        .submit_tokens(prompt(999, 5), &endless(1), Some((Arc::clone(&queue), 999)))
        .expect("accepted");
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| all.lock().extend(drain(&queue, 8)));
        }
        let writers: Vec<_> = (0..8u64)
            .map(|writer| {
                let (engine, queue) = (&engine, &queue);
                scope.spawn(move || {
                    let submit = |n: u64| {
                        let tag = writer * 20 + n;
                        let place = Some((Arc::clone(queue), tag));
                        engine.submit_tokens(prompt(tag, 9), &greedy(30), place).expect("accepted")
                    };
                    (0..20).map(submit).collect::<Vec<_>>()
                })
            })
            .collect();
        let requests: Vec<_> =
            writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect();
        wait_until(|| metric(&engine, "requests_finished") == requests.len() as u64);
        guard.cancel(true);
        control.release();
    });
    let events = by_tag(all.into_inner());
    assert_eq!(events.len(), 161);
    for (tag, events) in events.into_iter().filter(|(tag, _)| *tag != 999) {
        // Readers append in any order; each holds a part of the request's events.
        let last = events.iter().filter(|event| event.finish.is_some()).count();
        let ids = events.iter().map(|event| event.token_ids.len()).sum::<usize>();
        assert_eq!((last, ids), (1, expected(&prompt(tag, 9), &greedy(30)).0.len()));
    }
}

#[test]
fn unread_events_of_a_request_coalesce_into_one_entry() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 3));
    let _request = engine.submit_tokens(prompt(1, 9), &endless(100), place).expect("accepted");
    // The numbers change before the last event comes; a drain that is over has delivered it.
    assert_eq!(engine.shutdown(Shutdown::Drain, LONG), Ok(()));
    let events = queue.next(100, Some(LONG)).expect("events");
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Started, EventKind::Delta, EventKind::Finished]);
    assert_eq!(events[1].token_ids.len(), 100);
    assert_eq!(queue.next(100, Some(LONG)), Err(Error::End));
}

#[test]
fn a_dropped_request_still_delivers_its_last_event() {
    let (engine, control) = lab().start();
    control.hold();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 8));
    drop(engine.submit_tokens(prompt(1, 9), &endless(100), place).expect("accepted"));
    control.release();
    let events = drain(&queue, 10);
    assert_eq!(events.last().and_then(|event| event.error.clone()), Some(Error::Cancelled));
    assert!(events.iter().all(|event| event.tag == 8));
}

#[test]
fn a_dropped_queue_disturbs_nobody() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 8));
    let request = engine.submit_tokens(prompt(1, 9), &endless(50), place).expect("accepted");
    drop(queue);
    assert_eq!(read(&request).ids.len(), 50);
}

#[test]
fn events_taken_from_the_request_are_not_announced_again() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 8));
    let request = engine.submit_tokens(prompt(1, 9), &endless(50), place).expect("accepted");
    assert_eq!(read(&request).ids.len(), 50);
    assert_eq!(queue.next(1, Some(LONG)), Err(Error::End));
}

#[test]
fn a_refused_request_is_not_waited_for() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 8));
    assert!(engine.submit_tokens(prompt(1, 9000), &greedy(1), place).is_err());
    assert_eq!(queue.next(1, Some(LONG)), Err(Error::End));
}

#[test]
fn waiting_ends_in_time_and_max_is_checked() {
    let (engine, control) = lab().start();
    control.hold();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 8));
    let request = engine.submit_tokens(prompt(1, 9), &endless(5), place).expect("accepted");
    assert_eq!(queue.next(9, Some(LONG)).expect("started").len(), 1);
    let soon = Some(Duration::from_millis(15));
    assert_eq!(queue.next(9, soon), Err(Error::Timeout { timeout_ms: 15 }));
    assert!(matches!(queue.next(0, soon), Err(Error::Argument { argument: "max", .. })));
    // A reader that waits for ever is woken by the end of the last request.
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| drain(&queue, 1));
        control.release();
        assert_eq!(tell(reader.join().expect("no panic")).ids.len(), 5);
    });
    drop(request);
}
