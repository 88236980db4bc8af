//! The scheduler's promises, for random sequences, page counts and limits: whole lives are played
//! through, and every plan on the way is checked.

use proptest::prelude::*;
use qwen::engine::scheduler::{Limits, Plan, plan};
use qwen::engine::sequence::View;

/// A sequence as the loop would carry it.
#[derive(Debug, Clone)]
struct Life {
    prompt: usize,
    reply: usize,
    total: usize,
    computed: usize,
    pages: usize,
    admitted: bool,
    decoding: bool,
    ending: bool,
}

impl Life {
    fn new(prompt: usize, reply: usize) -> Life {
        let total = prompt;
        Life {
            prompt,
            reply,
            total,
            computed: 0,
            pages: 0,
            admitted: false,
            decoding: false,
            ending: false,
        }
    }

    fn view(&self) -> View {
        View {
            computed_tokens: self.computed,
            total_tokens: self.total,
            pages: self.pages,
            admitted: self.admitted,
            decoding: self.decoding,
            ending: self.ending,
        }
    }
}

#[derive(Debug)]
struct World {
    lives: Vec<Life>,
    num_pages: usize,
    limits: Limits,
    /// The plan is made a step ahead: who has all tokens stays for one more plan.
    ahead: bool,
}

impl World {
    fn free(&self) -> usize {
        self.num_pages - self.lives.iter().map(|life| life.pages).sum::<usize>()
    }

    /// Plans, checks the plan, carries it out. Returns what was planned.
    fn step(&mut self) -> Result<Plan, TestCaseError> {
        let views: Vec<View> = self.lives.iter().map(Life::view).collect();
        let mut found = Plan::default();
        plan(&views, self.free(), &self.limits, &mut found);
        self.check(&found, &views)?;
        for &index in &found.preempt {
            let life = &mut self.lives[index];
            (life.pages, life.computed, life.admitted, life.decoding) = (0, 0, false, false);
        }
        for run in &found.runs {
            let life = &mut self.lives[run.index];
            life.admitted = true;
            life.computed += run.tokens;
            life.pages = life.pages.max(life.computed.div_ceil(self.limits.page_tokens));
            if life.computed == life.total {
                life.decoding = true;
                life.total += 1;
            }
        }
        let held: usize = self.lives.iter().map(|life| life.pages).sum();
        prop_assert!(held <= self.num_pages, "{} pages held of {}", held, self.num_pages);
        let ahead = self.ahead;
        self.lives.retain_mut(|life| {
            let is_complete = life.total - life.prompt >= life.reply;
            let was_ending = std::mem::replace(&mut life.ending, is_complete);
            !is_complete || (ahead && !was_ending)
        });
        Ok(found)
    }

    fn check(&self, found: &Plan, views: &[View]) -> Result<(), TestCaseError> {
        let admitted = views.iter().filter(|view| view.admitted).count();
        let kept = admitted - found.preempt.len();
        // Progress, and in order of arrival.
        let oldest = views.iter().position(|view| !view.ending);
        if oldest == Some(0) {
            prop_assert!(!found.runs.is_empty(), "nothing runs");
        }
        if let Some(first) = found.runs.first() {
            prop_assert_eq!(Some(first.index), oldest, "the oldest does not advance");
        }
        prop_assert!(found.runs.iter().all(|run| !views[run.index].ending));
        prop_assert!(found.runs.is_sorted_by(|a, b| a.index < b.index));
        // The youngest are preempted, none of them runs, and then nobody is admitted.
        let youngest: Vec<usize> = (kept..admitted).rev().collect();
        prop_assert_eq!(&found.preempt, &youngest);
        let admissions: Vec<usize> =
            found.runs.iter().map(|run| run.index).filter(|&index| index >= kept).collect();
        prop_assert!(found.preempt.is_empty() || admissions.is_empty());
        // Admission skips nobody.
        let expected: Vec<usize> = (kept..kept + admissions.len()).collect();
        prop_assert_eq!(admissions, expected);
        prop_assert!(found.runs.len() <= self.limits.max_sequences);
        let mut prefilled = 0;
        for run in &found.runs {
            let view = &views[run.index];
            prop_assert!(run.tokens >= 1 && run.tokens <= view.pending_tokens());
            if view.decoding {
                prop_assert_eq!(run.tokens, 1);
            } else {
                prefilled += run.tokens;
            }
        }
        prop_assert!(prefilled <= self.limits.prefill_tokens);
        // Decoding is never starved: all that are kept decode, but for one that has no page.
        let idle = |index: &usize| {
            let view = &views[*index];
            view.decoding && !view.ending && !found.runs.iter().any(|run| run.index == *index)
        };
        let idle: Vec<usize> = (0..kept).filter(idle).collect();
        prop_assert!(idle.is_empty() || idle == [kept - 1], "decoding starved: {:?}", idle);
        Ok(())
    }
}

prop_compose! {
    fn any_world()(
        num_pages in 1usize..40,
        page_tokens in prop_oneof![Just(1usize), Just(4), Just(16)],
        max_sequences in 1usize..12,
        prefill_tokens in 1usize..100,
        raw in proptest::collection::vec((1usize..200, 1usize..60), 1..25),
        ahead in any::<bool>(),
    ) -> World {
        // As at submit: each must fit the pool alone, whole.
        let most = num_pages * page_tokens;
        let life = |(prompt, reply): (usize, usize)| {
            let prompt = 1 + prompt % most;
            Life::new(prompt, reply.min(most - prompt + 1))
        };
        let lives = raw.into_iter().map(life).collect();
        let limits = Limits { page_tokens, max_sequences, prefill_tokens };
        World { lives, num_pages, limits, ahead }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_sequence_finishes_and_no_plan_breaks_a_limit(mut world in any_world()) {
        let work: usize = world.lives.iter().map(|life| life.prompt + life.reply).sum();
        // Recomputation multiplies the work; without progress it would be endless.
        for _ in 0..work * 20 + 100 {
            if world.lives.is_empty() {
                return Ok(());
            }
            world.step()?;
        }
        prop_assert!(false, "{} sequences left", world.lives.len());
    }

    #[test]
    fn enough_pages_mean_no_preemption(mut world in any_world()) {
        world.num_pages = world.lives.len() * 60 * 16;
        while !world.lives.is_empty() {
            let found = world.step()?;
            prop_assert!(found.preempt.is_empty());
        }
    }

    #[test]
    fn plans_depend_on_nothing_but_their_input(world in any_world()) {
        let views: Vec<View> = world.lives.iter().map(Life::view).collect();
        let (mut first, mut second) = (Plan::default(), Plan::default());
        plan(&views, world.free(), &world.limits, &mut first);
        second.preempt.push(99);
        plan(&views, world.free(), &world.limits, &mut second);
        prop_assert_eq!(first, second);
    }
}

const LIMITS: Limits = Limits { page_tokens: 16, max_sequences: 8, prefill_tokens: 32 };

fn decoding(computed: usize, pages: usize) -> View {
    let total_tokens = computed + 1;
    View {
        computed_tokens: computed,
        total_tokens,
        pages,
        admitted: true,
        decoding: true,
        ending: false,
    }
}

fn waiting(total: usize) -> View {
    let total_tokens = total;
    View {
        computed_tokens: 0,
        total_tokens,
        pages: 0,
        admitted: false,
        decoding: false,
        ending: false,
    }
}

fn planned(views: &[View], free: usize) -> (Vec<(usize, usize)>, Vec<usize>) {
    let mut found = Plan::default();
    plan(views, free, &LIMITS, &mut found);
    (found.runs.iter().map(|run| (run.index, run.tokens)).collect(), found.preempt)
}

#[test]
fn decoding_and_prefill_share_a_step() {
    let views = [decoding(20, 2), decoding(5, 1), waiting(20), waiting(100)];
    assert_eq!(planned(&views, 100), (vec![(0, 1), (1, 1), (2, 20), (3, 12)], vec![]));
}

#[test]
fn a_long_prompt_before_it_does_not_starve_a_decoding_sequence() {
    let long = View { computed_tokens: 32, pages: 2, admitted: true, ..waiting(500) };
    let views = [long, decoding(5, 1), waiting(3)];
    assert_eq!(planned(&views, 100), (vec![(0, 32), (1, 1)], vec![]));
}

#[test]
fn the_youngest_gives_way_when_pages_run_out() {
    // Each needs a new page; one is free, and the youngest gives two back.
    let views = [decoding(32, 2), decoding(32, 2), decoding(32, 2)];
    assert_eq!(planned(&views, 1), (vec![(0, 1), (1, 1)], vec![2]));
    // Alone and short of a page, the youngest keeps what it has and waits.
    let views = [decoding(20, 2), decoding(32, 2)];
    assert_eq!(planned(&views, 0), (vec![(0, 1)], vec![]));
}

#[test]
fn a_small_request_does_not_overtake_a_large_one() {
    let views = [decoding(20, 2), waiting(300), waiting(1)];
    assert_eq!(planned(&views, 10), (vec![(0, 1)], vec![]));
}

#[test]
fn a_preempted_sequence_is_computed_anew_in_chunks() {
    let resumed = waiting(50);
    assert_eq!(planned(&[resumed], 4), (vec![(0, 32)], vec![]));
    let half = View { computed_tokens: 32, pages: 2, admitted: true, ..resumed };
    assert_eq!(planned(&[half], 2), (vec![(0, 18)], vec![]));
}

#[test]
fn one_whose_last_token_is_in_flight_computes_nothing_and_delays_nobody() {
    let ending = View { ending: true, ..decoding(20, 2) };
    assert_eq!(planned(&[ending, decoding(5, 1), waiting(32)], 3), (vec![(1, 1), (2, 32)], vec![]));
    assert_eq!(planned(&[ending], 0), (vec![], vec![]));
}
