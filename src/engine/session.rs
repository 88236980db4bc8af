//! A conversation: history plus the engine that continues it. One writer at a time.
//!
//! History changes only when a reply is complete: a turn that fails, or that the callback drops,
//! leaves it as it was. No lock is held while a callback runs.

use std::thread::ThreadId;

use parking_lot::Mutex;

use crate::engine::options::wrong;
use crate::engine::saved;
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

/// A system message and turns: a user's message and what follows it, an assistant's last. Only `append`,
/// `edit` and `load` can leave a message without a reply at the end.
#[derive(Clone)]
struct History {
    system: String,
    turns: Vec<Message>,
}

impl History {
    fn messages(&self) -> Vec<Message> {
        let system = Message::new(Role::System, self.system.as_str());
        std::iter::once(system).chain(self.turns.iter().cloned()).collect()
    }

    fn lacks_reply(&self) -> bool {
        self.turns.last().is_some_and(|last| last.role != Role::Assistant)
    }

    /// This history and then `messages`.
    fn with(mut self, mut messages: Vec<Message>) -> Result<History> {
        let leads = messages.first().is_some_and(|message| message.role == Role::System);
        if leads {
            self.system = messages.remove(0).content;
        }
        let before = std::iter::once(self.turns.last()).chain(messages.iter().map(Some));
        let misplaced =
            messages.iter().zip(before).position(|(message, before)| !follows(before, message));
        if let Some(index) = misplaced {
            let index = index + usize::from(leads);
            let reason = format!("message {index}: roles must alternate user, assistant");
            return Err(Error::Argument { argument: "messages", reason });
        }
        self.turns.append(&mut messages);
        Ok(self)
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
        if self.history.lock().lacks_reply() {
            let reason = "the last message has no reply yet: generate it first";
            return Err(Error::State { reason: reason.to_string() });
        }
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

    /// Generates the last reply anew, and replaces it when the new one finishes; or the reply that the
    /// last user message does not have. `Error::State` with no history.
    pub fn regenerate(
        &self,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(&Event) -> Flow,
    ) -> Result<Reply> {
        let visit = self.enter()?;
        let mut messages = self.history.lock().messages();
        if messages.last().is_some_and(|last| last.role == Role::Assistant) {
            messages.pop();
        }
        if messages.last().is_none_or(|last| last.role == Role::System) {
            return Err(Error::State { reason: "there is nothing to reply to".to_string() });
        }
        let reply = self.generate(&visit.request, &messages, params, on_event)?;
        let turns = &mut self.history.lock().turns;
        // Without the system message.
        turns.truncate(messages.len() - 1);
        turns.push(reply.message());
        Ok(reply)
    }

    /// All messages, the system message first.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let _visit = self.enter()?;
        Ok(self.history.lock().messages())
    }

    /// Appends messages as they are, nothing generated. A system message at their beginning replaces
    /// the session's; after it, roles must alternate user, assistant, going on from the last there is.
    /// Behind an assistant's call there may be the tool's result, and again an assistant's. All or nothing.
    pub fn append(&self, messages: Vec<Message>) -> Result<()> {
        let _visit = self.enter()?;
        let mut history = self.history.lock();
        let longer = history.clone().with(messages)?;
        *history = longer;
        Ok(())
    }

    /// Replaces the text of message `index`, counted as `messages` lists them: 0 is the system message.
    pub fn edit(&self, index: usize, text: &str) -> Result<()> {
        let _visit = self.enter()?;
        let mut history = self.history.lock();
        let num_messages = history.turns.len() + 1;
        let content = match index.checked_sub(1) {
            None => Some(&mut history.system),
            Some(turn) => history.turns.get_mut(turn).map(|message| &mut message.content),
        };
        let content = content.ok_or_else(|| Error::Argument {
            argument: "index",
            reason: format!("{index} is not below {num_messages}, the number of messages"),
        })?;
        *content = text.to_string();
        Ok(())
    }

    /// A second conversation with the same past.
    pub fn fork(&self) -> Result<Session> {
        let _visit = self.enter()?;
        let history = self.history.lock().clone();
        Ok(Session {
            engine: self.engine.clone(),
            visitor: Mutex::new(None),
            history: Mutex::new(history),
        })
    }

    /// All of it as bytes (see `saved` for the layout). `Error::State` where that would be too large to
    /// be loaded.
    pub fn save(&self) -> Result<Vec<u8>> {
        let messages = self.messages()?;
        saved::write(&messages, self.engine.fingerprint())
    }

    /// Becomes what was saved. `Error::Corrupt` for bytes that are not sound, `Error::StateMismatch`
    /// for those of another model or format; then nothing has changed.
    pub fn load(&self, bytes: &[u8]) -> Result<()> {
        let _visit = self.enter()?;
        let messages = saved::read(bytes, self.engine.fingerprint())?;
        let empty = History { system: DEFAULT_SYSTEM.to_string(), turns: Vec::new() };
        // A sound checksum over messages that no session can have: made by somebody else.
        let loaded =
            empty.with(messages).map_err(|error| saved::corrupt(32, &error.to_string()))?;
        *self.history.lock() = loaded;
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
