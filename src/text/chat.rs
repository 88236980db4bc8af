//! ChatML -> token ids, built piece by piece so that content can never become a control token.
//!
//! What it is: the prompt of a chat, with the same pieces, in the same order, that Qwen was trained
//! on; each role and each content is encoded by itself, so a piece that starts with a line break
//! keeps its own tokens. What it is not: a template engine, or tool calling. Messages come from
//! callers (as JSON or as values) and leave as ids for the engine.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::text::tokenizer::{Specials, Tokenizer};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The standing instruction; at most one, and first.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in JSON and in the prompt.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Role> {
        [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.name() == name)
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, verbatim: it is never stripped.
    pub content: String,
}

/// The system text when none is given.
pub const DEFAULT_SYSTEM: &str = "You are a helpful assistant.";

/// The longest JSON text of messages taken, in bytes.
pub const MAX_MESSAGES_BYTES: usize = 64 << 20;

/// `[{"role": "user", "content": "..."}, ...]` -> messages. Roles are `system`, `user` and
/// `assistant`.
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

fn parse_message(item: Value) -> std::result::Result<Message, String> {
    let Value::Object(mut fields) = item else { return Err("not an object".into()) };
    let name = take_text(&mut fields, "role")?;
    let role = Role::from_name(&name).ok_or_else(|| format!("unknown role {name:?}"))?;
    let content = take_text(&mut fields, "content")?;
    match fields.keys().next() {
        Some(field) => Err(format!("unknown field {field:?}")),
        None => Ok(Message { role, content }),
    }
}

fn take_text(fields: &mut Map<String, Value>, field: &str) -> std::result::Result<String, String> {
    match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{field}` is not a string")),
        None => Err(format!("there is no `{field}`")),
    }
}

/// Messages -> prompt ids, ready for the assistant's reply: a system message or none, then user and
/// assistant in turn, a user message last.
///
/// Past turns (a user message and its answer) are taken from the newest backwards for as long as
/// the system block, the turns taken and the next one together are fewer than `max_window_size`
/// tokens; all older ones are left out. The system text and the last message are never cut, and the
/// last message is not counted.
///
/// # Errors
/// `Argument` where the messages are not in that order.
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    max_window_size: usize,
) -> Result<Vec<u32>> {
    let (system, turns, query) = arrange(messages)?;
    let format = ChatMl::new(tokenizer);
    let mut ids = format.block(Role::System, system);
    for turn in format.window(ids.len(), &turns, max_window_size) {
        ids.extend(turn);
    }
    ids.extend(format.next_block(Role::User, query));
    ids.extend(&format.line_break);
    ids.extend(format.opening(Role::Assistant));
    Ok(ids)
}

/// No rendering of `messages` has fewer ids than this, whatever the window; nothing is encoded.
///
/// # Errors
/// Those of [`render`].
pub(crate) fn fewest_tokens(tokenizer: &Tokenizer, messages: &[Message]) -> Result<usize> {
    let (system, _, query) = arrange(messages)?;
    Ok(tokenizer.fewest_tokens(system) + tokenizer.fewest_tokens(query))
}

/// A past question and its answer.
type Turn<'a> = (&'a str, &'a str);

/// A question and its answer, side by side.
fn turn(pair: &[Message]) -> Turn<'_> {
    (&pair[0].content, &pair[1].content)
}

/// Messages -> system text, past turns from the oldest, and the question to answer.
fn arrange(messages: &[Message]) -> Result<(&str, Vec<Turn<'_>>, &str)> {
    let (system, first, dialogue) = match messages {
        [Message { role: Role::System, content }, rest @ ..] => (content.as_str(), 1, rest),
        rest => (DEFAULT_SYSTEM, 0, rest),
    };
    for (index, message) in dialogue.iter().enumerate() {
        let due = if index % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != due {
            let (found, due, index) = (message.role.name(), due.name(), index + first);
            return Err(refuse(format!("messages[{index}]: {found:?} where {due:?} is due")));
        }
    }
    let Some((query, past)) = dialogue.split_last().filter(|(last, _)| last.role == Role::User)
    else {
        return Err(refuse("the last message is not from the user".into()));
    };
    Ok((system, past.chunks_exact(2).map(turn).collect(), &query.content))
}

fn refuse(reason: String) -> Error {
    Error::Argument { argument: "messages", reason }
}

/// The pieces of the format in one tokenizer's ids.
struct ChatMl<'a> {
    tokenizer: &'a Tokenizer,
    line_break: Vec<u32>,
}

impl ChatMl<'_> {
    fn new(tokenizer: &Tokenizer) -> ChatMl<'_> {
        ChatMl { tokenizer, line_break: tokenizer.encode("\n", Specials::AsText) }
    }

    /// `<|im_start|>{role}\n`
    fn opening(&self, role: Role) -> Vec<u32> {
        let mut ids = vec![self.tokenizer.im_start()];
        ids.extend(self.tokenizer.encode(role.name(), Specials::AsText));
        ids.extend(&self.line_break);
        ids
    }

    /// `<|im_start|>{role}\n{content}<|im_end|>`
    fn block(&self, role: Role, content: &str) -> Vec<u32> {
        let mut ids = self.opening(role);
        ids.extend(self.tokenizer.encode(content, Specials::AsText));
        ids.push(self.tokenizer.im_end());
        ids
    }

    /// A block after another one: line breaks stand between blocks, not after each.
    fn next_block(&self, role: Role, content: &str) -> Vec<u32> {
        let mut ids = self.line_break.clone();
        ids.extend(self.block(role, content));
        ids
    }

    /// The newest past turns that fit beside `system_tokens`, from the oldest of them. Older turns
    /// are not even encoded.
    fn window(&self, system_tokens: usize, turns: &[Turn<'_>], limit: usize) -> Vec<Vec<u32>> {
        let mut kept = Vec::new();
        let mut total_tokens = system_tokens;
        for (question, answer) in turns.iter().rev() {
            let fewest = [question, answer].map(|text| self.tokenizer.fewest_tokens(text));
            if total_tokens + fewest[0] + fewest[1] >= limit {
                break;
            }
            let mut turn = self.next_block(Role::User, question);
            turn.extend(self.next_block(Role::Assistant, answer));
            total_tokens += turn.len();
            if total_tokens >= limit {
                break;
            }
            kept.push(turn);
        }
        kept.reverse();
        kept
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
        let expected = [(Role::System, ""), (Role::User, "a\0b")]
            .map(|(role, content)| Message { role, content: content.into() });
        assert_eq!(parse_messages(json).unwrap(), expected);
        assert_eq!(parse_messages("[]").unwrap(), []);
    }

    #[test]
    fn bad_messages_are_refused_by_place() {
        assert!(reason("").starts_with("not a JSON array of messages"));
        assert!(reason("{}").starts_with("not a JSON array of messages"));
        assert!(reason(&"[".repeat(1 << 20)).starts_with("not a JSON array of messages"));
        assert_eq!(reason("[1]"), "messages[0]: not an object");
        assert_eq!(reason(r#"[{"content":"a"}]"#), "messages[0]: there is no `role`");
        let unknown = r#"[{"role":"user","content":"a"},{"role":"tool","content":"b"}]"#;
        assert_eq!(reason(unknown), r#"messages[1]: unknown role "tool""#);
        assert_eq!(reason(r#"[{"role":"user"}]"#), "messages[0]: there is no `content`");
        let null = r#"[{"role":"user","content":null}]"#;
        assert_eq!(reason(null), "messages[0]: `content` is not a string");
        let extra = r#"[{"role":"user","content":"a","tool_calls":[]}]"#;
        assert_eq!(reason(extra), r#"messages[0]: unknown field "tool_calls""#);
        let long = "x".repeat(MAX_MESSAGES_BYTES + 1);
        assert!(reason(&long).ends_with("are allowed"));
    }

    #[test]
    fn only_a_dialogue_can_be_arranged() {
        use Role::{Assistant, System, User};
        let refused: [&[Role]; 7] = [
            &[],
            &[System],
            &[Assistant],
            &[User, Assistant],
            &[User, User],
            &[User, System, User],
            &[System, System, User],
        ];
        let say = |role: &Role| Message { role: *role, content: "x".into() };
        for roles in refused {
            let messages: Vec<Message> = roles.iter().map(say).collect();
            assert!(matches!(arrange(&messages), Err(Error::Argument { .. })), "{roles:?}");
        }
        let messages = [User, Assistant, User].map(|role| say(&role));
        assert_eq!(arrange(&messages).unwrap(), (DEFAULT_SYSTEM, vec![("x", "x")], "x"));
    }
}
