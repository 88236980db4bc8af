//! The loop's steps: plan, batch, submit; collect, draw, deliver. Owns everything that changes while
//! an engine runs: the sequences, the pages, the ranks and the work space, reused from step to step.
//!
//! Where the ranks draw tokens themselves, the loop is one step ahead of what it knows: it submits
//! step n + 1, fed with the tokens of step n wherever they are, and only then collects step n. So the
//! device never waits for the host. What step n ends may then still have a row in step n + 1: its
//! token is dropped. Its pages can be given away at once, because steps run in order.
//!
//! Where some sequence of a step needs its logits here (see `logits`), the tokens of that step are
//! drawn here, for all of it. All steps before it are collected first, and nothing runs ahead of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::batch::{Batch, NO_TOKEN, Output};
use crate::engine::LogLevel;
use crate::engine::assemble::{clear, push_draw, push_rows, write_block_table};
use crate::engine::logits::{Drawn, measure};
use crate::engine::metrics::Metrics;
use crate::engine::prefix;
use crate::engine::request::{Cancel, FinishReason};
use crate::engine::scheduler::{self, Plan, Run};
use crate::engine::sequence::{Order, Phase, Sequence, View};
use crate::engine::shared::Shared;
use crate::engine::states;
use crate::engine::worker::Workers;
use crate::error::{Error, Result};
use crate::kv::PagePool;
use crate::sample::Sampler;

/// The loop's state.
pub(crate) struct Stepper {
    shared: Arc<Shared>,
    /// In order of rank, once `reap` has seen them; of each priority the admitted ones come first.
    pub(crate) sequences: Vec<Sequence>,
    pool: PagePool,
    workers: Workers,
    limits: scheduler::Limits,
    vocab_size: usize,
    sampler: Sampler,
    /// Logits of one row as the model gave them.
    raw: Vec<f32>,
    /// Submitted and not yet collected, oldest first: at most two.
    flights: VecDeque<Flight>,
    /// When the step before was collected.
    landed: Instant,
    // Work space.
    spare: Vec<Flight>,
    views: Vec<View>,
    plan: Plan,
    output: Output,
    ended: Vec<Ended>,
}

/// A step on its way.
struct Flight {
    batch: Arc<Batch>,
    /// What its wanted rows are for, in order: sequences ascending.
    wanted: Vec<Wanted>,
    /// Whose its hidden states are, so many each.
    states: Vec<(Order, usize)>,
    /// The loop draws, not the ranks.
    on_host: bool,
    submitted: Instant,
}

/// What one row of logits is for.
struct Wanted {
    order: Order,
    /// The sequence's next token is drawn; otherwise one of its prompt is measured.
    draws: bool,
}

/// A sequence that is over, by its index; and how.
type Ended = (usize, Result<FinishReason>);

impl Stepper {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pool: PagePool,
        workers: Workers,
        limits: scheduler::Limits,
        vocab_size: usize,
    ) -> Stepper {
        shared.metrics.pages_total.set(pool.num_pages());
        Stepper {
            shared,
            sequences: Vec::new(),
            pool,
            workers,
            limits,
            vocab_size,
            sampler: Sampler::new(),
            raw: Vec::new(),
            flights: VecDeque::new(),
            landed: Instant::now(),
            spare: Vec::new(),
            views: Vec::new(),
            plan: Plan::default(),
            output: Output::default(),
            ended: Vec::new(),
        }
    }

    /// Puts new sequences where they belong, and ends those whose owners do not want them any more or
    /// whose time is over.
    pub(crate) fn reap(&mut self) {
        self.sequences.sort_by_key(Sequence::order);
        let now = Instant::now();
        let mut ended = std::mem::take(&mut self.ended);
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            match sequence.mailbox.cancel_wish() {
                None => ended.extend(sequence.overdue(now).map(|error| (index, Err(error)))),
                Some(Cancel::Keep) if sequence.cut() => {}
                Some(Cancel::Keep) => ended.push((index, Ok(FinishReason::Cancelled))),
                Some(Cancel::Drop) => ended.push((index, Err(Error::Cancelled))),
            }
        }
        self.end(ended);
    }

    /// Ends every request with `error`.
    pub(crate) fn end_all(&mut self, error: &Error) {
        let all = (0..self.sequences.len()).map(|index| (index, Err(error.clone()))).collect();
        self.end(all);
    }

    /// Advances every sequence that can. An error is the engine's, not a request's.
    pub(crate) fn step(&mut self) -> Result<()> {
        let submitted = !self.sequences.is_empty() && self.submit_next()?;
        // The model computes meanwhile, for these a token that is drawn.
        let drawing =
            self.sequences.iter_mut().filter(|sequence| sequence.phase() == Phase::Running);
        drawing.for_each(|sequence| sequence.rules.prepare());
        // With nobody left nothing will be submitted soon: all is brought to its end.
        while self.flights.len() > usize::from(submitted && self.is_ahead()) {
            self.collect_oldest()?;
        }
        Ok(())
    }

    fn is_ahead(&self) -> bool {
        self.flights.back().is_some_and(|flight| !flight.on_host) && !self.sequences.is_empty()
    }

    /// Submits a step of all that can run; `false`: they only wait for their last tokens. A step with
    /// prompts takes long, and who arrives while it runs must not wait for another one behind it: it
    /// is not submitted ahead, and planned with all that is known. Nor is one that needs its logits
    /// here.
    fn submit_next(&mut self) -> Result<bool> {
        loop {
            self.make_plan();
            if !self.flights.is_empty() && (self.plan_has_prompts() || self.plan_needs_logits()) {
                while !self.flights.is_empty() {
                    self.collect_oldest()?;
                }
                if self.sequences.is_empty() {
                    return Ok(false);
                }
            } else if self.plan.preempt.is_empty() {
                break;
            } else {
                self.preempt();
            }
        }
        if self.plan.runs.is_empty() {
            return match self.flights.is_empty() {
                true => Err(bug("the scheduler ran nothing")),
                false => Ok(false),
            };
        }
        let flight = self.assemble()?;
        self.workers.submit(&flight.batch)?;
        self.flights.push_back(flight);
        Ok(true)
    }

    fn make_plan(&mut self) {
        self.views.clear();
        prefix::push_views(&self.sequences, &mut self.pool, &self.limits, &mut self.views);
        scheduler::plan(&self.views, self.pool.num_free(), &self.limits, &mut self.plan);
    }

    fn plan_has_prompts(&self) -> bool {
        self.plan.runs.iter().any(|run| !self.views[run.index].decoding)
    }

    /// Must the tokens of the planned step be drawn here? Also where the sequences have seen more ids
    /// together than the cache has tokens, as those that share pages may: ranks have no more room.
    fn plan_needs_logits(&self) -> bool {
        let needs =
            |run: &Run| self.sequences[run.index].needs_logits(run.tokens, &self.views[run.index]);
        let runs = &self.plan.runs;
        let num_seen: usize = runs.iter().map(|run| self.sequences[run.index].num_seen()).sum();
        num_seen > self.pool.num_pages() * self.limits.page_tokens || runs.iter().any(needs)
    }

    fn preempt(&mut self) {
        for &index in &self.plan.preempt {
            self.sequences[index].preempt(&mut self.pool);
            self.shared.metrics.preemptions.add(1);
            self.shared.metrics.requests_running.sub(1);
            self.shared.metrics.requests_preempted.add(1);
        }
        if !self.plan.preempt.is_empty() {
            self.shared.log(LogLevel::Debug, || {
                format!("out of pages: {} requests step back", self.plan.preempt.len())
            });
        }
    }

    /// Admits and gives pages as planned; writes the batch of the step.
    fn assemble(&mut self) -> Result<Flight> {
        let mut flight = self.spare.pop().unwrap_or_else(Flight::new);
        let Some(batch) = Arc::get_mut(&mut flight.batch) else { return Err(bug("a held batch")) };
        clear(batch);
        flight.wanted.clear();
        flight.states.clear();
        flight.on_host = !self.workers.draws_tokens() || self.plan_needs_logits();
        self.admit_planned();
        for run in &self.plan.runs {
            let sequence = &mut self.sequences[run.index];
            let context = sequence.computed_tokens() + run.tokens;
            if !self.pool.grow(&mut sequence.pages, context) {
                return Err(bug("the scheduler gave pages that are not there"));
            }
            let drawn_row = push_rows(batch, sequence, *run, &self.pool)?;
            let order = sequence.order();
            flight.states.push((order, states::push_wanted(batch, sequence, run.tokens)));
            let measured = sequence.wanted_rows(run.tokens);
            flight.wanted.extend(measured.map(|_| Wanted { order, draws: false }));
            if drawn_row.is_some() {
                flight.wanted.push(Wanted { order, draws: true });
                if !flight.on_host {
                    push_draw(batch, sequence);
                }
            }
            sequence.advance(run.tokens, drawn_row);
        }
        write_block_table(batch, &self.plan.runs, &self.sequences);
        prefix::publish_chunks(&self.plan.runs, &mut self.sequences, &mut self.pool);
        self.count_pages();
        flight.submitted = Instant::now();
        Ok(flight)
    }

    /// Admits all before the first of them takes a page: until then the prefix cache has what the plan
    /// counts on.
    fn admit_planned(&mut self) {
        for run in self.plan.runs.iter().filter(|run| !self.views[run.index].admitted) {
            let sequence = &mut self.sequences[run.index];
            admit(sequence, &mut self.pool, &self.shared.metrics);
            self.shared.log(LogLevel::Debug, || {
                let (prompt, cached) = (sequence.prompt_tokens(), sequence.computed_tokens());
                format!("a request of {prompt} prompt tokens starts, {cached} tokens cached")
            });
        }
    }

    fn count_pages(&self) {
        let metrics = &self.shared.metrics;
        metrics.pages_used.set(self.pool.num_used());
        metrics.pages_cached.set(self.pool.num_idle());
        metrics.prefix_evictions.set(self.pool.num_evictions() as usize);
    }

    /// Waits for the oldest step and gives its tokens to the sequences.
    fn collect_oldest(&mut self) -> Result<()> {
        let Some(flight) = self.flights.pop_front() else { return Ok(()) };
        self.workers.collect(&mut self.output)?;
        self.check_output(&flight.batch)?;
        self.count_step(&flight);
        let ended = self.deliver(&flight);
        self.end(ended);
        self.spare.push(flight);
        Ok(())
    }

    fn check_output(&self, batch: &Batch) -> Result<()> {
        let rows = batch.logits_rows.len();
        if self.output.hidden.len() != batch.hidden_rows.len() * self.shared.model.hidden_size {
            return Err(bug("other hidden states than wanted"));
        }
        let (what, made, wanted) = match batch.draws.is_empty() {
            true => ("logits", self.output.logits.len(), rows * self.vocab_size),
            false => ("tokens", self.output.tokens.len(), rows),
        };
        if made != wanted {
            return Err(bug(&format!("{made} {what} instead of {wanted}")));
        }
        Ok(())
    }

    fn count_step(&mut self, flight: &Flight) {
        let now = Instant::now();
        // A step that was submitted ahead began when the one before it was done.
        let took = now - flight.submitted.max(self.landed).min(now);
        self.landed = now;
        let metrics = &self.shared.metrics;
        metrics.steps.add(1);
        metrics.computed_tokens.add(flight.batch.num_tokens() as u64);
        metrics.forward_us.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        metrics.device_us.add(self.output.device_us.round() as u64);
    }

    /// Gives every sequence that is still there the token that `flight` drew for it.
    fn deliver(&mut self, flight: &Flight) -> Vec<Ended> {
        let size = self.shared.model.hidden_size;
        states::deliver(&mut self.sequences, &flight.states, &self.output.hidden, size);
        let mut ended = std::mem::take(&mut self.ended);
        for (row, wanted) in flight.wanted.iter().enumerate() {
            let found = self.sequences.binary_search_by_key(&wanted.order, Sequence::order);
            let Ok(index) = found else { continue };
            if ended.last().is_some_and(|(last, _)| *last == index) {
                continue; // A row before this one was no numbers.
            }
            let drawn = match wanted.draws {
                true => self.next_token(row, index, &flight.batch),
                false if self.measure_next(row, index) => continue,
                false => Err(self.not_finite(index)),
            };
            let sequence = &mut self.sequences[index];
            let taken = drawn.and_then(|drawn| Ok((sequence.rules.accept(drawn.token)?, drawn)));
            match taken {
                Err(error) => {
                    if matches!(error, Error::NotFinite { .. }) {
                        sequence.withdraw(&mut self.pool);
                    }
                    ended.push((index, Err(error)));
                }
                Ok((is_complete, drawn)) => {
                    sequence.publish(&mut self.pool);
                    self.shared.metrics.generated_tokens.add(1);
                    sequence.clock.token(&self.shared.metrics.histograms);
                    let reason = sequence.accept(drawn, &self.shared.tokenizer);
                    let reason = is_complete.then_some(FinishReason::Stop).or(reason);
                    ended.extend(reason.map(|reason| (index, Ok(reason))));
                }
            }
        }
        ended
    }

    /// Measures the next token of the prompt of sequence `index` by wanted row `row`.
    fn measure_next(&mut self, row: usize, index: usize) -> bool {
        let logits = &self.output.logits[row * self.vocab_size..][..self.shared.usable_ids];
        self.sequences[index].measure_next(logits, &self.shared.tokenizer)
    }

    fn not_finite(&self, index: usize) -> Error {
        Error::NotFinite { position: self.sequences[index].next_position() }
    }

    /// The token drawn from wanted row `row`, which is sequence `index`'s: by the rank, or here.
    fn next_token(&mut self, row: usize, index: usize, batch: &Batch) -> Result<Drawn> {
        let not_finite = self.not_finite(index);
        let sequence = &mut self.sequences[index];
        if !batch.draws.is_empty() {
            let token = self.output.tokens.get(row).copied().filter(|token| *token != NO_TOKEN);
            return token.map(|token| Drawn { token, logprobs: None }).ok_or(not_finite);
        }
        let logits = &mut self.output.logits[row * self.vocab_size..(row + 1) * self.vocab_size];
        let usable = &mut logits[..self.shared.usable_ids];
        let num_top = sequence.rules.num_top;
        if let Some(token) = sequence.target() {
            let logprobs = measure(usable, token, num_top.unwrap_or(0), &self.shared.tokenizer);
            let logprobs = Some(logprobs.ok_or(not_finite)?);
            return Ok(Drawn { token, logprobs });
        }
        self.raw.clear();
        if num_top.is_some() {
            self.raw.extend_from_slice(usable);
        }
        sequence.rules.apply(usable)?;
        let (params, seen) = sequence.sampling();
        let token = self.sampler.sample(usable, params, seen, sequence.next_position());
        let token = token.ok_or(not_finite)?;
        let Some(num_top) = num_top else { return Ok(Drawn { token, logprobs: None }) };
        let logprobs = measure(&self.raw, token, num_top, &self.shared.tokenizer);
        Ok(Drawn { token, logprobs: Some(logprobs.ok_or(self.not_finite(index))?) })
    }

    /// Takes `ended` (ascending) out of the loop. First the pages and numbers, then the last
    /// events: who sees the event finds the pages free.
    fn end(&mut self, mut ended: Vec<Ended>) {
        if !ended.is_empty() {
            let mut due = ended.iter().peekable();
            let mut index = 0;
            let is_over = |_: &mut Sequence| {
                index += 1;
                due.next_if(|(at, _)| at + 1 == index).is_some()
            };
            let mut over: Vec<Sequence> = self.sequences.extract_if(.., is_over).collect();
            for (sequence, (_, outcome)) in over.iter_mut().zip(&ended) {
                self.pool.release(&mut sequence.pages);
                count_end(sequence, outcome, &self.shared.metrics);
            }
            self.count_pages();
            for (sequence, (_, outcome)) in over.into_iter().zip(ended.drain(..)) {
                self.shared.log(LogLevel::Debug, || {
                    format!("a request ends: {outcome:?}, {:?}", sequence.usage())
                });
                sequence.finish(outcome);
            }
        }
        self.ended = ended;
    }
}

impl Flight {
    fn new() -> Flight {
        let (wanted, states, on_host) = (Vec::new(), Vec::new(), false);
        Flight { batch: Arc::default(), wanted, states, on_host, submitted: Instant::now() }
    }
}

fn admit(sequence: &mut Sequence, pool: &mut PagePool, metrics: &Metrics) {
    metrics.requests_running.add(1);
    match sequence.phase() {
        Phase::Waiting => {
            metrics.requests_waiting.sub(1);
            metrics.prompt_tokens.add(sequence.prompt_tokens() as u64);
            sequence.clock.begun(&metrics.histograms);
        }
        _ => metrics.requests_preempted.sub(1),
    }
    sequence.admit(pool);
    metrics.prefix_hit_tokens.add(sequence.computed_tokens() as u64);
}

fn count_end(sequence: &Sequence, outcome: &Result<FinishReason>, metrics: &Metrics) {
    sequence.clock.ended(&sequence.usage(), &metrics.histograms);
    match sequence.phase() {
        Phase::Waiting => metrics.requests_waiting.sub(1),
        Phase::Preempted => metrics.requests_preempted.sub(1),
        Phase::Prefilling | Phase::Running => metrics.requests_running.sub(1),
    }
    match outcome {
        Ok(FinishReason::Cancelled) | Err(Error::Cancelled) => metrics.requests_cancelled.add(1),
        Ok(_) => metrics.requests_finished.add(1),
        Err(_) => metrics.requests_failed.add(1),
    }
}

/// A broken promise between our own parts: ends the engine, not the process.
pub(super) fn bug(what: &str) -> Error {
    Error::EngineFailed { reason: format!("a bug in the library: {what}") }
}
