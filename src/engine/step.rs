//! One step of the loop: plan, batch, forward, draw, deliver. Owns everything that changes while an
//! engine runs: the sequences, the pages, the ranks and the work space, reused from step to step.

use std::sync::Arc;
use std::time::Instant;

use crate::batch::{Batch, Draw, NO_TOKEN};
use crate::engine::LogLevel;
use crate::engine::metrics::Metrics;
use crate::engine::request::{Cancel, FinishReason};
use crate::engine::scheduler::{self, Plan, Run};
use crate::engine::sequence::{Phase, Sequence, View};
use crate::engine::shared::Shared;
use crate::engine::worker::Workers;
use crate::error::{Error, Result};
use crate::kv::PagePool;
use crate::sample::{Sampler, uniform};

/// The loop's state.
pub(crate) struct Stepper {
    shared: Arc<Shared>,
    /// In order of arrival; the admitted ones come first.
    pub(crate) sequences: Vec<Sequence>,
    pool: PagePool,
    workers: Workers,
    limits: scheduler::Limits,
    vocab_size: usize,
    sampler: Sampler,
    // Work space.
    views: Vec<View>,
    plan: Plan,
    batch: Arc<Batch>,
    logits: Vec<f32>,
    ended: Vec<Ended>,
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
            views: Vec::new(),
            plan: Plan::default(),
            batch: Arc::new(Batch::default()),
            logits: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Ends the requests whose owners do not want them any more.
    pub(crate) fn reap_cancelled(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        for (index, sequence) in self.sequences.iter().enumerate() {
            match sequence.mailbox.cancel_wish() {
                None => {}
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
        self.make_plan();
        self.preempt();
        self.build_batch()?;
        self.forward()?;
        let ended = self.draw();
        self.end(ended);
        Ok(())
    }

    fn make_plan(&mut self) {
        // The admitted come first and are never more than this; nobody behind can be admitted.
        let visible = self.sequences.iter().take(self.limits.max_sequences);
        self.views.clear();
        self.views.extend(visible.map(Sequence::view));
        scheduler::plan(&self.views, self.pool.num_free(), &self.limits, &mut self.plan);
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
    fn build_batch(&mut self) -> Result<()> {
        if self.plan.runs.is_empty() {
            return Err(bug("the scheduler ran nothing"));
        }
        if Arc::get_mut(&mut self.batch).is_none() {
            self.batch = Arc::new(Batch::default());
        }
        let Some(batch) = Arc::get_mut(&mut self.batch) else { return Err(bug("a batch is held")) };
        clear(batch);
        for run in &self.plan.runs {
            let sequence = &mut self.sequences[run.index];
            if !self.views[run.index].admitted {
                admit(sequence, &self.shared.metrics);
                let prompt_tokens = sequence.prompt_tokens();
                self.shared.log(LogLevel::Debug, || {
                    format!("a request of {prompt_tokens} prompt tokens starts")
                });
            }
            let context = sequence.computed_tokens() + run.tokens;
            if !self.pool.grow(&mut sequence.pages, context) {
                return Err(bug("the scheduler gave pages that are not there"));
            }
            let wanted = push_rows(batch, sequence, *run, &self.pool)?;
            if wanted && self.workers.draws_tokens() {
                push_draw(batch, sequence);
            }
        }
        write_block_table(batch, &self.plan.runs, &self.sequences);
        self.shared.metrics.pages_used.set(self.pool.num_used());
        Ok(())
    }

    fn forward(&mut self) -> Result<()> {
        let start = Instant::now();
        self.workers.forward(&self.batch, &mut self.logits)?;
        let rows = self.batch.logits_rows.len();
        let (what, made, wanted) = match self.batch.draws.is_empty() {
            true => ("logits", self.logits.len(), rows * self.vocab_size),
            false => ("tokens", self.workers.drawn().len(), rows),
        };
        if made != wanted {
            return Err(bug(&format!("{made} {what} instead of {wanted}")));
        }
        let metrics = &self.shared.metrics;
        metrics.steps.add(1);
        metrics.computed_tokens.add(self.batch.num_tokens() as u64);
        metrics.forward_us.add(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Gives every sequence whose tokens are all in the cache now its next token.
    fn draw(&mut self) -> Vec<Ended> {
        let mut ended = std::mem::take(&mut self.ended);
        let mut row = 0;
        for index in 0..self.plan.runs.len() {
            let run = self.plan.runs[index];
            if !self.sequences[run.index].advance(run.tokens) {
                continue;
            }
            let token = self.next_token(row, run.index);
            row += 1;
            let sequence = &mut self.sequences[run.index];
            match token {
                None => {
                    let position = sequence.next_position();
                    ended.push((run.index, Err(Error::NotFinite { position })));
                }
                Some(token) => {
                    self.shared.metrics.generated_tokens.add(1);
                    if let Some(reason) = sequence.accept(token, &self.shared.tokenizer) {
                        ended.push((run.index, Ok(reason)));
                    }
                }
            }
        }
        ended
    }

    /// The token drawn from wanted row `row`, which is sequence `index`'s: by the rank, or here.
    fn next_token(&mut self, row: usize, index: usize) -> Option<u32> {
        if !self.batch.draws.is_empty() {
            return self.workers.drawn().get(row).copied().filter(|token| *token != NO_TOKEN);
        }
        let logits = &mut self.logits[row * self.vocab_size..(row + 1) * self.vocab_size];
        let usable = &mut logits[..self.shared.usable_ids];
        let sequence = &self.sequences[index];
        let (params, seen) = sequence.sampling();
        self.sampler.sample(usable, params, seen, sequence.next_position())
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
                count_end(sequence.phase(), outcome, &self.shared.metrics);
            }
            self.shared.metrics.pages_used.set(self.pool.num_used());
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

fn admit(sequence: &mut Sequence, metrics: &Metrics) {
    metrics.requests_running.add(1);
    match sequence.phase() {
        Phase::Waiting => {
            metrics.requests_waiting.sub(1);
            metrics.prompt_tokens.add(sequence.prompt_tokens() as u64);
        }
        _ => metrics.requests_preempted.sub(1),
    }
    sequence.admit();
}

fn count_end(phase: Phase, outcome: &Result<FinishReason>, metrics: &Metrics) {
    match phase {
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

/// Empties `batch`, keeping its memory.
fn clear(batch: &mut Batch) {
    batch.token_ids.clear();
    batch.positions.clear();
    batch.slot_mapping.clear();
    batch.cu_seqlens.clear();
    batch.cu_seqlens.push(0);
    batch.context_lens.clear();
    batch.block_table.clear();
    batch.ntk_lens.clear();
    batch.logits_rows.clear();
    batch.draws.clear();
    batch.seen.clear();
}

/// Appends the tokens that `run` computes of `sequence`, which has the pages for them. Is a token
/// drawn after them?
fn push_rows(batch: &mut Batch, sequence: &Sequence, run: Run, pool: &PagePool) -> Result<bool> {
    let first = sequence.computed_tokens();
    for position in first..first + run.tokens {
        let slot = pool.slot(&sequence.pages, position);
        batch.slot_mapping.push(slot.ok_or_else(|| bug("a token has no page"))?);
        batch.positions.push(position as u32);
    }
    batch.token_ids.extend_from_slice(sequence.next_tokens(run.tokens));
    let end = batch.token_ids.len() as u32;
    batch.cu_seqlens.push(end);
    batch.context_lens.push((first + run.tokens) as u32);
    batch.ntk_lens.push(sequence.prompt_tokens() as u32);
    let wanted = run.tokens == sequence.view().pending_tokens();
    if wanted {
        batch.logits_rows.push(end - 1);
    }
    Ok(wanted)
}

/// Appends how the token after the rows of `sequence` is drawn.
fn push_draw(batch: &mut Batch, sequence: &Sequence) {
    let (params, seen) = sequence.sampling();
    let seen_start = batch.seen.len();
    if params.has_penalties() {
        batch.seen.extend(seen.iter());
    }
    batch.draws.push(Draw {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        uniform: uniform(params.seed, sequence.next_position()),
        seen_start: seen_start as u32,
        seen_count: (batch.seen.len() - seen_start) as u32,
    });
}

fn write_block_table(batch: &mut Batch, runs: &[Run], sequences: &[Sequence]) {
    let pages = |run: &Run| sequences[run.index].pages.pages();
    batch.max_pages = runs.iter().map(|run| pages(run).len()).max().unwrap_or(0);
    for run in runs {
        batch.block_table.extend_from_slice(pages(run));
        let row_end = batch.block_table.len().next_multiple_of(batch.max_pages.max(1));
        batch.block_table.resize(row_end, 0);
    }
}

/// A broken promise between our own parts: ends the engine, not the process.
fn bug(what: &str) -> Error {
    Error::EngineFailed { reason: format!("a bug in the library: {what}") }
}
