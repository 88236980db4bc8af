//! A conversation: history plus the engine that continues it. One writer at a time.

use crate::engine::{Engine, Event, FinishReason, GenerationParams, Usage};
use crate::error::{Error, Result};
use crate::text::chat::Message;

/// What a streaming callback wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// Finish now and keep the turn.
    Stop,
    /// Finish now and drop the turn.
    Cancel,
}

/// A finished reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub text: String,
    pub finish: FinishReason,
    pub usage: Usage,
}

/// A conversation. Calls from two threads at once: the second gets `Error::Busy`.
pub struct Session {}

impl Session {
    /// A conversation that begins with `system` (the format's default when `None`).
    pub fn new(engine: &Engine, system: Option<String>) -> Session {
        let _ = (engine, system);
        Session {}
    }

    /// Says `text` and streams the reply to `on_event` on this thread; the turn is stored when it
    /// finishes (not when it fails or is dropped).
    pub fn chat(
        &self,
        text: &str,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let _ = (text, params, on_event);
        Err(Error::Closed { object: "engine" })
    }

    /// Drops the last reply and generates it anew. `Error::State` with no history.
    pub fn regenerate(
        &self,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let _ = (params, on_event);
        Err(Error::Closed { object: "engine" })
    }

    /// All messages, the system message first.
    pub fn messages(&self) -> Result<Vec<Message>> {
        Ok(Vec::new())
    }

    /// Appends messages as they are, nothing generated. Roles must alternate user, assistant.
    pub fn append(&self, messages: Vec<Message>) -> Result<()> {
        let _ = messages;
        Ok(())
    }

    /// Keeps the first `num_turns` user-assistant pairs.
    pub fn truncate(&self, num_turns: usize) -> Result<()> {
        let _ = num_turns;
        Ok(())
    }

    /// Replaces the system message; `None` means the default.
    pub fn set_system(&self, system: Option<String>) -> Result<()> {
        let _ = system;
        Ok(())
    }
}
