//! What requests told: their events, read to the end and in the order that is promised.

use qwen::engine::{Event, EventKind, Request};
use qwen::error::Error;

use crate::fake::LONG;

/// All that a request told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ids: Vec<u32>,
    pub(crate) last: Event,
    pub(crate) started: bool,
    pub(crate) deltas: usize,
}

/// Reads a request to its end and checks the order of its events.
pub(crate) fn read(request: &Request) -> Told {
    let mut events = Vec::new();
    loop {
        match request.next(Some(LONG)) {
            Ok(event) => events.push(event),
            Err(Error::End) => return tell(events),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Events of one request, in order -> what they said.
pub(crate) fn tell(mut events: Vec<Event>) -> Told {
    let last = events.pop().expect("a last event");
    assert!(matches!(last.kind, EventKind::Finished | EventKind::Failed), "ends with {last:?}");
    assert_eq!(last.finish.is_some(), last.kind == EventKind::Finished);
    assert_eq!(last.error.is_some(), last.kind == EventKind::Failed);
    let started = events.first().is_some_and(|event| event.kind == EventKind::Started);
    let deltas = &events[usize::from(started)..];
    assert!(deltas.iter().all(|event| event.kind == EventKind::Delta), "{deltas:?}");
    Told {
        text: deltas.iter().map(|event| event.text.as_str()).collect(),
        bytes: deltas.iter().flat_map(|event| event.bytes.clone()).collect(),
        ids: deltas.iter().flat_map(|event| event.token_ids.clone()).collect(),
        started,
        deltas: deltas.len(),
        last,
    }
}
