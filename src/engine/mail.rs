//! What the loop has posted for one request and nobody has taken yet: the news of each of its choices,
//! which coalesce, and its end. Plain data behind the lock of `request::Mailbox`.

use std::collections::VecDeque;

use crate::engine::calls::Part;
use crate::engine::logits::{Drawn, TokenLogprobs};
use crate::engine::request::{Event, EventKind, FinishReason, Usage};
use crate::error::{Error, Result};

/// See above.
#[derive(Default)]
pub(super) struct Mail {
    started: bool,
    choices: Vec<Choice>,
    /// Who is asked first for news: choices take turns.
    next: usize,
    num_ended: usize,
    /// Of the choices that have ended; the prompt counts once.
    usage: Usage,
    /// The first of a choice.
    error: Option<Error>,
    end: Option<Event>,
    /// The completion queue holds an entry for this mailbox.
    pub(super) announced: bool,
}

/// News of one reply.
#[derive(Default)]
struct Choice {
    /// Neighbours of one kind are one; a reply changes its kind a few times at most.
    parts: VecDeque<Part>,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    is_over: bool,
    /// To be told, where there are several choices.
    end: Option<(FinishReason, Usage)>,
}

impl Choice {
    /// Ids whose text is held back wait for it, or for the end.
    fn has_delta(&self) -> bool {
        !self.parts.is_empty() || (self.is_over && !self.token_ids.is_empty())
    }

    fn is_ready(&self) -> bool {
        self.has_delta() || self.end.is_some()
    }

    fn take(&mut self, tag: u64) -> Option<Event> {
        if self.has_delta() {
            let mut delta = Event::new(tag, EventKind::Delta);
            if let Some(part) = self.parts.pop_front() {
                delta.kind = part.kind;
                delta.text = part.text;
                delta.bytes = part.bytes;
                delta.tool_call = part.tool_call;
            }
            delta.token_ids = std::mem::take(&mut self.token_ids);
            delta.logprobs = std::mem::take(&mut self.logprobs);
            return Some(delta);
        }
        let (finish, usage) = self.end.take()?;
        let mut event = Event::new(tag, EventKind::ChoiceFinished);
        (event.finish, event.usage) = (Some(finish), usage);
        Some(event)
    }
}

impl Mail {
    /// Expects so many replies.
    pub(super) fn open(&mut self, num_choices: usize) {
        self.choices.resize_with(num_choices, Choice::default);
    }

    pub(super) fn start(&mut self) {
        self.started = true;
    }

    /// Adds parts of a reply, in order, and the tokens they came from.
    pub(super) fn add(
        &mut self,
        choice: usize,
        parts: Vec<Part>,
        drawn: impl IntoIterator<Item = Drawn>,
    ) {
        let Some(choice) = self.choices.get_mut(choice) else { return };
        for part in parts {
            match choice.parts.back_mut() {
                Some(last) if last.joins(&part) => last.append(part),
                _ if part.is_empty() => {}
                _ => choice.parts.push_back(part),
            }
        }
        for drawn in drawn {
            choice.token_ids.push(drawn.token);
            choice.logprobs.extend(drawn.logprobs);
        }
    }

    /// Ends one choice; with the last of them, the request. Its error is the first of theirs.
    pub(super) fn end(
        &mut self,
        tag: u64,
        choice: usize,
        outcome: Result<FinishReason>,
        usage: Usage,
    ) {
        let is_one_of_many = self.choices.len() > 1;
        let Some(choice) = self.choices.get_mut(choice).filter(|choice| !choice.is_over) else {
            return;
        };
        choice.is_over = true;
        self.num_ended += 1;
        self.usage.prompt_tokens = usage.prompt_tokens;
        // What others than its own choices had left.
        let is_first = self.num_ended == 1;
        let cached_before = if is_first { u64::MAX } else { self.usage.cached_tokens };
        self.usage.cached_tokens = usage.cached_tokens.min(cached_before);
        self.usage.completion_tokens += usage.completion_tokens;
        let finish = outcome.as_ref().ok().copied();
        choice.end = finish.filter(|_| is_one_of_many).map(|finish| (finish, usage));
        self.error = self.error.take().or(outcome.err());
        if !self.is_over() {
            return;
        }
        let mut event = Event::new(tag, EventKind::Finished);
        event.usage = self.usage;
        match self.error.take() {
            None => event.finish = finish,
            Some(error) => {
                event.kind = EventKind::Failed;
                event.error = Some(error);
            }
        }
        self.end = Some(event);
    }

    /// All choices have ended: nothing more will be posted.
    pub(super) fn is_over(&self) -> bool {
        !self.choices.is_empty() && self.num_ended == self.choices.len()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.started || self.end.is_some() || self.choices.iter().any(Choice::is_ready)
    }

    /// The oldest event of the choice whose turn it is; the request's end after all of them.
    pub(super) fn take(&mut self, tag: u64) -> Option<Event> {
        if std::mem::take(&mut self.started) {
            return Some(Event::new(tag, EventKind::Started));
        }
        let count = self.choices.len();
        for at in (self.next..count).chain(0..self.next) {
            if let Some(mut event) = self.choices[at].take(tag) {
                event.choice = at as u32;
                self.next = (at + 1) % count;
                return Some(event);
            }
        }
        self.end.take()
    }
}
