//! ChatML -> token ids, built piece by piece so that content can never become a control token.

use crate::error::Result;
use crate::text::tokenizer::Tokenizer;

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
    let _ = (tokenizer, messages, max_window_size);
    Ok(Vec::new())
}
