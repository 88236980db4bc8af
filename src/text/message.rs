//! The messages of a conversation, and how they are read from JSON and written back.
//!
//! What it is: OpenAI's chat messages, as far as Qwen knows them: texts by role, a call of a tool, a
//! tool's result. What it is not: a prompt (`chat` and `react` make it). JSON comes from callers; a
//! field that would be lost silently is refused.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::tools::{MAX_NAME_BYTES, ToolCall};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The standing instruction; at most one, and first.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool, with the result of the model's call.
    Tool,
}

impl Role {
    const ALL: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];

    /// The role's name in JSON and in the prompt.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, verbatim. Of an assistant that calls a tool, its thought; of a tool, the result.
    pub content: String,
    /// The tool that an assistant calls. One at most: the format has no two calls at once.
    pub tool_call: Option<ToolCall>,
    /// Which call a tool's message answers; `None` or empty: the one before it.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of nothing but text.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), tool_call: None, tool_call_id: None }
    }

    /// The JSON object that `parse_messages` reads as this message.
    pub fn to_json(&self) -> Value {
        let mut object = json!({ "role": self.role.name(), "content": self.content });
        if let Some(ToolCall { id, name, arguments }) = &self.tool_call {
            let function = json!({ "name": name, "arguments": arguments });
            object["tool_calls"] = json!([{ "id": id, "type": "function", "function": function }]);
        }
        if let Some(id) = &self.tool_call_id {
            object["tool_call_id"] = json!(id);
        }
        object
    }
}

/// The longest JSON text of messages taken, in bytes.
pub const MAX_MESSAGES_BYTES: usize = 64 << 20;

/// `[{"role": "user", "content": "..."}, ...]` -> messages. Roles are `system`, `user`, `assistant`
/// and `tool`. An assistant's message may have one of `tool_calls`, and its content may then be null
/// or absent; a tool's may have `tool_call_id`.
///
/// # Errors
/// `Argument` that names the message and the fault: not JSON, not such an array, an unknown role, a
/// missing content, a field that would otherwise be lost silently, or too long.
pub fn parse_messages(json: &str) -> Result<Vec<Message>> {
    if json.len() > MAX_MESSAGES_BYTES {
        let length = json.len();
        return Err(refuse(format!("{length} bytes; {MAX_MESSAGES_BYTES} are allowed")));
    }
    let items: Vec<Value> = serde_json::from_str(json)
        .map_err(|error| refuse(format!("not a JSON array of messages: {error}")))?;
    let parse = |(index, item)| {
        parse_message(item).map_err(|reason| refuse(format!("messages[{index}]: {reason}")))
    };
    items.into_iter().enumerate().map(parse).collect()
}

/// Messages -> the JSON text that `parse_messages` takes.
pub fn messages_json(messages: &[Message]) -> String {
    Value::Array(messages.iter().map(Message::to_json).collect()).to_string()
}

/// An error of the argument `messages`.
pub(super) fn refuse(reason: String) -> Error {
    Error::Argument { argument: "messages", reason }
}

type Parsed<T> = std::result::Result<T, String>;

fn parse_message(item: Value) -> Parsed<Message> {
    let Value::Object(mut fields) = item else { return Err("not an object".into()) };
    let name = take_text(&mut fields, "role")?;
    let role = Role::from_name(&name).ok_or_else(|| format!("unknown role {name:?}"))?;
    let tool_call = match (role, fields.remove("tool_calls")) {
        (_, None) => None,
        (Role::Assistant, Some(calls)) => parse_calls(calls)?,
        (_, Some(_)) => return Err("only an assistant's message has `tool_calls`".into()),
    };
    let tool_call_id = match (role, fields.contains_key("tool_call_id")) {
        (_, false) => None,
        (Role::Tool, true) => Some(take_text(&mut fields, "tool_call_id")?),
        (_, true) => return Err("only a tool's message has `tool_call_id`".into()),
    };
    let content = match (&tool_call, fields.get("content")) {
        (Some(_), None | Some(Value::Null)) => {
            fields.remove("content");
            String::new()
        }
        _ => take_text(&mut fields, "content")?,
    };
    no_more(&fields)?;
    Ok(Message { role, content, tool_call, tool_call_id })
}

fn parse_calls(calls: Value) -> Parsed<Option<ToolCall>> {
    let Value::Array(mut calls) = calls else { return Err("`tool_calls` is not a list".into()) };
    match (calls.pop(), calls.len()) {
        (None, _) => Ok(None),
        (Some(call), 0) => match parse_call(call) {
            Ok(call) => Ok(Some(call)),
            Err(reason) => Err(format!("tool_calls[0]: {reason}")),
        },
        (Some(_), more) => {
            Err(format!("{} `tool_calls`; the model's format has one in a message", more + 1))
        }
    }
}

fn parse_call(call: Value) -> Parsed<ToolCall> {
    let Value::Object(mut fields) = call else { return Err("not an object".into()) };
    if fields.remove("type").is_some_and(|kind| kind != "function") {
        return Err("only the type \"function\" is known".into());
    }
    let id = match fields.contains_key("id") {
        true => take_text(&mut fields, "id")?,
        false => String::new(),
    };
    let Some(Value::Object(mut function)) = fields.remove("function") else {
        return Err("there is no object `function`".into());
    };
    no_more(&fields)?;
    let name = take_text(&mut function, "name")?;
    let arguments = take_text(&mut function, "arguments")?;
    no_more(&function)?;
    // The model's word, which may be no tool's name.
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) || name.contains('\n') {
        return Err(format!("`name` wants a line of 1 to {MAX_NAME_BYTES} bytes"));
    }
    Ok(ToolCall { id, name, arguments })
}

fn take_text(fields: &mut Map<String, Value>, field: &str) -> Parsed<String> {
    match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{field}` is not a string")),
        None => Err(format!("there is no `{field}`")),
    }
}

fn no_more(fields: &Map<String, Value>) -> Parsed<()> {
    match fields.keys().next() {
        Some(field) => Err(format!("unknown field {field:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(json: &str) -> String {
        match parse_messages(json) {
            Err(Error::Argument { argument: "messages", reason }) => reason,
            other => panic!("{json}: {other:?}"),
        }
    }

    #[test]
    fn messages_are_parsed() {
        let json = r#"[{"role":"system","content":""},{"content":"a\u0000b","role":"user"}]"#;
        let expected =
            [(Role::System, ""), (Role::User, "a\0b")].map(|(role, text)| Message::new(role, text));
        assert_eq!(parse_messages(json).unwrap(), expected);
        assert_eq!(parse_messages("[]").unwrap(), []);
    }

    #[test]
    fn calls_and_results_are_parsed_and_written_back() {
        let json = r#"[{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","content":"5","tool_call_id":"c1"},
            {"role":"assistant","content":"x","tool_calls":[]}]"#;
        let messages = parse_messages(json).unwrap();
        let call = ToolCall { id: "c1".into(), name: "f".into(), arguments: "{}".into() };
        assert_eq!((messages[0].content.as_str(), &messages[0].tool_call), ("", &Some(call)));
        assert_eq!(messages[1].tool_call_id.as_deref(), Some("c1"));
        assert_eq!(messages[2], Message::new(Role::Assistant, "x"));
        let written: Vec<Value> = messages.iter().map(Message::to_json).collect();
        assert_eq!(parse_messages(&Value::Array(written).to_string()).unwrap(), messages);
    }

    #[test]
    fn bad_messages_are_refused_by_place() {
        assert!(reason("").starts_with("not a JSON array of messages"));
        assert!(reason("{}").starts_with("not a JSON array of messages"));
        assert!(reason(&"[".repeat(1 << 20)).starts_with("not a JSON array of messages"));
        assert_eq!(reason("[1]"), "messages[0]: not an object");
        assert_eq!(reason(r#"[{"content":"a"}]"#), "messages[0]: there is no `role`");
        let unknown = r#"[{"role":"user","content":"a"},{"role":"function","content":"b"}]"#;
        assert_eq!(reason(unknown), r#"messages[1]: unknown role "function""#);
        assert_eq!(reason(r#"[{"role":"user"}]"#), "messages[0]: there is no `content`");
        let null = r#"[{"role":"user","content":null}]"#;
        assert_eq!(reason(null), "messages[0]: `content` is not a string");
        let extra = r#"[{"role":"user","content":"a","name":"b"}]"#;
        assert_eq!(reason(extra), r#"messages[0]: unknown field "name""#);
        let long = "x".repeat(MAX_MESSAGES_BYTES + 1);
        assert!(reason(&long).ends_with("are allowed"));
    }

    #[test]
    fn bad_calls_are_refused_by_place() {
        let said = |role: &str, extra: &str| {
            reason(&format!(r#"[{{"role":"{role}","content":"a",{extra}}}]"#))
        };
        let call = |call: &str| said("assistant", &format!(r#""tool_calls":[{call}]"#));
        assert!(
            said("user", r#""tool_calls":[]"#)
                .ends_with("only an assistant's message has `tool_calls`")
        );
        assert!(
            said("user", r#""tool_call_id":"a""#)
                .ends_with("only a tool's message has `tool_call_id`")
        );
        assert!(said("tool", r#""tool_call_id":5"#).ends_with("`tool_call_id` is not a string"));
        assert!(said("assistant", r#""tool_calls":5"#).ends_with("`tool_calls` is not a list"));
        assert_eq!(call("5"), "messages[0]: tool_calls[0]: not an object");
        assert!(call("{},{}").ends_with("2 `tool_calls`; the model's format has one in a message"));
        assert!(call(r#"{"type":"x"}"#).ends_with("only the type \"function\" is known"));
        assert!(call("{}").ends_with("there is no object `function`"));
        assert!(call(r#"{"function":{"name":"f"}}"#).ends_with("there is no `arguments`"));
        let name = r#"{"function":{"name":"f\ng","arguments":""}}"#;
        assert!(call(name).contains("tool_calls[0]: `name` wants a line of 1 to 256"));
        assert!(call(r#"{"function":{},"index":0}"#).ends_with("unknown field \"index\""));
    }

    /// What the model calls a tool is its own word, and must survive being saved.
    #[test]
    fn a_call_of_an_improper_name_is_read_back() {
        let call = ToolCall {
            id: "call_1".into(),
            name: "`get weather`".into(),
            arguments: "{\"place\"".into(),
        };
        let said = Message { tool_call: Some(call), ..Message::new(Role::Assistant, "I look.") };
        assert_eq!(parse_messages(&messages_json(std::slice::from_ref(&said))), Ok(vec![said]));
    }
}
