//! A conversation with tools -> the turns of Qwen's ReAct format.
//!
//! What it is: the texts that Qwen's own server makes of such messages, byte for byte. A turn of the
//! assistant is all of its thoughts, calls, results and its answer up to the next question; the
//! tools are described once, before the last question that has an answer, or before the only one.
//! What it is not: tokens (`chat` makes them), or the reading of a reply (`react_stream`).
//!
//! A choice of tool, which Qwen's server does not know, becomes the first words of the reply.

use crate::error::Result;
use crate::text::message::{Message, Role, refuse};
use crate::text::tools::{ToolChoice, Tools};

/// Where in the format a reply begins: the prompt has said what comes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyStart {
    /// At its beginning.
    Reply,
    /// In a thought.
    Thought,
    /// At the name of a tool.
    Name,
    /// At the arguments of this tool.
    Arguments(String),
    /// In the final answer.
    Answer,
}

/// The texts of a conversation, control tokens and tools left out.
#[derive(Debug)]
pub(super) struct Dialogue {
    /// Questions and their answers, from the oldest.
    pub(super) turns: Vec<(String, String)>,
    /// The question to be answered.
    pub(super) query: String,
    /// What its answer begins with.
    pub(super) opening: String,
    pub(super) start: ReplyStart,
}

/// Does this conversation need the format?
pub(super) fn is_needed(messages: &[Message], tools: Option<&Tools>) -> bool {
    let is_call = |message: &Message| message.role == Role::Tool || message.tool_call.is_some();
    tools.is_some() || messages.iter().any(is_call)
}

/// The format strips line breaks before, and white space behind every text.
pub(super) fn stripped(text: &str) -> &str {
    // Python's idea of white space has four control characters more.
    let is_space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    text.trim_start_matches('\n').trim_end_matches(is_space)
}

/// `messages`, which begin behind a system message and at `first` of the caller's, as turns.
///
/// # Errors
/// `Argument` that names the message where the order is another one than: a user's message; any
/// number of the assistant's, a tool's result behind a call; again a user's. A user's or a tool's
/// is the last.
pub(super) fn arrange(
    messages: &[Message],
    first: usize,
    tools: Option<&Tools>,
    choice: &ToolChoice,
) -> Result<Dialogue> {
    let mut texts: Vec<(Role, String)> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &messages[before]);
        check_order(before, message)
            .map_err(|reason| refuse(format!("messages[{}]: {reason}", index + first)))?;
        match (message.role, texts.last_mut()) {
            (Role::Tool, Some((_, text))) => {
                text.push_str(&format!("\nObservation: {}", stripped(&message.content)));
            }
            (Role::Assistant, Some((Role::Assistant, text))) => {
                text.push('\n');
                text.push_str(&said(message, tools.is_some()));
            }
            (Role::Assistant, _) => {
                let text = said(message, tools.is_some());
                texts.push((Role::Assistant, stripped(&text).to_string()));
            }
            _ => texts.push((Role::User, stripped(&message.content).to_string())),
        }
    }
    let awaited = messages.last().map(|message| message.role);
    let mut opening = match awaited {
        Some(Role::User) => String::new(),
        Some(Role::Tool) => texts.pop().map(|(_, text)| text + "\nThought:").unwrap_or_default(),
        _ => return Err(refuse("the last message is neither a user's nor a tool's".into())),
    };
    let start = lead(&mut opening, tools.map_or(&ToolChoice::Auto, |_| choice));
    let query = texts.pop().map(|(_, text)| text).unwrap_or_default();
    let mut turns = Vec::new();
    let mut texts = texts.into_iter().map(|(_, text)| stripped(&text).to_string());
    while let (Some(question), Some(answer)) = (texts.next(), texts.next()) {
        turns.push((question, answer));
    }
    Ok(Dialogue { turns, query, opening, start })
}

/// May `message` follow `before`? The reason if not.
fn check_order(before: Option<&Message>, message: &Message) -> std::result::Result<(), String> {
    let role = message.role;
    match (before.map(|before| before.role), role) {
        (None | Some(Role::Assistant | Role::Tool), Role::User) => Ok(()),
        (Some(_), Role::Assistant) => Ok(()),
        (Some(Role::Assistant), Role::Tool) => {
            let call = before.and_then(|before| before.tool_call.as_ref());
            let call = call.ok_or("a tool's result where no tool was called")?;
            match message.tool_call_id.as_deref().unwrap_or_default() {
                id if id.is_empty() || id == call.id => Ok(()),
                id => Err(format!("`tool_call_id` is {id:?}, the call before is {:?}", call.id)),
            }
        }
        (_, Role::Tool) => Err("a tool's result where no tool was called".into()),
        (None, _) => Err(format!("{:?} where \"user\" is due", role.name())),
        (Some(_), Role::System) => Err("a system message that is not the first".into()),
        (Some(_), Role::User) => Err("a second question before an answer".into()),
    }
}

/// An assistant's message in the words of the format.
fn said(message: &Message, with_tools: bool) -> String {
    let content = stripped(&message.content);
    match &message.tool_call {
        None if with_tools => {
            format!("Thought: I now know the final answer.\nFinal Answer: {content}")
        }
        None => content.to_string(),
        Some(call) => {
            let thought = if content.starts_with("Thought:") { "" } else { "Thought: " };
            let (name, arguments) = (&call.name, &call.arguments);
            format!("{thought}{content}\nAction: {name}\nAction Input: {arguments}")
        }
    }
}

/// Leads the reply to what was chosen, behind what it begins with: nothing, or an open thought.
fn lead(opening: &mut String, choice: &ToolChoice) -> ReplyStart {
    let is_thinking = !opening.is_empty();
    let (words, start) = match choice {
        ToolChoice::Auto if is_thinking => return ReplyStart::Thought,
        ToolChoice::Auto => return ReplyStart::Reply,
        ToolChoice::None => {
            (" I now know the final answer.\nFinal Answer:".to_string(), ReplyStart::Answer)
        }
        ToolChoice::Required => {
            (" I need to use one of the APIs.\nAction:".to_string(), ReplyStart::Name)
        }
        ToolChoice::Named(name) => (
            format!(" I need to use {name}.\nAction: {name}\nAction Input:"),
            ReplyStart::Arguments(name.clone()),
        ),
    };
    if !is_thinking {
        opening.push_str("Thought:");
    }
    opening.push_str(&words);
    start
}
