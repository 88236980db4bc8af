//! Several replies to one prompt: one request, told apart by their number.

use std::collections::BTreeMap;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{CompletionQueue, Event, EventKind, FinishReason, GenerationParams, Request};
use qwen::error::Error;

use crate::fake::*;

fn several(n: u32, max_tokens: usize) -> GenerationParams {
    let mut params = GenerationParams { n, ..greedy(max_tokens) };
    (params.sampling.temperature, params.sampling.seed) = (1.5, 11);
    params.sampling.top_k = 8; // The poison is not among them.
    params
}

/// What a request told of each choice, and its last event.
#[derive(Debug, Default, PartialEq)]
struct Choices {
    ids: BTreeMap<u32, Vec<u32>>,
    ends: BTreeMap<u32, (Option<FinishReason>, u64)>,
    last: Option<Event>,
}

fn gather(events: impl Iterator<Item = Event>) -> Choices {
    let mut choices = Choices::default();
    for event in events {
        assert_eq!(choices.last, None, "an event after the last");
        match event.kind {
            EventKind::Started => assert!(choices.ids.is_empty() && choices.ends.is_empty()),
            EventKind::Delta => {
                assert!(!choices.ends.contains_key(&event.choice), "text after its end");
                choices.ids.entry(event.choice).or_default().extend(event.token_ids);
            }
            EventKind::ChoiceFinished => {
                choices.ids.entry(event.choice).or_default();
                let end = (event.finish, event.usage.completion_tokens);
                assert_eq!(choices.ends.insert(event.choice, end), None, "ends once");
            }
            EventKind::Finished | EventKind::Failed => choices.last = Some(event),
            other => panic!("{other:?} without tools"),
        }
    }
    choices
}

fn read_all(request: &Request) -> Choices {
    gather(std::iter::from_fn(|| match request.next(Some(LONG)) {
        Ok(event) => Some(event),
        Err(Error::End) => None,
        Err(error) => panic!("{error}"),
    }))
}

#[test]
fn each_choice_is_a_reply_of_its_own_and_the_first_is_that_of_one() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let submit = |params: &GenerationParams| {
            engine.submit_tokens(prompt(4, 30), params, None).expect("accepted")
        };
        let alone = read(&submit(&several(1, 60)));
        let told = read_all(&submit(&several(5, 60)));
        assert_eq!((told.ids.len(), told.ends.len()), (5, 5));
        assert_eq!(told.ids[&0], alone.ids);
        let distinct: std::collections::BTreeSet<_> = told.ids.values().collect();
        assert_eq!(distinct.len(), 5, "every choice has a seed of its own");
        let last = told.last.as_ref().expect("an end");
        let sum: u64 = told.ends.values().map(|(_, tokens)| tokens).sum();
        assert_eq!((last.usage.prompt_tokens, last.usage.completion_tokens), (30, sum));
        for (choice, (finish, tokens)) in &told.ends {
            assert_eq!(*tokens as usize, told.ids[choice].len());
            assert!(matches!(finish, Some(FinishReason::Stop | FinishReason::Length)));
        }
        // The same seeds draw the same replies again.
        assert_eq!(read_all(&submit(&several(5, 60))), told);
        assert_eq!(metric(&engine, "pages_used"), 0);
    }
}

#[test]
fn unread_choices_coalesce_and_a_queue_tells_them_apart() {
    let (engine, _) = lab().start();
    let queue = CompletionQueue::new();
    let params = GenerationParams { ignore_eos: true, ..several(3, 20) };
    let requests: Vec<_> = (0..4)
        .map(|tag| {
            let queue = Some((queue.clone(), tag));
            engine.submit_tokens(prompt(tag, 10), &params, queue).expect("accepted")
        })
        .collect();
    wait_until(|| metric(&engine, "requests_finished") == 12);
    let mut events: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    while let Ok(more) = queue.next(5, Some(LONG)) {
        more.into_iter().for_each(|event| events.entry(event.tag).or_default().push(event));
    }
    for events in events.into_values() {
        assert_eq!(events.len(), 1 + 3 + 3 + 1, "started, deltas, ends, end");
        let told = gather(events.into_iter());
        assert!(told.ids.values().all(|ids| ids.len() == 20) && told.ids.len() == 3);
    }
    drop(requests);
}

#[test]
fn a_cancel_ends_all_choices() {
    for keep in [true, false] {
        let (engine, control) = lab().start();
        control.slow_down(std::time::Duration::from_micros(200));
        let params = GenerationParams { ignore_eos: true, ..several(4, 8000) };
        let request = engine.submit_tokens(prompt(1, 10), &params, None).expect("accepted");
        wait_until(|| metric(&engine, "generated_tokens") > 20);
        request.cancel(keep);
        let told = read_all(&request);
        let last = told.last.expect("an end");
        assert_eq!(last.error, (!keep).then_some(Error::Cancelled));
        assert_eq!(last.finish, keep.then_some(FinishReason::Cancelled));
        assert_eq!(told.ends.len(), if keep { 4 } else { 0 });
        let sum: usize = told.ids.values().map(Vec::len).sum();
        assert_eq!(last.usage.completion_tokens as usize, sum);
        assert_eq!(metric(&engine, "requests_running"), 0);
    }
}

#[test]
fn a_choice_that_fails_ends_the_request_with_its_error() {
    let (engine, _) = lab().start();
    // Sooner or later one of them draws the poison.
    let mut params = GenerationParams { ignore_eos: true, ..several(4, 8000) };
    params.logit_bias = vec![(POISON, 6.0)];
    let request = engine.submit_tokens(prompt(1, 10), &params, None).expect("accepted");
    let told = read_all(&request);
    let last = told.last.expect("an end");
    assert!(matches!(last.error, Some(Error::NotFinite { .. })), "{:?}", last.error);
    // Each has a token of every step; the others end within one.
    let lengths: Vec<usize> = told.ids.values().map(Vec::len).collect();
    let (least, most) = (lengths.iter().min().expect("ids"), lengths.iter().max().expect("ids"));
    assert!(lengths.len() == 4 && most - least <= 1, "{lengths:?}");
    assert_eq!(metric(&engine, "pages_used"), 0);
    assert_eq!(engine.health(), Ok(()));
}

#[test]
fn choices_count_in_the_queue_and_sessions_have_one() {
    let mut lab = lab();
    (lab.options.max_queue_requests, lab.options.max_batch_sequences) = (4, 1);
    let (engine, control) = lab.start();
    let submit = |n| engine.submit_tokens(prompt(1, 10), &several(n, 3), None);
    for n in [0, 5, 129] {
        match submit(n).err() {
            Some(Error::Option { key, .. }) => assert_eq!(key, "n"),
            other => panic!("{other:?}"),
        }
    }
    control.hold();
    let first = submit(4).expect("accepted");
    control.wait_for_step(1);
    // Three of them wait.
    assert_eq!(submit(2).err(), Some(Error::QueueFull { limit_requests: 4 }));
    let second = submit(1).expect("accepted");
    control.release();
    assert_eq!(read_all(&first).ids.len(), 4);
    assert_eq!(read_all(&second).ids.len(), 1);
    let session = Session::new(&engine, None);
    let refused = session.chat("hello", &several(2, 3), &mut |_| Flow::Continue);
    assert!(matches!(refused, Err(Error::Option { key, .. }) if key == "n"));
}
