//! ChatML -> token ids, built piece by piece so that content can never become a control token.

use crate::error::Result;
use crate::text::tokenizer::{Specials, Tokenizer};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// The system text when none is given.
pub const DEFAULT_SYSTEM: &str = "You are a helpful assistant.";

/// `[{"role": "user", "content": "..."}, ...]` -> messages.
pub fn parse_messages(json: &str) -> Result<Vec<Message>> {
    let _ = json;
    Ok(Vec::new())
}

/// Messages -> prompt ids, ready for the assistant's reply. Oldest turns beyond `max_window_size`
/// are left out.
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    max_window_size: usize,
) -> Result<Vec<u32>> {
    let _ = max_window_size;
    let newline = tokenizer.encode("\n", Specials::AsText);
    let mut ids = Vec::new();
    for message in messages {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        ids.push(tokenizer.im_start());
        ids.extend(tokenizer.encode(role, Specials::AsText));
        ids.extend(&newline);
        ids.extend(tokenizer.encode(&message.content, Specials::AsText));
        ids.push(tokenizer.im_end());
        ids.extend(&newline);
    }
    ids.push(tokenizer.im_start());
    ids.extend(tokenizer.encode("assistant", Specials::AsText));
    ids.extend(&newline);
    Ok(ids)
}
