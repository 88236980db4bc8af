//! Conversations: what is kept, what is dropped, who may call.

use std::sync::mpsc::channel;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, Event, EventKind, FinishReason, GenerationParams, Overflow};
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

#[test]
fn a_message_can_be_appended_alone_and_its_reply_made_later() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, Some("s".into()));
    session.append(vec![message(Role::User, "q")]).expect("the user's turn");
    let waiting = session.chat("x", &endless(5), &mut on);
    assert!(matches!(waiting, Err(Error::State { .. })), "{waiting:?}");
    let refused = session.append(vec![message(Role::User, "again")]);
    assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    let reply = session.regenerate(&endless(5), &mut on).expect("a reply").text;
    assert_eq!(contents(&session), ["s", "q", &reply]);
    session.append(vec![message(Role::User, "q2")]).expect("the user's turn");
    session.append(vec![message(Role::Assistant, "a2")]).expect("the assistant's turn");
    assert_eq!(contents(&session), ["s", "q", &reply, "q2", "a2"]);
}

#[test]
fn any_message_can_be_edited_and_is_said_so_from_then_on() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, None);
    session.chat("one", &endless(5), &mut on).expect("a reply");
    session.edit(0, "system").expect("the system message");
    session.edit(1, "uno").expect("the question");
    session.edit(2, "").expect("the answer");
    let refused = session.edit(3, "nothing");
    assert!(matches!(refused, Err(Error::Argument { argument: "index", .. })), "{refused:?}");
    assert_eq!(contents(&session), ["system", "uno", ""]);
    let mut history = session.messages().expect("free");
    let reply = session.chat("two", &endless(9), &mut on).expect("a reply");
    history.push(message(Role::User, "two"));
    assert_eq!(reply.text, answer(&engine, &history, &endless(9)));
}

#[test]
fn forks_share_what_they_have_in_common_and_nothing_else() {
    let (engine, _) = lab().start();
    let session = Session::new(&engine, Some("x".repeat(500)));
    session.chat("one", &endless(20), &mut on).expect("a reply");
    let before = session.messages().expect("free");
    let computed = metric(&engine, "computed_tokens");
    let forks: Vec<Session> = (0..8).map(|_| session.fork().expect("a fork")).collect();
    for (index, fork) in forks.iter().enumerate() {
        let mut history = before.clone();
        history.push(message(Role::User, &index.to_string()));
        let reply = fork.chat(&index.to_string(), &endless(10), &mut on).expect("a reply");
        assert_eq!(reply.text, answer(&engine, &history, &endless(10)));
        // The system message, the question, and most of the reply.
        assert!(reply.usage.cached_tokens > 500, "{:?}", reply.usage);
    }
    assert_eq!(session.messages().expect("free"), before);
    drop(session);
    assert_eq!(forks[0].messages().expect("free").len(), 5);
    assert!(metric(&engine, "computed_tokens") - computed < 8 * 100, "computed again");
}

/// A conversation that outgrows a context of 200 tokens: what each policy makes of it.
#[test]
fn an_overflow_is_cut_or_stopped_or_refused_as_it_is_wished() {
    let mut lab = lab();
    lab.options.max_context_tokens = 200;
    let (engine, _) = lab.start();
    let session = Session::new(&engine, Some("s".into()));
    let turn = |n: usize| {
        [message(Role::User, &format!("{n:020}")), message(Role::Assistant, &format!("{n:020}"))]
    };
    session.append((0..8).flat_map(turn).collect()).expect("pairs");
    let with = |overflow, max_tokens| GenerationParams { overflow, ..endless(max_tokens) };
    let full = |needed_tokens| Error::ContextFull { needed_tokens, available_tokens: 200 };
    let ask = |params: &GenerationParams| {
        let reply = session.fork().expect("free").chat("q", params, &mut on)?;
        Ok((reply.usage.prompt_tokens, reply.usage.completion_tokens))
    };
    // One byte is one token: 10 of the system block, 61 of a turn, 21 of the question and what follows.
    let prompt_tokens = |turns: u64| 10 + 61 * turns + 21;
    // At most 180 tokens, and at most 150: a quarter is left for a reply of any length.
    assert_eq!(ask(&with(Overflow::TruncateOldestTurns, 20)), Ok((prompt_tokens(2), 20)));
    assert_eq!(ask(&with(Overflow::TruncateOldestTurns, 9999)), Ok((prompt_tokens(1), 108)));
    for overflow in [Overflow::Stop, Overflow::Error] {
        let refused = ask(&with(overflow, 20));
        assert!(matches!(refused, Err(Error::ContextFull { .. })), "{refused:?}");
    }
    session.truncate(1).expect("free");
    assert_eq!(ask(&with(Overflow::Stop, 9999)), Ok((prompt_tokens(1), 108)));
    assert_eq!(ask(&with(Overflow::Error, 108)), Ok((prompt_tokens(1), 108)));
    assert_eq!(ask(&with(Overflow::Error, 109)), Err(full(201)));
    let ids = prompt(1, 100);
    let refused = engine.submit_tokens(ids, &with(Overflow::Error, 101), None).err();
    assert_eq!(refused, Some(full(201)));
    // The window still holds where the context has room.
    let narrow = GenerationParams { max_window_size: 50, ..with(Overflow::TruncateOldestTurns, 5) };
    assert_eq!(ask(&narrow), Ok((prompt_tokens(0), 5)));
    let wide = GenerationParams { overflow: Overflow::Stop, ..narrow };
    assert_eq!(ask(&wide), Ok((prompt_tokens(1), 5)));
}

/// A session with some history, saved.
fn saved(engine: &Engine) -> (Session, Vec<u8>) {
    let session = Session::new(engine, Some("say \u{0} \"héllo\" 你好".into()));
    session.chat("one", &endless(5), &mut on).expect("a reply");
    session.append(vec![message(Role::User, "and")]).expect("the user's turn");
    let bytes = session.save().expect("bytes");
    (session, bytes)
}

#[test]
fn a_loaded_session_goes_on_where_the_saved_one_was() {
    let (engine, _) = lab().start();
    let (session, bytes) = saved(&engine);
    // Another engine of the same model, as after a restart.
    let (engine, _) = lab().start();
    let loaded = Session::new(&engine, None);
    loaded.append(vec![message(Role::User, "forgotten")]).expect("the user's turn");
    loaded.load(&bytes).expect("it fits");
    assert_eq!(loaded.messages(), session.messages());
    assert_eq!(loaded.save(), Ok(bytes));
    let replies =
        [&session, &loaded].map(|s| s.regenerate(&endless(9), &mut on).expect("a reply").text);
    assert_eq!(replies[0], replies[1]);
}

#[test]
fn a_saved_session_that_is_cut_or_changed_anywhere_is_refused_and_nothing_changes() {
    let (engine, _) = lab().start();
    let (_, bytes) = saved(&engine);
    let session = Session::new(&engine, Some("mine".into()));
    let refuse = |bytes: &[u8], place: String| match session.load(bytes) {
        Err(Error::Corrupt { offset_bytes: Some(_), .. } | Error::StateMismatch { .. }) => {}
        other => panic!("{place}: {other:?}"),
    };
    for at in 0..bytes.len() {
        refuse(&bytes[..at], format!("cut at {at}"));
        for flip in [1, 0x80, 0xFF] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            refuse(&changed, format!("{flip:#x} at {at}"));
        }
    }
    refuse(&[bytes.clone(), vec![0]].concat(), "a byte more".into());
    assert_eq!(contents(&session), ["mine"]);
    session.load(&bytes).expect("as it was saved");
}

#[test]
fn a_session_of_another_model_or_format_is_refused_by_name() {
    let (engine, _) = lab().start();
    let (_, bytes) = saved(&engine);
    let mismatch = |session: &Session, bytes: &[u8]| match session.load(bytes) {
        Err(Error::StateMismatch { property, .. }) => property,
        other => panic!("{other:?}"),
    };
    let mut newer = bytes.clone();
    newer[8] = 2;
    let session = Session::new(&engine, None);
    assert_eq!(mismatch(&session, &newer), "format version");
    let control = std::sync::Arc::default();
    let rank = Box::new(Fake::new(0, 64, &control)) as Box<dyn qwen::model::Rank>;
    let mut parts = Lab { num_pages: 64, ..lab() }.parts(vec![rank]);
    parts.config.use_logn_attention = false;
    let other = Engine::start(parts).expect("it starts");
    assert_eq!(mismatch(&Session::new(&other, None), &bytes), "model fingerprint");
}
