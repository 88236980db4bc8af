//! ChatML -> token ids, built piece by piece so that content can never become a control token.
//!
//! What it is: the prompt of a chat, with the same pieces, in the same order, that Qwen was trained
//! on; each role and each content is encoded by itself, so a piece that starts with a line break
//! keeps its own tokens. What it is not: a template engine; what a conversation with tools says is
//! `react`'s. Messages come from callers and leave as ids for the engine.

use std::borrow::Cow;

use crate::error::Result;
use crate::text::message::refuse;
pub use crate::text::message::{MAX_MESSAGES_BYTES, Message, Role, messages_json, parse_messages};
use crate::text::react::{self, Dialogue, ReplyStart};
use crate::text::tokenizer::{Specials, Tokenizer};
use crate::text::tools::{ToolChoice, Tools};

/// The system text when none is given.
pub const DEFAULT_SYSTEM: &str = "You are a helpful assistant.";

/// A prompt, and how its reply is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Ready for the assistant's reply.
    pub ids: Vec<u32>,
    /// `None`: the reply is text and nothing else.
    pub react: Option<ReplyStart>,
}

/// Messages -> prompt ids, ready for the assistant's reply: a system message or none, then user and
/// assistant in turn, a user message last. Without tools, contents are taken verbatim: never
/// stripped.
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
    let window = Window { history_tokens: max_window_size, prompt_tokens: usize::MAX };
    Ok(render_with(tokenizer, messages, None, &ToolChoice::Auto, window)?.ids)
}

/// How much of a conversation goes into a prompt.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// As `max_window_size` of [`render`].
    pub history_tokens: usize,
    /// More of the oldest turns are left out where all ids together would be more than these. They still are
    /// where there is no turn left to leave out.
    pub prompt_tokens: usize,
}

/// `render` for a conversation that may have tools: with `tools`, or a call or a result among the
/// messages, it is Qwen's ReAct format, and the last message may be a tool's. If the turn that
/// describes the tools is left out of the window, the question describes them instead.
///
/// # Errors
/// `Argument` where the messages are not in order, naming the message.
pub fn render_with(
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&Tools>,
    choice: &ToolChoice,
    window: Window,
) -> Result<Prompt> {
    let Arranged { system, mut turns, mut query, opening, react } =
        arrange(messages, tools, choice)?;
    let format = ChatMl::new(tokenizer);
    let mut ids = format.block(Role::System, &system);
    let last = |query: &str| {
        let mut ids = format.next_block(Role::User, query);
        ids.extend(&format.line_break);
        ids.extend(format.opening(Role::Assistant));
        ids.extend(tokenizer.encode(&opening, Specials::AsText));
        ids
    };
    // The last turn with an answer carries the tools, if there is one and it fits.
    let is_answered = messages.last().is_some_and(|message| message.role == Role::Tool);
    let carrier = turns.last_mut().filter(|_| !is_answered);
    let is_carried = carrier.is_some();
    if let Some(tools) = tools {
        let carrier = carrier.map_or(&mut query, |(question, _)| question);
        *carrier = Cow::Owned(tools.ask(carrier));
    }
    let mut end = last(&query);
    let room = window.prompt_tokens.saturating_add(1).saturating_sub(end.len());
    let kept = format.window(ids.len(), &turns, window.history_tokens.min(room));
    if let Some(tools) = tools.filter(|_| is_carried && kept.is_empty()) {
        end = last(&tools.ask(&query));
    }
    ids.extend(kept.into_iter().flatten());
    ids.append(&mut end);
    Ok(Prompt { ids, react })
}

/// No rendering of `messages` has fewer ids than this, whatever the window, or if `is_whole`, with no turn
/// left out; nothing is encoded.
pub(crate) fn fewest_tokens(
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&Tools>,
    is_whole: bool,
) -> usize {
    let strips = react::is_needed(messages, tools);
    let fewest = |message: &Message| match strips {
        true => tokenizer.fewest_tokens(react::stripped(&message.content)),
        false => tokenizer.fewest_tokens(&message.content),
    };
    let system = messages.first().filter(|message| message.role == Role::System);
    // The window leaves out nothing from the last question on.
    let query = messages.iter().rposition(|message| message.role == Role::User);
    let first = if is_whole { Some(usize::from(system.is_some())) } else { query };
    let kept = first.and_then(|at| messages.get(at..)).unwrap_or_default();
    system.into_iter().chain(kept).map(fewest).sum()
}

/// A past question and its answer.
type Turn<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Messages in the places they have in a prompt.
struct Arranged<'a> {
    system: Cow<'a, str>,
    /// From the oldest.
    turns: Vec<Turn<'a>>,
    query: Cow<'a, str>,
    /// What the reply begins with.
    opening: String,
    react: Option<ReplyStart>,
}

fn arrange<'a>(
    messages: &'a [Message],
    tools: Option<&Tools>,
    choice: &ToolChoice,
) -> Result<Arranged<'a>> {
    let (system, first, dialogue) = match messages {
        [Message { role: Role::System, content, .. }, rest @ ..] => (content.as_str(), 1, rest),
        rest => (DEFAULT_SYSTEM, 0, rest),
    };
    if !react::is_needed(messages, tools) {
        let (turns, query) = arrange_texts(dialogue, first)?;
        let (system, query) = (Cow::Borrowed(system), Cow::Borrowed(query));
        return Ok(Arranged { system, turns, query, opening: String::new(), react: None });
    }
    let Dialogue { turns, query, opening, start } = react::arrange(dialogue, first, tools, choice)?;
    let owned = |(question, answer)| (Cow::Owned(question), Cow::Owned(answer));
    Ok(Arranged {
        system: Cow::Borrowed(react::stripped(system)),
        turns: turns.into_iter().map(owned).collect(),
        query: Cow::Owned(query),
        opening,
        react: Some(start),
    })
}

/// A dialogue of texts -> past turns from the oldest, and the question to answer.
fn arrange_texts(dialogue: &[Message], first: usize) -> Result<(Vec<Turn<'_>>, &str)> {
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
    Ok((past.chunks_exact(2).map(turn).collect(), &query.content))
}

/// A question and its answer, side by side.
fn turn(pair: &[Message]) -> Turn<'_> {
    (Cow::Borrowed(&pair[0].content), Cow::Borrowed(&pair[1].content))
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
    use crate::error::Error;

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
        let say = |role: &Role| Message::new(*role, "x");
        let tools = Tools::parse(&serde_json::json!([{ "name": "f" }])).unwrap();
        for tools in [None, Some(&tools)] {
            for roles in refused {
                let messages: Vec<Message> = roles.iter().map(say).collect();
                let arranged = arrange(&messages, tools, &ToolChoice::Auto);
                assert!(matches!(arranged, Err(Error::Argument { .. })), "{roles:?}");
            }
        }
        let messages = [User, Assistant, User].map(|role| say(&role));
        let arranged = arrange(&messages, None, &ToolChoice::Auto).unwrap();
        assert_eq!((&*arranged.system, &*arranged.query), (DEFAULT_SYSTEM, "x"));
        assert_eq!(arranged.turns, [("x".into(), "x".into())]);
    }
}
