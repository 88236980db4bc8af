//! The scheduler over real pages, for random sequences that begin alike: every page that a plan gives is
//! there, and nobody gives pages back that help nobody.

use proptest::prelude::*;
use qwen::engine::scheduler::{Limits, Plan, plan};
use qwen::engine::sequence::View;
use qwen::kv::{PagePool, PageTable};

const PAGE_TOKENS: usize = 4;

/// A sequence as the loop would carry it.
#[derive(Debug)]
struct Life {
    priority: i32,
    arrival: usize,
    tokens: Vec<u32>,
    end_tokens: usize,
    computed: usize,
    table: PageTable,
    admitted: bool,
    decoding: bool,
}

impl Life {
    fn prefix(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    fn view(&self, pool: &mut PagePool) -> View {
        let mut view = View {
            priority: self.priority,
            computed_tokens: self.computed,
            total_tokens: self.tokens.len(),
            pages: self.table.pages().len(),
            own_pages: 0,
            admitted: self.admitted,
            decoding: self.decoding,
            ending: false,
            wanted_from: usize::MAX,
            postponed: false,
        };
        if !self.admitted {
            let found = pool.find(0, self.prefix());
            (view.computed_tokens, view.pages) = (found.tokens, found.held_pages);
        }
        view
    }
}

#[derive(Debug)]
struct World {
    lives: Vec<Life>,
    /// In order of arrival.
    future: Vec<Life>,
    steps: usize,
    pool: PagePool,
    limits: Limits,
}

impl World {
    fn views(&mut self) -> Vec<View> {
        let (lives, pool) = (&self.lives, &mut self.pool);
        let mut views: Vec<View> = lives.iter().map(|life| life.view(pool)).collect();
        pool.begin_returns();
        let last = views.iter().rposition(|view| view.admitted).unwrap_or(0);
        for life in lives[..last].iter().filter(|life| !life.admitted) {
            pool.leave_out(0, life.prefix());
        }
        for (life, view) in lives.iter().zip(&mut views).rev().filter(|(life, _)| life.admitted) {
            view.own_pages = pool.returns(&life.table);
        }
        views
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let here = self.future.iter().take_while(|life| life.arrival <= self.steps).count();
        self.lives.extend(self.future.drain(..here));
        // As in the loop: of each priority the admitted ones come first, because nobody overtakes.
        self.lives.sort_by_key(|life| std::cmp::Reverse(life.priority));
        self.steps += 1;
        if self.lives.is_empty() {
            return Ok(());
        }
        let (views, free) = (self.views(), self.pool.num_free());
        let mut found = Plan::default();
        plan(&views, free, &self.limits, &mut found);
        for &index in &found.preempt {
            let life = &mut self.lives[index];
            self.pool.release(&mut life.table);
            (life.computed, life.admitted, life.decoding) = (0, false, false);
        }
        prop_assert!(!found.runs.is_empty() || !found.preempt.is_empty(), "nothing happens");
        let mut admitted = false;
        for run in found.runs.iter().filter(|run| !views[run.index].admitted) {
            let life = &mut self.lives[run.index];
            life.computed =
                self.pool.share(&mut life.table, 0, &life.tokens[..life.tokens.len() - 1]);
            prop_assert_eq!(life.computed, views[run.index].computed_tokens);
            (life.admitted, admitted) = (true, true);
        }
        let before = self.pool.num_free();
        for run in &found.runs {
            let life = &mut self.lives[run.index];
            life.computed += run.tokens;
            prop_assert!(self.pool.grow(&mut life.table, life.computed), "a page is not there");
        }
        let taken = before - self.pool.num_free();
        let helps = admitted || taken > free || found.runs.is_empty();
        prop_assert!(found.preempt.is_empty() || helps, "{:?} in vain: {taken} of {free}", found);
        self.finish(&found);
        Ok(())
    }

    /// Draws, publishes, and lets go who has all tokens. What follows depends on the last token alone: so
    /// replies are shared, too.
    fn finish(&mut self, found: &Plan) {
        for run in &found.runs {
            let life = &mut self.lives[run.index];
            self.pool.publish(&mut life.table, 0, &life.tokens[..life.computed]);
            if life.computed == life.tokens.len() {
                life.decoding = true;
                life.tokens.push(life.tokens[life.computed - 1] / 2);
            }
        }
        for life in self.lives.iter_mut().filter(|life| life.tokens.len() > life.end_tokens) {
            self.pool.release(&mut life.table);
        }
        self.lives.retain(|life| life.tokens.len() <= life.end_tokens);
    }
}

prop_compose! {
    fn any_world()(
        num_pages in 3u32..40,
        max_sequences in 1usize..8,
        prefill_tokens in 1usize..40,
        raw in proptest::collection::vec(
            (-1i32..2, 0usize..60, 1usize..120, 1usize..30, 0u32..3, 0usize..120),
            1..16,
        ),
    ) -> World {
        let most = num_pages as usize * PAGE_TOKENS;
        let life = |(index, raw): (usize, (i32, usize, usize, usize, u32, usize))| {
            let (priority, arrival, prompt, reply, family, shared) = raw;
            let prompt = 1 + prompt % most;
            let own = |at: usize| if at < shared { family } else { 1000 + index as u32 };
            Life {
                priority,
                arrival: arrival.saturating_sub(30),
                tokens: (0..prompt).map(own).collect(),
                end_tokens: (prompt + reply - 1).min(most),
                computed: 0,
                table: PageTable::new(),
                admitted: false,
                decoding: false,
            }
        };
        let mut future: Vec<Life> = raw.into_iter().enumerate().map(life).collect();
        future.sort_by_key(|life| life.arrival);
        let limits = Limits {
            page_tokens: PAGE_TOKENS, max_sequences, max_rows: max_sequences, prefill_tokens, displaces: true,
        };
        let pool = PagePool::new(num_pages, PAGE_TOKENS);
        World { lives: Vec::new(), future, steps: 0, pool, limits }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_plan_gives_a_page_that_is_shared_or_takes_one_in_vain(mut world in any_world()) {
        let work: usize = world.future.iter().map(|life| life.end_tokens).sum();
        for _ in 0..work * 20 + 100 {
            if world.lives.is_empty() && world.future.is_empty() {
                prop_assert_eq!(world.pool.num_used(), 0);
                return Ok(());
            }
            world.step()?;
        }
        prop_assert!(false, "{} sequences left", world.lives.len());
    }
}
