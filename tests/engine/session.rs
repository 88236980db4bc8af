//! Conversations: what is kept, what is dropped, who may call.

use std::sync::mpsc::channel;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, Event, EventKind, FinishReason, GenerationParams};
use qwen::error::Error;
use qwen::text::chat::{DEFAULT_SYSTEM, Message, Role, render};

use crate::fake::*;

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

fn on(_: &Event) -> Flow {
    Flow::Continue
}

fn contents(session: &Session) -> Vec<String> {
    let messages = session.messages().expect("free");
    messages.into_iter().map(|message| message.content).collect()
}

/// Never ends by itself, and shows letters only.
fn endless(max_tokens: usize) -> GenerationParams {
    GenerationParams { ignore_eos: true, ..greedy(max_tokens) }
}

/// What the model answers to a conversation.
fn answer(engine: &Engine, messages: &[Message], params: &GenerationParams) -> String {
    let prompt = render(engine.tokenizer(), messages, params.max_window_size).expect("renders");
    let shown = expected(&prompt, params).0.into_iter().filter(|&id| id < 256);
    shown.map(|id| id as u8 as char).collect()
}

#[test]
fn a_conversation_builds_on_its_history() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, None);
    let params = endless(12);
    let mut history = vec![message(Role::System, DEFAULT_SYSTEM)];
    for question in ["one", "two", "three"] {
        let mut streamed = String::new();
        let mut kinds = Vec::new();
        let reply = session.chat(question, &params, &mut |event| {
            streamed.push_str(&event.text);
            kinds.push(event.kind);
            Flow::Continue
        });
        let reply = reply.expect("a reply");
        history.push(message(Role::User, question));
        assert_eq!(reply.text, answer(&engine, &history, &params));
        assert_eq!((streamed.as_str(), reply.finish), (reply.text.as_str(), FinishReason::Length));
        assert_eq!((kinds[0], kinds[kinds.len() - 1]), (EventKind::Started, EventKind::Finished));
        history.push(message(Role::Assistant, &reply.text));
        assert_eq!(session.messages(), Ok(history.clone()));
    }
}

#[test]
fn a_stopped_turn_is_kept_as_the_callback_saw_it() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, Some("system".into()));
    let mut seen = String::new();
    let reply = session.chat("go", &endless(7000), &mut |event| {
        assert_ne!(event.kind, EventKind::Finished, "no callback after a stop");
        seen.push_str(&event.text);
        if seen.len() > 5 { Flow::Stop } else { Flow::Continue }
    });
    let reply = reply.expect("kept");
    assert_eq!((&reply.text, reply.finish), (&seen, FinishReason::Cancelled));
    assert!(reply.usage.completion_tokens >= 6 && reply.usage.completion_tokens < 7000);
    assert_eq!(contents(&session), ["system", "go", &seen]);
}

#[test]
fn a_cancelled_or_failed_turn_is_dropped() {
    let (engine, control) = lab().start();
    let session = Session::new(&engine, Some("s".into()));
    let cancelled = session.chat("go", &endless(7000), &mut |event| {
        if event.kind == EventKind::Delta { Flow::Cancel } else { Flow::Continue }
    });
    assert_eq!(cancelled, Err(Error::Cancelled));
    wait_until(|| metric(&engine, "requests_cancelled") == 1);
    let mut params = endless(5);
    params.sampling.top_p = 7.0;
    assert!(matches!(session.chat("go", &params, &mut on), Err(Error::Option { .. })));
    control.break_at(control.steps() + 3, Fault::Panic);
    let mut last = None;
    let failed = session.chat("go", &endless(50), &mut |event| {
        last = Some(event.kind);
        Flow::Continue
    });
    assert!(matches!(failed, Err(Error::EngineFailed { .. })), "{failed:?}");
    assert_eq!((last, contents(&session)), (Some(EventKind::Failed), vec!["s".to_string()]));
}

#[test]
fn regenerating_replaces_the_last_reply_only_when_it_finishes() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, Some("s".into()));
    let nothing = session.regenerate(&endless(5), &mut on);
    assert!(matches!(nothing, Err(Error::State { .. })), "{nothing:?}");
    session.chat("q", &endless(5), &mut on).expect("a reply");
    let before = contents(&session);
    let cancelled = session.regenerate(&endless(9), &mut |_| Flow::Cancel);
    assert_eq!((cancelled, contents(&session)), (Err(Error::Cancelled), before.clone()));
    let reply = session.regenerate(&endless(9), &mut on).expect("a reply");
    assert!(reply.text.starts_with(&before[2]) && reply.text.len() > before[2].len());
    assert_eq!(contents(&session), ["s", "q", &reply.text]);
}

#[test]
fn history_can_be_edited() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, None);
    let pair = |n: usize| {
        [message(Role::User, &format!("q{n}")), message(Role::Assistant, &format!("a{n}"))]
    };
    session.append((0..3).flat_map(pair).collect()).expect("pairs");
    let wrong = [
        vec![message(Role::User, "q")],
        vec![message(Role::Assistant, "a"), message(Role::User, "q")],
        vec![message(Role::System, "s"), message(Role::Assistant, "a")],
    ];
    for messages in wrong {
        let refused = session.append(messages);
        assert!(matches!(refused, Err(Error::Argument { argument: "messages", .. })));
    }
    let leading: Vec<_> = [message(Role::System, "first")].into_iter().chain(pair(3)).collect();
    session.append(leading).expect("a system message and a pair");
    assert_eq!(contents(&session), ["first", "q0", "a0", "q1", "a1", "q2", "a2", "q3", "a3"]);
    session.truncate(3).expect("free");
    session.set_system(Some("new".into())).expect("free");
    assert_eq!(contents(&session), ["new", "q0", "a0", "q1", "a1", "q2", "a2"]);
    session.truncate(1).expect("free");
    session.truncate(usize::MAX).expect("free");
    assert_eq!(contents(&session), ["new", "q0", "a0"]);
    session.truncate(0).expect("free");
    session.set_system(None).expect("free");
    assert_eq!(contents(&session), [DEFAULT_SYSTEM]);
}

#[test]
fn a_callback_may_not_call_its_own_session_but_any_other() {
    let (engine, _) = lab().start();
    let (session, other) = (Session::new(&engine, None), Session::new(&engine, None));
    let reentrant = Error::Reentrant { object: "session" };
    let reply = session.chat("q", &endless(3), &mut |_| {
        assert_eq!(session.messages(), Err(reentrant.clone()));
        assert_eq!(session.truncate(0), Err(reentrant.clone()));
        assert_eq!(session.chat("x", &endless(1), &mut on), Err(reentrant.clone()));
        assert!(other.chat("x", &endless(1), &mut on).is_ok());
        Flow::Continue
    });
    assert!(reply.is_ok(), "{reply:?}");
}

#[test]
fn a_second_thread_finds_the_session_busy() {
    let (engine, control) = lab().start();
    let session = Session::new(&engine, None);
    control.hold();
    let (started, wait) = channel();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut on_event = |_: &Event| {
                started.send(()).expect("somebody waits");
                Flow::Continue
            };
            session.chat("q", &endless(3), &mut on_event)
        });
        wait.recv().expect("started");
        let busy = Error::Busy { object: "session" };
        assert_eq!(session.chat("x", &endless(3), &mut on), Err(busy.clone()));
        assert_eq!(session.messages(), Err(busy));
        control.release();
        assert!(first.join().expect("no panic").is_ok());
    });
    assert_eq!(session.messages().expect("free again").len(), 3);
}

#[test]
fn a_cancel_before_the_request_is_made_is_not_lost() {
    let (engine, control) = lab().start();
    let session = Session::new(&engine, None);
    let text = "x".repeat(4000);
    for _ in 0..20 {
        control.hold();
        let reply = std::thread::scope(|scope| {
            let chat = scope.spawn(|| {
                loop {
                    match session.chat(&text, &endless(50), &mut on) {
                        // The other thread was looking.
                        Err(Error::Busy { .. }) => {}
                        reply => return reply,
                    }
                }
            });
            wait_until_busy(&session);
            session.cancel(false).expect("any time");
            control.release();
            chat.join().expect("no panic")
        });
        assert_eq!(reply, Err(Error::Cancelled));
    }
    session.cancel(false).expect("nothing to cancel");
    assert!(session.chat("q", &endless(3), &mut on).is_ok(), "an old wish is none");
}

/// No pause between looks: the time between entry and request is short.
fn wait_until_busy(session: &Session) {
    let start = std::time::Instant::now();
    while session.messages().is_ok() {
        assert!(start.elapsed() < LONG, "nobody came");
    }
}

#[test]
fn a_panicking_callback_leaves_the_session_usable() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, Some("s".into()));
    let chat = || session.chat("q", &endless(5000), &mut |_| panic!("the callback's own"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(chat)).is_err());
    wait_until(|| metric(&engine, "requests_cancelled") == 1);
    assert_eq!(contents(&session), ["s"]);
}
