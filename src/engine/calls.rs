//! A reply with tools inside the loop: from the text stream's deltas to parts of a mailbox.
//!
//! What it is: the bridge between the format's reader (`text`) and events. What it is not: a judge of
//! calls: whether the tool exists, and whether its arguments fit, is the caller's to say.

use crate::engine::request::{EventKind, FinishReason};
use crate::engine::start::random_seed;
use crate::text::{ArgumentsForm, Piece, ReactStream, ReplyStart, TextDelta};

/// What an event tells of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallNews {
    /// By which the result names the call; the same in all events of a reply.
    pub id: String,
    /// The tool, by the model's word: it may be one that does not exist.
    pub name: String,
    /// On `ToolCall`: all arguments, mended where `form` says so. On `ToolDelta` empty.
    pub arguments: String,
    /// On `ToolCall`.
    pub form: Option<ArgumentsForm>,
}

/// A part of a reply, of one kind.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) kind: EventKind,
    /// Whole characters.
    pub(crate) text: String,
    /// The same, verbatim.
    pub(crate) bytes: Vec<u8>,
    pub(crate) tool_call: Option<ToolCallNews>,
}

impl Part {
    pub(crate) fn text(kind: EventKind, text: String, bytes: Vec<u8>) -> Part {
        Part { kind, text, bytes, tool_call: None }
    }

    /// Whole characters of a reply with tools: the text stream has cut between characters, and the
    /// format cuts beside ASCII.
    fn of_bytes(kind: EventKind, bytes: Vec<u8>) -> Part {
        Part::text(kind, String::from_utf8_lossy(&bytes).into_owned(), bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.tool_call.is_none()
    }

    /// Is `next` more of the same?
    pub(crate) fn joins(&self, next: &Part) -> bool {
        self.kind == next.kind && self.kind != EventKind::ToolCall
    }

    pub(crate) fn append(&mut self, next: Part) {
        self.text.push_str(&next.text);
        self.bytes.extend(next.bytes);
    }
}

/// The reader of one reply.
pub(crate) struct ReactReply {
    stream: ReactStream,
    call_id: String,
}

impl ReactReply {
    pub(crate) fn new(start: ReplyStart) -> ReactReply {
        ReactReply {
            stream: ReactStream::new(start),
            call_id: format!("call_{:016x}", random_seed()),
        }
    }

    /// What `delta` decides, and whether the reply ends with it.
    pub(crate) fn push(&mut self, delta: &TextDelta) -> (Vec<Part>, bool) {
        let mut pieces = Vec::new();
        let is_over = self.stream.push(&delta.bytes, &mut pieces);
        (self.parts(pieces), is_over || delta.stopped)
    }

    /// What the last delta and the end decide, and why the reply ended: a reply that ends by itself
    /// with a call ends for the call.
    pub(crate) fn finish(
        &mut self,
        tail: &TextDelta,
        reason: FinishReason,
    ) -> (Vec<Part>, FinishReason) {
        let mut pieces = Vec::new();
        self.stream.push(&tail.bytes, &mut pieces);
        let is_whole = reason == FinishReason::Stop;
        self.stream.finish(is_whole, &mut pieces);
        let for_call = is_whole && self.stream.has_call();
        (self.parts(pieces), if for_call { FinishReason::ToolCalls } else { reason })
    }

    fn parts(&self, pieces: Vec<Piece>) -> Vec<Part> {
        pieces.into_iter().map(|piece| self.part(piece)).collect()
    }

    fn part(&self, piece: Piece) -> Part {
        let news = |name, arguments, form| {
            Some(ToolCallNews { id: self.call_id.clone(), name, arguments, form })
        };
        match piece {
            Piece::Answer(bytes) => Part::of_bytes(EventKind::Delta, bytes),
            Piece::Thought(bytes) => Part::of_bytes(EventKind::Thought, bytes),
            Piece::Arguments { name, bytes } => Part {
                tool_call: news(name, String::new(), None),
                ..Part::of_bytes(EventKind::ToolDelta, bytes)
            },
            Piece::Call(call) => Part {
                tool_call: news(call.name, call.arguments, Some(call.form)),
                ..Part::text(EventKind::ToolCall, String::new(), Vec::new())
            },
        }
    }
}
