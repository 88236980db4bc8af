//! The call of a tool that an event tells of.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::buffers::qwen_buf;
use super::event::{put, qwen_event};
use super::guard::guard_value;
use crate::engine::ToolCallNews;
use crate::text::ArgumentsForm;

/// Form of a call's arguments: JSON, as the model wrote it.
pub const QWEN_ARGUMENTS_JSON: i32 = 1;
/// Form of a call's arguments: JSON, mended: the model left brackets, quotes or commas open, or wrote
/// Python's quotes and literals.
pub const QWEN_ARGUMENTS_MENDED: i32 = 2;
/// Form of a call's arguments: no JSON; the text as the model wrote it.
pub const QWEN_ARGUMENTS_TEXT: i32 = 3;

/// A call's texts, with a NUL behind each.
pub(super) struct ToolCallTexts {
    id: qwen_buf,
    name: qwen_buf,
    arguments: qwen_buf,
    form: i32,
}

impl ToolCallTexts {
    pub(super) fn new(call: &ToolCallNews) -> ToolCallTexts {
        ToolCallTexts {
            id: qwen_buf::new(call.id.as_bytes()),
            name: qwen_buf::new(call.name.as_bytes()),
            arguments: qwen_buf::new(call.arguments.as_bytes()),
            form: call.form.map_or(0, |form| match form {
                ArgumentsForm::Json => QWEN_ARGUMENTS_JSON,
                ArgumentsForm::Mended => QWEN_ARGUMENTS_MENDED,
                ArgumentsForm::Text => QWEN_ARGUMENTS_TEXT,
            }),
        }
    }
}

/// The id of the call, which its result names (`tool_call_id`): the same in all events of a reply. ""
/// where the event tells of no call. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tool_id(
    event: *const qwen_event,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const c_char {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tool_id", c"".as_ptr(), || give(event, |call| &call.id, len))
}

/// The tool that is called, by the model's word: it may be one that was not offered. "" where the
/// event tells of no call. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tool_name(
    event: *const qwen_event,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const c_char {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tool_name", c"".as_ptr(), || give(event, |call| &call.name, len))
}

/// All arguments of the call, on a QWEN_EVENT_TOOL_CALL; "" otherwise. Nothing has checked them against
/// the tool's parameters. Lives as long as the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tool_arguments(
    event: *const qwen_event,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const c_char {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tool_arguments", c"".as_ptr(), || {
        give(event, |call| &call.arguments, len)
    })
}

/// One of QWEN_ARGUMENTS_*, on a QWEN_EVENT_TOOL_CALL; 0 otherwise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_event_tool_arguments_form(event: *const qwen_event) -> i32 {
    // SAFETY: the caller gives NULL or a live event.
    let event = unsafe { event.as_ref() };
    guard_value("qwen_event_tool_arguments_form", 0, || {
        event.and_then(qwen_event::tool_call).map_or(0, |call| call.form)
    })
}

fn give(
    event: Option<&qwen_event>,
    which: impl Fn(&ToolCallTexts) -> &qwen_buf,
    len: Option<&mut MaybeUninit<u64>>,
) -> *const c_char {
    let text = event.and_then(qwen_event::tool_call).map(which);
    put(len, text.map_or(0, |text| text.content().len() as u64));
    text.map_or(c"".as_ptr(), qwen_buf::pointer)
}
