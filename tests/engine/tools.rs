//! Replies with tools: events, reasons, sessions; the format itself is tested in tests/text.

use std::sync::Arc;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, Event, EventKind, FinishReason, GenerationParams, ToolCallNews};
use qwen::error::Error;
use qwen::text::ArgumentsForm;
use qwen::text::chat::{Message, Role};
use qwen::text::tools::{ToolCall, ToolChoice, Tools};
use serde_json::json;

use crate::fake::*;

const CALL: &str = "Thought: I look.\nAction: find\nAction Input: {\"a\": 1}\nObservation: made up";

fn tools() -> Option<Arc<Tools>> {
    let tools = json!([{ "name": "find" }, { "name": "draw" }]);
    Some(Arc::new(Tools::parse(&tools).expect("tools")))
}

fn offering(max_tokens: usize) -> GenerationParams {
    GenerationParams { tools: tools(), ..greedy(max_tokens) }
}

/// All events of a reply that says `script`.
fn events(engine: &Engine, params: &GenerationParams) -> Vec<Event> {
    let messages = [Message::new(Role::User, "Where?")];
    let request = engine.submit_chat(&messages, params, None).expect("accepted");
    let mut events = Vec::new();
    loop {
        match request.next(Some(LONG)) {
            Ok(event) => events.push(event),
            Err(Error::End) => return events,
            Err(error) => panic!("{error}"),
        }
    }
}

fn text(events: &[Event], kind: EventKind) -> String {
    events.iter().filter(|event| event.kind == kind).map(|event| event.text.as_str()).collect()
}

fn calls(events: &[Event]) -> Vec<&ToolCallNews> {
    let calls = events.iter().filter(|event| event.kind == EventKind::ToolCall);
    calls.filter_map(|event| event.tool_call.as_ref()).collect()
}

fn finish(events: &[Event]) -> Option<FinishReason> {
    events.last().and_then(|event| event.finish)
}

#[test]
fn a_call_is_told_in_parts_and_whole() {
    for lab in labs() {
        let (engine, control) = lab.start();
        control.say(CALL);
        let events = events(&engine, &offering(200));
        assert_eq!(text(&events, EventKind::Thought), "I look.");
        assert_eq!(text(&events, EventKind::ToolDelta), "{\"a\": 1}");
        assert_eq!(text(&events, EventKind::Delta), "");
        let told = calls(&events);
        assert_eq!((told.len(), told[0].name.as_str()), (1, "find"));
        assert_eq!(
            (told[0].arguments.as_str(), told[0].form),
            ("{\"a\": 1}", Some(ArgumentsForm::Json))
        );
        let ids = events.iter().filter_map(|event| event.tool_call.as_ref()).map(|call| &call.id);
        assert!(ids.clone().all(|id| id == &told[0].id && id.starts_with("call_")));
        assert_eq!(finish(&events), Some(FinishReason::ToolCalls));
        // What the model makes up behind its call is not even generated.
        let shown = CALL.find(" made up").expect("it is there");
        let last = events.last().expect("an end");
        assert_eq!(last.usage.completion_tokens as usize, shown);
        let ids: usize = events.iter().map(|event| event.token_ids.len()).sum();
        assert_eq!(ids, shown);
    }
}

#[test]
fn an_answer_is_told_as_text() {
    let (engine, control) = lab().start();
    control.say("Thought: I now know the final answer.\nFinal Answer: It is 你好.");
    let told = events(&engine, &offering(200));
    assert_eq!(text(&told, EventKind::Delta), "It is 你好.");
    assert_eq!(text(&told, EventKind::Thought), "I now know the final answer.");
    assert_eq!((calls(&told).len(), finish(&told)), (0, Some(FinishReason::Stop)));
    // Without tools, all of it is text.
    let told = events(&engine, &greedy(200));
    assert!(text(&told, EventKind::Delta).starts_with("Thought: I now"));
}

#[test]
fn what_ends_too_early_is_no_call() {
    let (engine, control) = lab().start();
    control.say(CALL);
    let cut = CALL.find(": 1}").expect("it is there");
    let told = events(&engine, &offering(cut));
    assert_eq!((calls(&told).len(), finish(&told)), (0, Some(FinishReason::Length)));
    assert_eq!(text(&told, EventKind::ToolDelta), "{\"a\"");
    // The model's own end is one; and what it left open is closed and flagged.
    control.say(&CALL[..cut + 3]);
    let told = events(&engine, &offering(200));
    assert_eq!(calls(&told)[0].arguments, "{\"a\": 1}");
    assert_eq!(calls(&told)[0].form, Some(ArgumentsForm::Mended));
    assert_eq!(finish(&told), Some(FinishReason::ToolCalls));
    // A caller's stop text comes first.
    control.say(CALL);
    let told = events(&engine, &GenerationParams { stop: vec!["Action:".into()], ..offering(200) });
    assert_eq!((calls(&told).len(), finish(&told)), (0, Some(FinishReason::Stop)));
    assert_eq!(text(&told, EventKind::Thought), "I look.");
}

#[test]
fn a_chosen_tool_is_called() {
    let (engine, control) = lab().start();
    control.say(" {}\n");
    let tool_choice = ToolChoice::Named("draw".into());
    let told = events(&engine, &GenerationParams { tool_choice, ..offering(200) });
    assert_eq!((calls(&told)[0].name.as_str(), calls(&told)[0].arguments.as_str()), ("draw", "{}"));
    control.say(" find\nAction Input: {}");
    let tool_choice = ToolChoice::Required;
    let told = events(&engine, &GenerationParams { tool_choice, ..offering(200) });
    assert_eq!(calls(&told)[0].name, "find");
    control.say("\nAction: find\nAction Input: {}");
    let tool_choice = ToolChoice::None;
    let told = events(&engine, &GenerationParams { tool_choice, ..offering(200) });
    assert_eq!((calls(&told).len(), finish(&told)), (0, Some(FinishReason::Stop)));
}

#[test]
fn what_cannot_be_offered_is_refused() {
    let (engine, _) = lab().start();
    let refusal = |params: GenerationParams| match engine
        .submit_chat(&[Message::new(Role::User, "x")], &params, None)
        .err()
    {
        Some(Error::Option { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    let unknown = ToolChoice::Named("sing".into());
    assert_eq!(refusal(GenerationParams { tool_choice: unknown, ..offering(9) }), "tool_choice");
    let required = GenerationParams { tool_choice: ToolChoice::Required, ..greedy(9) };
    assert_eq!(refusal(required), "tool_choice");
    let raw = engine.submit_tokens(vec![20], &offering(9), None).err();
    assert!(matches!(raw, Some(Error::Option { key, .. }) if key == "tools"));
}

#[test]
fn a_session_remembers_calls_and_results() {
    let (engine, control) = lab().start();
    let session = Session::new(&engine, None);
    let params = offering(200);
    let on = &mut |_: &Event| Flow::Continue;
    assert!(matches!(session.tool_result("x", &params, on), Err(Error::State { .. })));
    control.say(CALL);
    let reply = session.chat("Where?", &params, on).expect("a call");
    assert_eq!((reply.text.as_str(), reply.finish), ("I look.", FinishReason::ToolCalls));
    let call = reply.tool_call.expect("a call");
    let ToolCall { id, name, arguments } = &call;
    assert_eq!((name.as_str(), arguments.as_str()), ("find", "{\"a\": 1}"));
    // A dropped turn leaves the call waiting.
    let dropped = session.tool_result("Here.", &params, &mut |_| Flow::Cancel);
    assert_eq!(dropped.err(), Some(Error::Cancelled));
    control.say(" I now know the final answer.\nFinal Answer: Here.");
    let reply = session.tool_result("Here.", &params, on).expect("an answer");
    assert_eq!((reply.text.as_str(), reply.finish), ("Here.", FinishReason::Stop));
    let messages = session.messages().expect("free");
    assert_eq!(messages.len(), 5);
    assert_eq!(
        (messages[2].tool_call.as_ref(), messages[2].content.as_str()),
        (Some(&call), "I look.")
    );
    assert_eq!((messages[3].role, messages[3].tool_call_id.as_ref()), (Role::Tool, Some(id)));
    // The answer can be made anew, the whole be copied, and a turn is all of it.
    assert_eq!(session.regenerate(&params, on).expect("anew").text, "Here.");
    assert_eq!(session.messages(), Ok(messages.clone()));
    let copy = Session::new(&engine, None);
    copy.append(messages.clone()).expect("in order");
    assert_eq!(copy.messages(), Ok(messages.clone()));
    assert!(copy.append(messages[2..].to_vec()).is_err());
    // A result may be the last: its reply is then generated. Not without the call before it.
    assert!(copy.append(vec![messages[1].clone(), messages[3].clone()]).is_err());
    session.chat("And now?", &params, on).expect("an answer");
    session.truncate(1).expect("free");
    assert_eq!(session.messages(), Ok(messages));
    session.truncate(0).expect("free");
    assert_eq!(session.messages().expect("free").len(), 1);
}
