//! A conversation: history plus the engine that continues it. One writer at a time.
//!
//! History changes only when a reply is complete: a turn that fails, or that the callback drops,
//! leaves it as it was. No lock is held while a callback runs.

use std::thread::ThreadId;

use parking_lot::Mutex;

use crate::engine::options::wrong;
use crate::engine::{
    Engine, Event, EventKind, FinishReason, GenerationParams, Request, ToolCallNews, Usage,
};
use crate::error::{Error, Result};
use crate::text::chat::{DEFAULT_SYSTEM, Message, Role};
use crate::text::tools::ToolCall;

/// What a streaming callback wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Finish now and keep the turn.
    Stop,
    /// Finish now and drop the turn.
    Cancel,
}

/// A finished reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// What the callback was given, as it is stored in the history. Of a call of a tool, and of a reply
    /// that never came to an answer, it is the thought.
    pub text: String,
    /// The tool that the model calls.
    pub tool_call: Option<ToolCall>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens counted, also those that came too late for a callback that had stopped.
    pub usage: Usage,
}

/// A conversation. Calls from two threads at once: the second gets `Error::Busy`. A callback that
/// calls into the session that is calling it gets `Error::Reentrant`. Holds its engine open.
pub struct Session {
    engine: Engine,
    visitor: Mutex<Option<Visitor>>,
    history: Mutex<History>,
}

/// Who is inside a call.
struct Visitor {
    thread: ThreadId,
    /// The reply this call makes, if it makes one. It is there from the first moment on, long before
    /// it is submitted, so that whoever sees the session busy can cancel it.
    request: Request,
}

/// A system message and complete turns: a user's message and what follows it, an assistant's last.
struct History {
    system: String,
    turns: Vec<Message>,
}

impl History {
    fn messages(&self) -> Vec<Message> {
        let system = Message::new(Role::System, self.system.as_str());
        std::iter::once(system).chain(self.turns.iter().cloned()).collect()
    }
}

/// A thread's stay in the session; leaving is its drop, also by a panicking callback.
struct Visit<'a> {
    session: &'a Session,
    request: Request,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // A request that was left early loses its last handle with this visit, which cancels it.
        *self.session.visitor.lock() = None;
    }
}

impl Session {
    /// A conversation that begins with `system` (the format's default when `None`).
    pub fn new(engine: &Engine, system: Option<String>) -> Session {
        let system = system.unwrap_or_else(|| DEFAULT_SYSTEM.to_string());
        let history = Mutex::new(History { system, turns: Vec::new() });
        Session { engine: engine.clone(), visitor: Mutex::new(None), history }
    }

    /// Says `text` and streams the reply to `on_event` on this thread; the turn is stored when it
    /// finishes (not when it fails or is dropped). `Flow::Stop` ends the callbacks: the turn is
    /// stored with what they were given. `Flow::Cancel` gives `Error::Cancelled`.
    pub fn chat(
        &self,
        text: &str,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let visit = self.enter()?;
        self.say(&visit, Message::new(Role::User, text), params, on_event)
    }

    /// Gives the result of the tool that the last reply calls, and streams the reply to it as `chat`
    /// does; both are stored when it finishes. `Error::State` where no call waits for a result.
    pub fn tool_result(
        &self,
        result: &str,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let visit = self.enter()?;
        let call = self.history.lock().turns.last().and_then(|last| last.tool_call.clone());
        let Some(call) = call else {
            return Err(Error::State { reason: "no call waits for a result".to_string() });
        };
        let result = Message { tool_call_id: Some(call.id), ..Message::new(Role::Tool, result) };
        self.say(&visit, result, params, on_event)
    }

    /// Adds `message` and the reply to it, once there is one.
    fn say(
        &self,
        visit: &Visit<'_>,
        message: Message,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let mut messages = self.history.lock().messages();
        messages.push(message.clone());
        let reply = self.generate(&visit.request, &messages, params, on_event)?;
        self.history.lock().turns.extend([message, reply.message()]);
        Ok(reply)
    }

    /// Generates the last reply anew, and replaces it when the new one finishes. `Error::State`
    /// with no history.
    pub fn regenerate(
        &self,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let visit = self.enter()?;
        let mut messages = self.history.lock().messages();
        if messages.pop().is_none_or(|last| last.role != Role::Assistant) {
            return Err(Error::State { reason: "there is no reply to generate anew".to_string() });
        }
        let reply = self.generate(&visit.request, &messages, params, on_event)?;
        if let Some(last) = self.history.lock().turns.last_mut() {
            *last = reply.message();
        }
        Ok(reply)
    }

    /// All messages, the system message first.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let _visit = self.enter()?;
        Ok(self.history.lock().messages())
    }

    /// Appends messages as they are, nothing generated. A system message at their beginning replaces
    /// the session's; after it, roles must alternate user, assistant, and end with an assistant's. Behind
    /// an assistant's call there may be the tool's result, and again an assistant's. All or nothing.
    pub fn append(&self, mut messages: Vec<Message>) -> Result<()> {
        let _visit = self.enter()?;
        let leads = messages.first().is_some_and(|message| message.role == Role::System);
        let system = leads.then(|| messages.remove(0).content);
        let before = std::iter::once(None).chain(messages.iter().map(Some));
        if let Some(index) =
            messages.iter().zip(before).position(|(message, before)| !follows(before, message))
        {
            return Err(wrong_messages(format!(
                "message {}: roles must alternate user, assistant",
                index + usize::from(leads)
            )));
        }
        if messages.last().is_some_and(|last| last.role != Role::Assistant) {
            return Err(wrong_messages("the last message has no reply".to_string()));
        }
        let mut history = self.history.lock();
        if let Some(system) = system {
            history.system = system;
        }
        history.turns.extend(messages);
        Ok(())
    }

    /// Keeps the first `num_turns` turns, each a user's message and all that follows it; 0 clears the
    /// history.
    pub fn truncate(&self, num_turns: usize) -> Result<()> {
        let _visit = self.enter()?;
        let turns = &mut self.history.lock().turns;
        let mut begins = turns.iter().enumerate().filter(|(_, said)| said.role == Role::User);
        if let Some((index, _)) = begins.nth(num_turns) {
            turns.truncate(index);
        }
        Ok(())
    }

    /// Replaces the system message; `None` means the default.
    pub fn set_system(&self, system: Option<String>) -> Result<()> {
        let _visit = self.enter()?;
        self.history.lock().system = system.unwrap_or_else(|| DEFAULT_SYSTEM.to_string());
        Ok(())
    }

    /// Ends the reply that is being made, if one is, within one engine step: `keep` stores the turn
    /// as `Flow::Stop` does, otherwise it is dropped as by `Flow::Cancel`. The one call for which
    /// the session need not be free: any thread, and its own callback.
    pub fn cancel(&self, keep: bool) -> Result<()> {
        self.engine.check_process()?;
        if let Some(visitor) = &*self.visitor.lock() {
            visitor.request.cancel(keep);
        }
        Ok(())
    }

    /// Takes the session for this thread.
    fn enter(&self) -> Result<Visit<'_>> {
        self.engine.check_process()?;
        let thread = std::thread::current().id();
        let mut visitor = self.visitor.lock();
        match &*visitor {
            None => {}
            Some(other) if other.thread == thread => {
                return Err(Error::Reentrant { object: "session" });
            }
            Some(_) => return Err(Error::Busy { object: "session" }),
        }
        let request = Request::prepared(None);
        *visitor = Some(Visitor { thread, request: request.clone() });
        Ok(Visit { session: self, request })
    }

    /// Streams one reply, which `request` becomes.
    fn generate(
        &self,
        request: &Request,
        messages: &[Message],
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        if params.n != 1 {
            return Err(wrong("n", "a session makes one reply".to_string()));
        }
        self.engine.begin_chat(request, messages, params)?;
        let mut heard = Heard::default();
        loop {
            let event = request.next(None)?;
            heard.hear(&event);
            let flow = on_event(&event);
            if let Some(error) = event.error {
                return Err(error);
            }
            match (flow, event.finish) {
                (Flow::Cancel, _) => return Err(Error::Cancelled),
                (_, Some(finish)) => return Ok(heard.reply(finish, event.usage)),
                (Flow::Stop, None) => return stopped(request, heard),
                (Flow::Continue, None) => {}
            }
        }
    }
}

/// What a callback was told so far.
#[derive(Default)]
struct Heard {
    answer: String,
    thought: String,
    tool_call: Option<ToolCall>,
}

impl Heard {
    fn hear(&mut self, event: &Event) {
        match (event.kind, &event.tool_call) {
            (EventKind::Thought, _) => self.thought.push_str(&event.text),
            (EventKind::ToolDelta, _) => {}
            (EventKind::ToolCall, Some(ToolCallNews { id, name, arguments, .. })) => {
                let (id, name, arguments) = (id.clone(), name.clone(), arguments.clone());
                self.tool_call = Some(ToolCall { id, name, arguments });
            }
            _ => self.answer.push_str(&event.text),
        }
    }

    fn reply(self, finish: FinishReason, usage: Usage) -> Reply {
        let Heard { answer, thought, tool_call } = self;
        let text = if answer.is_empty() { thought } else { answer };
        Reply { text, tool_call, finish, usage }
    }
}

impl Reply {
    /// This reply as the history keeps it.
    fn message(&self) -> Message {
        let tool_call = self.tool_call.clone();
        Message { tool_call, ..Message::new(Role::Assistant, self.text.as_str()) }
    }
}

/// May `message` stand behind `before` in a history?
fn follows(before: Option<&Message>, message: &Message) -> bool {
    match before.map(|before| before.role) {
        None => message.role == Role::User,
        Some(Role::User | Role::Tool) => message.role == Role::Assistant,
        Some(Role::Assistant) => match message.role {
            Role::User => true,
            Role::Tool => before.is_some_and(|before| before.tool_call.is_some()),
            _ => false,
        },
        Some(Role::System) => false,
    }
}

/// Ends a request whose reader has seen enough: `text` is the reply.
fn stopped(request: &Request, heard: Heard) -> Result<Reply> {
    request.cancel(true);
    loop {
        let event = request.next(None)?;
        match event.kind {
            EventKind::Finished => {
                return Ok(heard.reply(FinishReason::Cancelled, event.usage));
            }
            EventKind::Failed => return Err(event.error.unwrap_or(Error::Cancelled)),
            _ => {}
        }
    }
}

fn wrong_messages(reason: String) -> Error {
    Error::Argument { argument: "messages", reason }
}
