//! One request inside the loop: a state machine from waiting to its finish, with its limits.
//!
//! ```text
//! Waiting -> Prefilling -> Running -> (ended: the loop drops it)
//!               ^    \________/
//!               |        v
//!               +--- Preempted      pages given back; what the prefix cache has lost is computed anew
//! ```
//!
//! The loop may run a step ahead: a token is in flight from the submission of the step that draws it
//! until it is accepted here, and the next step may be fed with it before anybody here knows it.
//!
//! It knows tokens, text and reasons to stop. It does not know the model, the batch or who else is
//! running. The loop thread owns it; its owner outside sees only the mailbox.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::FED;
use crate::engine::calls::ReactReply;
use crate::engine::histogram::Clock;
use crate::engine::logits::{Drawn, LogitRules, unmeasured};
use crate::engine::options::GenerationParams;
use crate::engine::request::{Deadline, FinishReason, Mailbox, Usage};
use crate::engine::scoring::PromptScores;
use crate::engine::states::States;
use crate::error::Error;
use crate::kv::{Found, PagePool, PageTable, Root};
use crate::sample::{SamplingParams, SeenTokens};
use crate::text::tokenizer::Tokenizer;
use crate::text::{TextDelta, TextStream};

/// What the scheduler sees of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Higher goes first.
    pub priority: i32,
    /// Tokens whose keys and values are in the cache.
    pub computed_tokens: usize,
    /// Tokens of prompt and reply so far, those in flight included. Always more than
    /// `computed_tokens`.
    pub total_tokens: usize,
    /// KV pages held.
    pub pages: usize,
    /// Of these, the ones that are free when it and all admitted ones behind it have given theirs back,
    /// and not free before.
    pub own_pages: usize,
    /// It is part of the running batch (prefilling or decoding).
    pub admitted: bool,
    /// Only the token drawn last is missing in the cache.
    pub decoding: bool,
    /// Its last token is in flight.
    pub ending: bool,
    /// From this position on the logits of every token are wanted; `usize::MAX`: only of the last.
    pub wanted_from: usize,
    /// It waits and had better do so for now, and whoever waits behind it with it.
    pub postponed: bool,
}

impl View {
    /// Tokens still to be computed before the next one can be drawn.
    pub fn pending_tokens(&self) -> usize {
        self.total_tokens - self.computed_tokens
    }
}

/// Where a sequence is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Waiting,
    Prefilling,
    Running,
    Preempted,
}

/// Order among sequences: the highest priority first, then the oldest.
pub(crate) type Order = (Reverse<i32>, u64);

/// What ends a reply, besides the caller.
pub(crate) struct Limits {
    /// Most tokens of prompt and reply together.
    pub(crate) total_tokens: usize,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) stop_texts: Vec<String>,
    /// The reply is in the format of tools, and ends as that says, too.
    pub(crate) react: Option<ReactReply>,
}

/// A request in the hands of the loop.
pub(crate) struct Sequence {
    /// Ascending in order of arrival.
    pub(crate) number: u64,
    priority: i32,
    /// For all of it.
    deadline: Deadline,
    /// Only while the request waits for its first step.
    queue_timeout: Deadline,
    pub(crate) clock: Clock,
    pub(crate) mailbox: Arc<Mailbox>,
    /// Which of the request's replies it makes.
    choice: usize,
    pub(crate) pages: PageTable,
    /// Under what its pages are found and published; `None`: it does not use the prefix cache.
    pub(crate) prefix_root: Option<Root>,
    phase: Phase,
    /// Prompt, then reply.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Of the prompt, what the prefix cache had when it was first admitted.
    cached_tokens: usize,
    /// In the cache once all submitted steps have run.
    computed_tokens: usize,
    /// Tokens that submitted steps draw and that have not been accepted yet.
    in_flight: usize,
    /// Which wanted row of the step submitted last draws the newest of them.
    in_flight_row: u32,
    /// Its owner wants what there is, and no more.
    is_cut: bool,
    total_tokens_limit: usize,
    stop_token_ids: Vec<u32>,
    stream: TextStream,
    react: Option<ReactReply>,
    sampling: SamplingParams,
    pub(crate) rules: LogitRules,
    seen: SeenTokens,
    /// The prompt is to be told, with the first token.
    echoes: bool,
    /// What is measured of the prompt, until the first token is drawn.
    scores: Option<PromptScores>,
    /// The token that is taken for the one drawn.
    target: Option<u32>,
    /// What is taken of the prompt's hidden states.
    pub(crate) states: Option<States>,
}

impl Sequence {
    /// A waiting sequence, for one of the choices of whoever has the mailbox. `prompt` is not empty.
    pub(crate) fn new(
        prompt: Vec<u32>,
        params: &GenerationParams,
        limits: Limits,
        (mailbox, choice): (Arc<Mailbox>, u32),
    ) -> Sequence {
        Sequence {
            number: 0,
            priority: params.priority,
            deadline: after_ms(params.deadline_ms),
            queue_timeout: after_ms(params.queue_timeout_ms),
            clock: Clock::new(mailbox.submitted()),
            mailbox,
            choice: choice as usize,
            pages: PageTable::new(),
            prefix_root: None,
            phase: Phase::Waiting,
            prompt_tokens: prompt.len(),
            seen: SeenTokens::from_prompt(&prompt),
            echoes: params.echo,
            scores: (params.echo && params.logprobs)
                .then(|| PromptScores::new(1, prompt.len(), params.top_logprobs as usize)),
            target: None,
            states: None,
            tokens: prompt,
            cached_tokens: 0,
            computed_tokens: 0,
            in_flight: 0,
            in_flight_row: 0,
            is_cut: false,
            total_tokens_limit: limits.total_tokens,
            stop_token_ids: limits.stop_token_ids,
            stream: TextStream::new(&limits.stop_texts),
            react: limits.react,
            sampling: params.sampling.clone(),
            rules: LogitRules::new(params),
        }
    }

    /// The same, to measure its tokens from index `first` on, and `target` behind the last.
    pub(crate) fn scoring(mut self, first: usize, target: u32) -> Sequence {
        let num_top = self.rules.num_top.unwrap_or(0);
        self.scores = Some(PromptScores::new(first, self.prompt_tokens, num_top));
        self.target = Some(target);
        self
    }

    pub(crate) fn order(&self) -> Order {
        (Reverse(self.priority), self.number)
    }

    /// Why it has no more time at `now`.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Error> {
        let waits = self.phase == Phase::Waiting && !self.mailbox.has_started();
        if self.deadline.has_passed(now) {
            return Some(Error::Deadline { deadline_ms: self.deadline.timeout_ms() });
        }
        (waits && self.queue_timeout.has_passed(now))
            .then(|| Error::Timeout { timeout_ms: self.queue_timeout.timeout_ms() })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// What the scheduler needs to know.
    pub(crate) fn view(&self) -> View {
        View {
            priority: self.priority,
            computed_tokens: self.computed_tokens,
            total_tokens: self.tokens.len() + self.in_flight,
            pages: self.pages.pages().len(),
            own_pages: self.pages.pages().len(),
            admitted: matches!(self.phase, Phase::Prefilling | Phase::Running),
            decoding: self.phase == Phase::Running,
            ending: self.in_flight > 0
                && (self.is_cut || self.tokens.len() + self.in_flight >= self.total_tokens_limit),
            wanted_from: self.scores.as_ref().map_or(usize::MAX, PromptScores::wanted_from),
            postponed: false,
        }
    }

    /// Must the logits of a step that computes `count` more tokens come to the host? `view` is what it was
    /// planned by: one that waits may begin over the prefix cache.
    pub(crate) fn needs_logits(&self, count: usize, view: &View) -> bool {
        let draws = count == view.pending_tokens();
        (draws && self.rules.need_logits()) || !self.wanted_rows(count).is_empty()
    }

    /// Positions among the next `count` tokens whose logits measure a token of the prompt.
    pub(crate) fn wanted_rows(&self, count: usize) -> Range<usize> {
        let computed = self.computed_tokens..self.computed_tokens + count;
        self.scores.as_ref().map_or(0..0, |scores| scores.wanted_rows(computed))
    }

    /// Measures the prompt's next token by the logits before it. `false`: they are no numbers.
    pub(crate) fn measure_next(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> bool {
        let scores = self.scores.as_mut();
        scores.is_some_and(|scores| scores.push(&self.tokens, logits, tokenizer))
    }

    pub(crate) fn target(&self) -> Option<u32> {
        self.target
    }

    /// Length of the prompt, which alone chooses the dynamic NTK factor.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens as u64,
            completion_tokens: (self.tokens.len() - self.prompt_tokens) as u64,
            cached_tokens: self.cached_tokens as u64,
        }
    }

    /// Appends the next `count` tokens to compute; one that is in flight by where it comes from.
    pub(crate) fn push_next_tokens(&self, count: usize, token_ids: &mut Vec<u32>) {
        let end = self.computed_tokens + count;
        let known = end.min(self.tokens.len());
        token_ids.extend_from_slice(&self.tokens[self.computed_tokens..known]);
        if end > known {
            token_ids.push(FED | self.in_flight_row);
        }
    }

    pub(crate) fn computed_tokens(&self) -> usize {
        self.computed_tokens
    }

    /// Prompt and reply as far as they are known.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens that it can do without computing. The last one is not among them: the next token is
    /// drawn from its logits.
    pub(crate) fn prefix(&self) -> &[u32] {
        let last = self.tokens.len() + self.in_flight - 1;
        &self.tokens[..last.min(self.tokens.len())]
    }

    /// What the prefix cache has of it.
    pub(crate) fn find_prefix(&self, pool: &mut PagePool) -> Found {
        self.prefix_root.map_or(Found::default(), |root| pool.find(root, self.prefix()))
    }

    /// Joins the running batch, with the pages that the prefix cache has.
    pub(crate) fn admit(&mut self, pool: &mut PagePool) {
        let mut pages = std::mem::take(&mut self.pages);
        let share = |root| pool.share(&mut pages, root, self.prefix());
        self.computed_tokens = self.prefix_root.map_or(0, share);
        self.pages = pages;
        if self.phase == Phase::Waiting {
            self.cached_tokens = self.computed_tokens;
            self.mailbox.post_started();
        }
        self.phase = Phase::Prefilling;
    }

    /// Leaves its full pages in the prefix cache: those of known tokens that submitted steps compute. Steps
    /// run in order, so whoever shares them reads them after they are written. A step must be complete
    /// before: a page that somebody else has published already is given back.
    pub(crate) fn publish(&mut self, pool: &mut PagePool) {
        if let Some(root) = self.prefix_root {
            let known = self.computed_tokens.min(self.tokens.len());
            pool.publish(&mut self.pages, root, &self.tokens[..known]);
        }
    }

    /// Takes all its pages out of the prefix cache: its logits, which read every one of them, were no
    /// numbers. Of all pages that are left there, somebody's logits were, or will be asked.
    pub(crate) fn withdraw(&self, pool: &mut PagePool) {
        pool.withdraw(&self.pages);
    }

    /// Leaves the running batch and gives its pages back. Text and tokens stay; nothing of this
    /// can be seen outside.
    pub(crate) fn preempt(&mut self, pool: &mut PagePool) {
        pool.release(&mut self.pages);
        self.computed_tokens = 0;
        self.phase = Phase::Preempted;
    }

    /// Notes a submitted step that computes `count` more tokens, and draws the next one where its
    /// wanted row is given: all tokens are in the cache then.
    pub(crate) fn advance(&mut self, count: usize, drawn_row: Option<u32>) {
        self.computed_tokens += count;
        if let Some(row) = drawn_row {
            self.phase = Phase::Running;
            self.in_flight += 1;
            self.in_flight_row = row;
        }
    }

    /// Ends the reply with the tokens in flight; `false` if there are none: it is over at once.
    pub(crate) fn cut(&mut self) -> bool {
        self.is_cut = true;
        self.in_flight > 0
    }

    /// Ids that a draw of its next token must know.
    pub(crate) fn num_seen(&self) -> usize {
        if self.sampling.has_penalties() { self.seen.len() } else { 0 }
    }

    pub(crate) fn sampling(&self) -> (&SamplingParams, &SeenTokens) {
        (&self.sampling, &self.seen)
    }

    /// Index of the next token to be accepted.
    pub(crate) fn next_position(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// Index of the token that the next submitted step draws.
    pub(crate) fn position_to_draw(&self) -> u64 {
        (self.tokens.len() + self.in_flight) as u64
    }

    /// Takes a drawn token: it becomes text in the mailbox, or ends the reply. A stop token is no
    /// part of the reply, in text, ids or count.
    pub(crate) fn accept(&mut self, drawn: Drawn, tokenizer: &Tokenizer) -> Option<FinishReason> {
        let token = drawn.token;
        self.tell_prompt(tokenizer);
        self.in_flight -= 1;
        if self.stop_token_ids.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.tokens.push(token);
        self.seen.push_reply(token);
        let shown = tokenizer.token_bytes(token).filter(|_| !tokenizer.is_special(token));
        let delta = self.stream.push(shown.unwrap_or_default());
        let stopped = match &mut self.react {
            None => {
                let stopped = delta.stopped;
                self.mailbox.post_delta(self.choice, delta, Some(drawn));
                stopped
            }
            Some(react) => {
                let (parts, is_over) = react.push(&delta);
                self.mailbox.post_parts(self.choice, parts, Some(drawn));
                is_over
            }
        };
        if stopped {
            return Some(FinishReason::Stop);
        }
        if self.is_cut && self.in_flight == 0 {
            return Some(FinishReason::Cancelled);
        }
        (self.tokens.len() >= self.total_tokens_limit).then_some(FinishReason::Length)
    }

    /// With the first token: the prompt, where it is wanted, and what was measured of it.
    fn tell_prompt(&mut self, tokenizer: &Tokenizer) {
        let measured = self.scores.take().map(PromptScores::into_measured).unwrap_or_default();
        let told = &self.tokens[self.prompt_tokens - measured.len()..self.prompt_tokens];
        let scored = told.iter().zip(measured);
        let mut told: Vec<Drawn> =
            scored.map(|(&token, logprobs)| Drawn { token, logprobs: Some(logprobs) }).collect();
        let mut delta = TextDelta::default();
        if std::mem::take(&mut self.echoes) {
            let untold = self.tokens[..self.prompt_tokens - told.len()].iter().map(|&token| {
                Drawn { token, logprobs: self.rules.num_top.map(|_| unmeasured(token, tokenizer)) }
            });
            told.splice(0..0, untold);
            delta.bytes = tokenizer.decode_bytes(&self.tokens[..self.prompt_tokens], false);
            delta.text = String::from_utf8_lossy(&delta.bytes).into_owned();
        }
        if !told.is_empty() {
            self.mailbox.post_delta(self.choice, delta, told);
        }
    }

    /// Ends the reply: what the text stream held back is delivered, then the last event. The caller
    /// has taken the pages back before, so that whoever sees the event also sees them free.
    pub(crate) fn finish(mut self, outcome: Result<FinishReason, Error>) {
        let outcome = outcome.map(|reason| {
            let tail = self.stream.finish();
            let Some(react) = &mut self.react else {
                self.mailbox.post_delta(self.choice, tail, None);
                return reason;
            };
            let (parts, reason) = react.finish(&tail, reason);
            self.mailbox.post_parts(self.choice, parts, None);
            reason
        });
        self.mailbox.post_end(self.choice, outcome, self.usage());
    }
}

/// So many milliseconds from now; 0 means for ever.
fn after_ms(milliseconds: u64) -> Deadline {
    Deadline::after((milliseconds > 0).then(|| Duration::from_millis(milliseconds)))
}
