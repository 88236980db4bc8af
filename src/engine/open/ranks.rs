//! Loads the ranks of an engine: one on the caller's thread, several on a thread each, so that their
//! weights come side by side and they can wait for each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::Plan;
use super::stages::Stages;
use super::target::{CallerContext, Tie, load_rank};
use crate::engine::worker::{caught, cause};
use crate::engine::{EngineOptions, LoadProgress};
use crate::error::{Error, Result};
use crate::model::{Placement, Rank};

/// All ranks, in order. `progress` is called on this thread, in the caller's own context.
pub(super) fn load(
    plan: &mut Plan,
    options: &EngineOptions,
    (caller, progress): (&CallerContext, &mut dyn FnMut(LoadProgress) -> bool),
    stages: &mut Stages,
) -> Result<Vec<Box<dyn Rank>>> {
    let world = options.tensor_parallel;
    let total_bytes = plan.weights.total_bytes;
    let mut done_bytes = 0;
    let mut told: Option<(Instant, Instant)> = None;
    // Replicated tensors are read once a rank, copied ones twice, but the total counts them once.
    let mut advance = |bytes: u64| {
        done_bytes = (done_bytes + bytes).min(total_bytes);
        let now = Instant::now();
        told.get_or_insert((now, now)).1 = now;
        caller.during(|| progress(LoadProgress { done_bytes, total_bytes }))
    };
    plan.weights.bring(plan.source, &mut advance)?;
    let tie = Tie::new(plan, options)?;
    let loading = Loading { plan, options, tie, is_over: AtomicBool::new(false) };
    let ranks = match world {
        1 => loading.load(0, &mut advance).map(|rank| vec![rank]),
        _ => loading.side_by_side(&mut advance),
    };
    if let Some((first, last)) = told {
        stages.end_at("until the first weights", first);
        stages.end_at("weights", last);
    }
    stages.end("after them");
    ranks
}

/// What the threads share.
struct Loading<'a> {
    plan: &'a Plan,
    options: &'a EngineOptions,
    tie: Tie,
    /// The caller's wish, or one rank's failure: nobody need go on.
    is_over: AtomicBool,
}

/// What a loading thread says.
enum News {
    Bytes(u64),
    /// By rank.
    End(usize, Result<Box<dyn Rank>>),
}

impl Loading<'_> {
    /// Rank `rank`; without it the others do not wait for it.
    fn load(&self, rank: usize, advance: &mut dyn FnMut(u64) -> bool) -> Result<Box<dyn Rank>> {
        let world = self.options.tensor_parallel;
        let placement = Placement { rank, world, division: &self.plan.division };
        let loaded = caught(|| load_rank(self.plan, self.options, &self.tie, placement, advance));
        if loaded.is_err() {
            self.tie.abandon();
        }
        loaded
    }

    fn side_by_side(&self, advance: &mut dyn FnMut(u64) -> bool) -> Result<Vec<Box<dyn Rank>>> {
        let (news, inbox) = channel();
        std::thread::scope(|scope| {
            for rank in 0..self.options.tensor_parallel {
                let outbox = news.clone();
                let thread = std::thread::Builder::new().name(format!("qwen-load-{rank}"));
                if let Err(error) = thread.spawn_scoped(scope, move || self.report(rank, &outbox)) {
                    self.tie.abandon();
                    let reason = format!("no loading thread: {error}");
                    let _ = news.send(News::End(rank, Err(Error::EngineFailed { reason })));
                }
            }
            drop(news);
            self.listen(&inbox, advance)
        })
    }

    /// Loads a rank and says how it goes.
    fn report(&self, rank: usize, news: &Sender<News>) {
        let mut advance = |bytes| {
            let told = news.send(News::Bytes(bytes));
            told.is_ok() && !self.is_over.load(Ordering::Relaxed)
        };
        let _ = news.send(News::End(rank, self.load(rank, &mut advance)));
    }

    /// Hears all threads out.
    fn listen(
        &self,
        inbox: &Receiver<News>,
        advance: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Vec<Box<dyn Rank>>> {
        let mut ranks: Vec<_> = (0..self.options.tensor_parallel).map(|_| None).collect();
        let (mut errors, mut is_cancelled) = (Vec::new(), false);
        for said in inbox {
            match said {
                // Who has said no is not asked again.
                News::Bytes(bytes) => is_cancelled = is_cancelled || !advance(bytes),
                News::End(rank, Ok(loaded)) => ranks[rank] = Some(loaded),
                News::End(_, Err(error)) => errors.push(error),
            }
            if is_cancelled || !errors.is_empty() {
                self.is_over.store(true, Ordering::Relaxed);
            }
        }
        if is_cancelled {
            // A rank may have been through before the wish reached it.
            return Err(Error::Cancelled);
        }
        match cause(&errors) {
            Some(error) => Err(error.clone()),
            None => Ok(ranks.into_iter().flatten().collect()),
        }
    }
}
