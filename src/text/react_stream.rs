//! A reply in Qwen's ReAct format -> thought, call and answer, while it is made.
//!
//! ```text
//! Thought: ...            thought, until a marker
//! Action: name            a call begins; not one if no arguments follow
//! Action Input: {...}     its arguments, until an observation or the end
//! Observation:            what the caller's tool would say: the reply is over
//! Final Answer: ...       the answer; in it nothing is a marker any more
//! ```
//!
//! What it is: a machine that takes one byte at a time, so that how the stream is cut cannot matter.
//! A marker stands at the beginning of a line; what may still become one is held back, and so is
//! white space at the end of a part. What it is not: a check of the call; the name may be one that no
//! tool has. Text that only looks like a call comes as the text it is. Whole characters come in (of
//! `TextStream`), and every marker is ASCII, so whole characters go out.

use crate::text::ReplyStart;
use crate::text::mend::{ArgumentsForm, mend};
use crate::text::tools::MAX_NAME_BYTES;

/// A part of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the person: the answer, or a reply outside the format.
    Answer(Vec<u8>),
    /// What the model says to itself.
    Thought(Vec<u8>),
    /// The next bytes of the arguments of a call, as the model writes them.
    Arguments {
        /// The tool that is called.
        name: String,
        /// What is new of them.
        bytes: Vec<u8>,
    },
    /// The call is complete.
    Call(Call),
}

/// A call of a tool that the model made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The tool, by the model's word.
    pub name: String,
    /// Its arguments: as the model wrote them, or mended.
    pub arguments: String,
    /// What became of them.
    pub form: ArgumentsForm,
}

const THOUGHT: &[u8] = b"\nThought:";
const ACTION: &[u8] = b"\nAction:";
const INPUT: &[u8] = b"\nAction Input:";
const OBSERVATION: &[u8] = b"\nObservation:";
const ANSWER: &[u8] = b"\nFinal Answer:";

/// Most bytes held back: a name or white space longer than this is text.
const HOLD_BYTES: usize = 2 * MAX_NAME_BYTES;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Text outside the format, so far.
    Lead,
    Thought,
    /// At a tool's name, from `at` on in what is held. Without arguments behind it, it is text after
    /// all: of a thought or of a lead.
    Name {
        in_thought: bool,
        at: usize,
    },
    Arguments {
        name: String,
        raw: Vec<u8>,
    },
    Answer,
    /// A call was told, or an observation came.
    Over,
}

impl State {
    /// What ends this part.
    fn markers(&self) -> &'static [&'static [u8]] {
        match self {
            State::Lead => &[THOUGHT, ACTION, OBSERVATION, ANSWER],
            State::Thought => &[ACTION, OBSERVATION, ANSWER],
            State::Name { .. } => &[INPUT, ACTION, OBSERVATION, ANSWER],
            State::Arguments { .. } => &[OBSERVATION],
            State::Answer | State::Over => &[],
        }
    }
}

/// One reply on its way out. One thread at a time.
#[derive(Debug, Clone)]
pub struct ReactStream {
    state: State,
    /// Bytes taken and not told: white space, the start of a marker, or a marker and a name.
    held: Vec<u8>,
    /// `held` begins with a line break that nobody wrote: the beginning of a reply begins a line.
    is_first: bool,
    /// Nothing of this part is told yet.
    is_fresh: bool,
    has_call: bool,
}

impl ReactStream {
    /// A stream that begins where the prompt has left off.
    pub fn new(start: ReplyStart) -> ReactStream {
        let is_first = start == ReplyStart::Reply;
        let state = match start {
            ReplyStart::Reply => State::Lead,
            ReplyStart::Thought => State::Thought,
            ReplyStart::Name => State::Name { in_thought: true, at: 0 },
            ReplyStart::Arguments(name) => State::Arguments { name, raw: Vec::new() },
            ReplyStart::Answer => State::Answer,
        };
        let held = if is_first { vec![b'\n'] } else { Vec::new() };
        ReactStream { state, held, is_first, is_fresh: true, has_call: false }
    }

    /// Was a call told?
    pub fn has_call(&self) -> bool {
        self.has_call
    }

    /// Takes `bytes` and adds what they decide to `pieces`; `true`: the reply is over, nothing more is
    /// taken.
    pub fn push(&mut self, bytes: &[u8], pieces: &mut Vec<Piece>) -> bool {
        for &byte in bytes {
            if self.state == State::Over {
                break;
            }
            self.held.push(byte);
            let is_marker = self.marker().is_some_and(|marker| self.pass(marker, pieces));
            if !is_marker {
                self.settle(pieces);
            }
        }
        self.state == State::Over
    }

    /// No more bytes will come. `is_whole`: the model ended the reply itself; if it did not, a call is
    /// told only where its arguments are JSON as they stand.
    pub fn finish(&mut self, is_whole: bool, pieces: &mut Vec<Piece>) {
        self.give_up_name();
        let told = match self.state {
            State::Thought | State::Arguments { .. } => self.held.trim_ascii_end().len(),
            _ => self.held.len(),
        };
        self.release(told, pieces);
        self.end(is_whole, pieces);
    }

    /// The marker that has just been completed, if one has.
    fn marker(&self) -> Option<&'static [u8]> {
        let mut markers = self.state.markers().iter().copied();
        markers.find(|marker| self.held.ends_with(marker))
    }

    /// Ends the part at `marker`, with which `held` ends; `false`: it is text here.
    fn pass(&mut self, marker: &'static [u8], pieces: &mut Vec<Piece>) -> bool {
        let start = self.held.len() - marker.len();
        if let (State::Name { at, .. }, INPUT) = (&self.state, marker) {
            let name = self.held.get(*at..start).and_then(name_in);
            match name {
                Some(name) => self.begin(State::Arguments { name, raw: Vec::new() }),
                None => self.give_up_name(),
            }
            return !matches!(self.state, State::Lead | State::Thought);
        }
        self.give_up_name();
        let before = self.held[..start].trim_ascii_end().len();
        let is_blank = self.is_fresh && before == 0;
        if marker == ANSWER && self.state == State::Lead && !is_blank {
            // What came before was told as an answer: this is more of it.
            return false;
        }
        self.release(before, pieces);
        match marker {
            ACTION => {
                let in_thought = self.state == State::Thought;
                self.state = State::Name { in_thought, at: self.held.len() };
            }
            OBSERVATION => self.end(true, pieces),
            THOUGHT => self.begin(State::Thought),
            _ => self.begin(State::Answer),
        }
        true
    }

    fn begin(&mut self, state: State) {
        self.state = state;
        self.held.clear();
        self.is_first = false;
        self.is_fresh = true;
    }

    /// What began like a call was text.
    fn give_up_name(&mut self) {
        if let State::Name { in_thought, .. } = self.state {
            self.state = if in_thought { State::Thought } else { State::Lead };
        }
    }

    /// Tells all that can no longer become a marker, or white space at an end.
    fn settle(&mut self, pieces: &mut Vec<Piece>) {
        if let State::Name { at, .. } = self.state {
            if self.held.len() - at <= HOLD_BYTES {
                return;
            }
            self.give_up_name();
        }
        let line = self.held.iter().rposition(|&byte| byte == b'\n').unwrap_or(self.held.len());
        let mut markers = self.state.markers().iter();
        let may_come = markers.any(|marker| marker.starts_with(&self.held[line..]));
        let decided = if may_come { line } else { self.held.len() };
        let told = match self.state {
            State::Answer => decided,
            _ if self.held.len() > HOLD_BYTES => decided,
            _ => self.held[..decided].trim_ascii_end().len(),
        };
        self.release(told, pieces);
    }

    /// Tells the first `count` bytes held. White space at the beginning of a part is dropped, but a
    /// lead is told verbatim.
    fn release(&mut self, count: usize, pieces: &mut Vec<Piece>) {
        let mut bytes: Vec<u8> = self.held.drain(..count).collect();
        if count > 0 && std::mem::take(&mut self.is_first) {
            bytes.remove(0);
        }
        if self.is_fresh && self.state != State::Lead {
            bytes = bytes.trim_ascii_start().to_vec();
        }
        if bytes.is_empty() {
            return;
        }
        self.is_fresh = false;
        let piece = match &mut self.state {
            State::Thought => Piece::Thought(bytes),
            State::Arguments { name, raw } => {
                raw.extend_from_slice(&bytes);
                Piece::Arguments { name: name.clone(), bytes }
            }
            _ => Piece::Answer(bytes),
        };
        add(piece, pieces);
    }

    /// Ends the reply, and tells its call.
    fn end(&mut self, is_whole: bool, pieces: &mut Vec<Piece>) {
        self.held.clear();
        if let State::Arguments { name, raw } = std::mem::replace(&mut self.state, State::Over) {
            let (arguments, form) = mend(&String::from_utf8_lossy(&raw));
            if is_whole || form == ArgumentsForm::Json {
                pieces.push(Piece::Call(Call { name, arguments, form }));
                self.has_call = true;
            }
        }
    }
}

/// Adds `piece` to the last of its kind.
fn add(piece: Piece, pieces: &mut Vec<Piece>) {
    match (pieces.last_mut(), &piece) {
        (Some(Piece::Answer(last)), Piece::Answer(more))
        | (Some(Piece::Thought(last)), Piece::Thought(more))
        | (Some(Piece::Arguments { bytes: last, .. }), Piece::Arguments { bytes: more, .. }) => {
            last.extend_from_slice(more);
        }
        _ => pieces.push(piece),
    }
}

/// A tool's name: one line that is not empty.
fn name_in(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes.trim_ascii()).ok()?;
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\n');
    fits.then(|| name.to_string())
}
