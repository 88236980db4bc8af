//! `qwen_session`: a conversation that remembers its turns.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::arguments::{Handle, Out, array, free, handle, optional, text};
use super::buffers::qwen_buf;
use super::engine::qwen_engine;
use super::errors::qwen_error;
use super::event::{Listener, keeps, qwen_event_fn};
use super::guard::guard;
use super::options::{generation_params, qwen_options, session_system};
use crate::engine::Engine;
use crate::engine::session::Session;
use crate::error::Error;
use crate::text::chat::{Role, messages_json, parse_messages};

/// A conversation. One thread at a time: a call during another thread's call gets QWEN_E_BUSY.
/// Free it with qwen_session_free.
pub struct qwen_session(Arc<Conversation>);

/// The inside of `qwen_session`.
pub(super) struct Conversation {
    /// For the checkpoint's generation defaults.
    engine: Engine,
    session: Session,
}

impl Handle for qwen_session {
    type Inside = Arc<Conversation>;
    fn inside(&self) -> &Arc<Conversation> {
        &self.0
    }
}

/// Begins a conversation. `options`: session options (such as "system"), or NULL. The caller frees
/// `session`. Any thread.
///
/// Errors: QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED; QWEN_E_ARG for options of another
/// kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_new(
    engine: *const qwen_engine,
    options: *const qwen_options,
    session: Option<&mut MaybeUninit<*mut qwen_session>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_new", err, || {
        let out = Out::new("session", session)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        // SAFETY: the caller gives live options or NULL.
        let system = session_system(unsafe { optional(options) })?;
        engine.health()?;
        let session = Session::new(&engine, system);
        out.give(qwen_session(Arc::new(Conversation { engine, session })));
        Ok(())
    })
}

/// Says `text` and waits for the reply, which `on_event` (or NULL) is told with `user` as it is
/// made, on this thread. `options`: generation options, or NULL. The turn is remembered when the
/// reply is complete or the callback answers QWEN_STOP, and forgotten when it answers QWEN_CANCEL
/// or the call fails. qwen_session_reply has the whole reply.
///
/// Errors: QWEN_E_STATE where a message still waits for its reply; QWEN_E_CANCELLED and QWEN_E_CALLBACK by
/// `on_event`; QWEN_E_UTF8, QWEN_E_ARG, QWEN_E_OPTION, QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL,
/// QWEN_E_DEADLINE, QWEN_E_TIMEOUT, QWEN_E_BUSY, QWEN_E_REENTRANT, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_NOT_FINITE, QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_chat(
    session: *mut qwen_session,
    text: *const c_char,
    text_len: u64,
    options: *const qwen_options,
    on_event: qwen_event_fn,
    user: *mut c_void,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_chat", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives a text as the header says.
        let text = unsafe { self::text("text", text, text_len) }?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        let params = generation_params(options, inside.engine.generation_defaults())?;
        let mut listener = Listener::new(on_event, user);
        let reply = inside.session.chat(text, &params, &mut |event| listener.tell(event));
        listener.verdict(reply.map(drop))
    })
}

/// Forgets the last reply and makes it anew, or makes the one that is missing behind a user message that
/// was appended; otherwise as qwen_session_chat. If that fails, the conversation is as it was.
///
/// Errors: QWEN_E_STATE where there is nothing to reply to; otherwise as for qwen_session_chat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_regenerate(
    session: *mut qwen_session,
    options: *const qwen_options,
    on_event: qwen_event_fn,
    user: *mut c_void,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_regenerate", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        let params = generation_params(options, inside.engine.generation_defaults())?;
        let mut listener = Listener::new(on_event, user);
        let reply = inside.session.regenerate(&params, &mut |event| listener.tell(event));
        listener.verdict(reply.map(drop))
    })
}

/// Gives the result of the tool that the last reply calls (its finish reason was
/// QWEN_FINISH_TOOL_CALLS), and waits for the reply to it, otherwise as qwen_session_chat. `options`
/// should offer the same tools again. If that fails, the conversation is as it was: the call still
/// waits for its result.
///
/// Errors: QWEN_E_STATE where no call waits for a result; otherwise as for qwen_session_chat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_tool_result(
    session: *mut qwen_session,
    result: *const c_char,
    result_len: u64,
    options: *const qwen_options,
    on_event: qwen_event_fn,
    user: *mut c_void,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_tool_result", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives a text as the header says.
        let result = unsafe { text("result", result, result_len) }?;
        // SAFETY: the caller gives live options or NULL.
        let options = unsafe { optional(options) };
        let params = generation_params(options, inside.engine.generation_defaults())?;
        let mut listener = Listener::new(on_event, user);
        let reply = inside.session.tool_result(result, &params, &mut |event| listener.tell(event));
        listener.verdict(reply.map(drop))
    })
}

/// Ends the reply that is being made, if one is, within one step of the engine; `how` is QWEN_STOP
/// (it is kept) or QWEN_CANCEL (it is forgotten). Any thread, also during a call and from its
/// callback; does not wait.
///
/// Errors: QWEN_E_ARG; QWEN_E_FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_cancel(
    session: *mut qwen_session,
    how: i32,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_cancel", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        inside.session.cancel(keeps(how)?)
    })
}

/// The last reply, in UTF-8. The caller frees `reply`.
///
/// Errors: QWEN_E_STATE where there is none; QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_reply(
    session: *const qwen_session,
    reply: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_reply", err, || {
        let reply = Out::new("reply", reply)?;
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        let last = inside.session.messages()?.pop();
        let last = last.filter(|message| message.role == Role::Assistant);
        let none = || Error::State { reason: "the session has no reply yet".to_string() };
        reply.give(qwen_buf::new(last.ok_or_else(none)?.content));
        Ok(())
    })
}

/// All messages, the system message first, as JSON that qwen_session_append_json takes:
/// `[{"role", "content"}...]`, with `tool_calls` and `tool_call_id` where a tool is called and
/// answers. The caller frees `json`.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_messages_json(
    session: *const qwen_session,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_messages_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        json.give(qwen_buf::new(messages_json(&inside.session.messages()?)));
        Ok(())
    })
}

/// Appends messages as they are, without the model: user and assistant messages in alternation, behind an
/// assistant's call a tool's result and again an assistant's, going on from the last there is. A system
/// message at their beginning replaces the session's. All are appended or none. Where the last is no
/// assistant's, qwen_session_regenerate makes the reply.
///
/// Errors: QWEN_E_ARG for JSON of another form or roles out of order; QWEN_E_BUSY,
/// QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_append_json(
    session: *mut qwen_session,
    messages: *const c_char,
    messages_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_append_json", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives a text as the header says.
        let messages = unsafe { text("messages", messages, messages_len) }?;
        inside.session.append(parse_messages(messages)?)
    })
}

/// Keeps the first `num_turns` turns (a turn is a user message and all up to its reply); 0 forgets all. The
/// system message stays.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_truncate(
    session: *mut qwen_session,
    num_turns: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_truncate", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        inside.session.truncate(usize::try_from(num_turns).unwrap_or(usize::MAX))
    })
}

/// Replaces the system message; NULL means the chat format's own.
///
/// Errors: QWEN_E_UTF8, QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_set_system(
    session: *mut qwen_session,
    text: *const c_char,
    text_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_set_system", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        if text.is_null() {
            return inside.session.set_system(None);
        }
        // SAFETY: the caller gives a text as the header says.
        let text = unsafe { self::text("text", text, text_len) }?;
        inside.session.set_system(Some(text.to_string()))
    })
}

/// Replaces the text of one message; `index` counts as qwen_session_messages_json lists them, from 0,
/// the system message. Messages after it stay as they are: qwen_session_truncate forgets them, and
/// qwen_session_regenerate replies anew to the last one.
///
/// Errors: QWEN_E_ARG for an index of no message; QWEN_E_UTF8, QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_edit(
    session: *mut qwen_session,
    index: u64,
    text: *const c_char,
    text_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_edit", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives a text as the header says.
        let text = unsafe { self::text("text", text, text_len) }?;
        inside.session.edit(usize::try_from(index).unwrap_or(usize::MAX), text)
    })
}

/// A second conversation that begins with all messages of this one; from here on each goes its own
/// way. What both begin with is computed once, as long as the prefix cache has it. The caller frees
/// `fork`.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT; QWEN_E_FORKED, which is about processes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_fork(
    session: *const qwen_session,
    fork: Option<&mut MaybeUninit<*mut qwen_session>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_fork", err, || {
        let fork = Out::new("fork", fork)?;
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        let (engine, session) = (inside.engine.clone(), inside.session.fork()?);
        fork.give(qwen_session(Arc::new(Conversation { engine, session })));
        Ok(())
    })
}

/// The whole state of a session as bytes that qwen_session_load takes, to be kept wherever you like:
/// all messages, a fingerprint of the model, a checksum. Little-endian; N bytes of messages:
///
///     offset  size  meaning
///     0       8     "QWENSESS"
///     8       4     version of this format: 1
///     12      4     0
///     16      8     fingerprint: FNV-1a (64 bits) of the model's shape and vocabulary
///     24      8     N
///     32      N     messages, as qwen_session_messages_json gives them
///     32 + N  8     checksum: FNV-1a (64 bits) of all bytes before
///
/// The caller frees `saved`.
///
/// Errors: QWEN_E_STATE for more messages than JSON of 64 MiB holds; QWEN_E_BUSY, QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_save(
    session: *const qwen_session,
    saved: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_save", err, || {
        let saved = Out::new("saved", saved)?;
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        saved.give(qwen_buf::new(inside.session.save()?));
        Ok(())
    })
}

/// Replaces all messages of `session` by those that qwen_session_save saved. If that fails, the
/// session is as it was.
///
/// Errors: QWEN_E_CORRUPT for bytes that were not saved so, or not all of them; QWEN_E_STATE_MISMATCH
/// for another version of the format, or a model of another shape or vocabulary (weights are not
/// compared: other ones of the same shape, such as the quantised model, are welcome); QWEN_E_BUSY,
/// QWEN_E_REENTRANT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_load(
    session: *mut qwen_session,
    saved: *const u8,
    saved_len: u64,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_session_load", err, || {
        // SAFETY: the caller gives a live session or NULL.
        let inside = unsafe { handle("session", session) }?;
        // SAFETY: the caller gives `saved_len` readable bytes.
        inside.session.load(unsafe { array("saved", saved, saved_len) }?)
    })
}

/// Frees a session, also from its own callback. Any thread. NULL is nothing. A call that makes a reply in
/// it goes on to its end: qwen_session_cancel before if it is not to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_session_free(session: *mut qwen_session) {
    // SAFETY: the caller gives NULL or a session it owns, and uses it no more.
    unsafe { free("qwen_session_free", session) }
}
