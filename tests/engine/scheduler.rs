//! The scheduler's promises, for random sequences, page counts and limits: whole lives are played
//! through, and every plan on the way is checked.

use proptest::prelude::*;
use qwen::engine::scheduler::{Limits, Plan, Run, plan};
use qwen::engine::sequence::View;

/// A sequence as the loop would carry it.
#[derive(Debug, Clone)]
struct Life {
    priority: i32,
    /// The step before which it comes.
    arrival: usize,
    prompt: usize,
    reply: usize,
    total: usize,
    computed: usize,
    pages: usize,
    admitted: bool,
    decoding: bool,
    ending: bool,
    /// From here on every token of the prompt wants its logits.
    wanted_from: usize,
}

impl Life {
    fn new(priority: i32, arrival: usize, prompt: usize, reply: usize) -> Life {
        let total = prompt;
        Life {
            priority,
            arrival,
            prompt,
            reply,
            total,
            computed: 0,
            pages: 0,
            admitted: false,
            decoding: false,
            ending: false,
            wanted_from: usize::MAX,
        }
    }

    fn view(&self) -> View {
        View {
            priority: self.priority,
            computed_tokens: self.computed,
            total_tokens: self.total,
            pages: self.pages,
            own_pages: self.pages,
            admitted: self.admitted,
            decoding: self.decoding,
            ending: self.ending,
            wanted_from: self.wanted_from,
            postponed: false,
        }
    }
}

#[derive(Debug)]
struct World {
    lives: Vec<Life>,
    /// In order of arrival.
    future: Vec<Life>,
    steps: usize,
    num_pages: usize,
    limits: Limits,
    /// The plan is made a step ahead: who has all tokens stays for one more plan.
    ahead: bool,
}

impl World {
    fn is_over(&self) -> bool {
        self.lives.is_empty() && self.future.is_empty()
    }

    fn free(&self) -> usize {
        self.num_pages - self.lives.iter().map(|life| life.pages).sum::<usize>()
    }

    /// Plans, checks the plan, carries it out. Returns what was planned.
    fn step(&mut self) -> Result<Plan, TestCaseError> {
        let here = self.future.iter().take_while(|life| life.arrival <= self.steps).count();
        self.lives.extend(self.future.drain(..here));
        self.lives.sort_by_key(|life| std::cmp::Reverse(life.priority));
        self.steps += 1;
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
            if life.computed >= life.wanted_from {
                let all = life.computed >= life.prompt;
                life.wanted_from = if all { usize::MAX } else { life.computed };
            }
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
        let admitted: Vec<usize> = (0..views.len()).filter(|&at| views[at].admitted).collect();
        let kept = &admitted[..admitted.len() - found.preempt.len()];
        // Progress, and in order of rank. Only one that waits for pages of an ending one is passed over.
        let oldest = views.iter().position(|view| !view.ending);
        let first = found.runs.first().map(|run| run.index);
        if oldest == Some(0) {
            prop_assert_eq!(first, oldest, "the oldest does not advance");
        }
        if first.is_some() && oldest.is_some_and(|oldest| views[oldest].admitted) {
            prop_assert_eq!(first, oldest, "the oldest does not advance");
        }
        prop_assert!(found.runs.iter().all(|run| !views[run.index].ending));
        prop_assert!(found.runs.is_sorted_by(|a, b| a.index < b.index));
        // The last in rank are preempted; nobody behind them runs, nor anybody of their priority who
        // was not admitted before.
        let last: Vec<usize> = admitted[kept.len()..].iter().rev().copied().collect();
        prop_assert_eq!(&found.preempt, &last);
        let admissions: Vec<usize> =
            found.runs.iter().map(|run| run.index).filter(|&at| !views[at].admitted).collect();
        for &lost in &found.preempt {
            prop_assert!(found.runs.iter().all(|run| run.index < lost));
            prop_assert!(admissions.iter().all(|&at| views[at].priority > views[lost].priority));
        }
        // Admission skips nobody.
        let waiting = (0..views.len()).filter(|&at| !views[at].admitted);
        let expected: Vec<usize> = waiting.take(admissions.len()).collect();
        prop_assert_eq!(&admissions, &expected);
        prop_assert!(kept.len() + admissions.len() <= self.limits.max_sequences);
        let mut prefilled = 0;
        let mut rows = 0;
        for run in &found.runs {
            let view = &views[run.index];
            let end = view.computed_tokens + run.tokens;
            rows += end.saturating_sub(view.wanted_from.max(view.computed_tokens)).max(1);
            prop_assert!(run.tokens >= 1 && run.tokens <= view.pending_tokens());
            if view.decoding {
                prop_assert_eq!(run.tokens, 1);
            } else {
                prefilled += run.tokens;
            }
        }
        prop_assert!(prefilled <= self.limits.prefill_tokens);
        prop_assert!(rows <= self.limits.max_sequences, "{} rows", rows);
        // Decoding is never starved: all that are kept decode, but for one that has no page.
        let idle = |index: &usize| {
            let view = &views[*index];
            view.decoding && !view.ending && !found.runs.iter().any(|run| run.index == *index)
        };
        let idle: Vec<usize> = kept.iter().copied().filter(idle).collect();
        prop_assert!(idle.is_empty() || idle[..] == kept[kept.len() - 1..], "starved: {:?}", idle);
        Ok(())
    }
}

prop_compose! {
    fn any_world()(
        num_pages in 1usize..40,
        page_tokens in prop_oneof![Just(1usize), Just(4), Just(16)],
        max_sequences in 1usize..12,
        prefill_tokens in 1usize..100,
        raw in proptest::collection::vec(
            (-1i32..2, 0usize..80, 1usize..200, 1usize..60, prop_oneof![Just(usize::MAX), 0usize..200]),
            1..25,
        ),
        ahead in any::<bool>(),
    ) -> World {
        // As at submit: each must fit the pool alone, whole.
        let most = num_pages * page_tokens;
        let life = |(priority, arrival, prompt, reply, wanted_from): (i32, _, usize, usize, _)| {
            let prompt = 1 + prompt % most;
            // Half of them are there from the beginning.
            let arrival = usize::saturating_sub(arrival, 40);
            let life = Life::new(priority, arrival, prompt, reply.min(most - prompt + 1));
            Life { wanted_from: if wanted_from < prompt { wanted_from } else { usize::MAX }, ..life }
        };
        let mut future: Vec<Life> = raw.into_iter().map(life).collect();
        future.sort_by_key(|life| life.arrival);
        let limits =
            Limits { page_tokens, max_sequences, max_rows: max_sequences, prefill_tokens, displaces: true };
        World { lives: Vec::new(), future, steps: 0, num_pages, limits, ahead }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_sequence_finishes_and_no_plan_breaks_a_limit(mut world in any_world()) {
        let work: usize = world.future.iter().map(|life| life.prompt + life.reply).sum();
        // Recomputation multiplies the work; without progress it would be endless.
        for _ in 0..work * 20 + 100 {
            if world.is_over() {
                return Ok(());
            }
            world.step()?;
        }
        prop_assert!(false, "{} sequences left", world.lives.len());
    }

    #[test]
    fn enough_pages_mean_no_preemption(mut world in any_world()) {
        world.num_pages = world.future.len() * 60 * 16;
        world.limits.max_sequences = world.future.len();
        world.limits.max_rows = world.future.len();
        while !world.is_over() {
            let found = world.step()?;
            prop_assert!(found.preempt.is_empty());
        }
    }

    #[test]
    fn plans_depend_on_nothing_but_their_input(mut world in any_world()) {
        world.step()?;
        let views: Vec<View> = world.lives.iter().map(Life::view).collect();
        let (mut first, mut second) = (Plan::default(), Plan::default());
        plan(&views, world.free(), &world.limits, &mut first);
        second.preempt.push(99);
        plan(&views, world.free(), &world.limits, &mut second);
        prop_assert_eq!(first, second);
    }
}

const LIMITS: Limits =
    Limits { page_tokens: 16, max_sequences: 8, max_rows: 8, prefill_tokens: 32, displaces: true };

fn decoding(computed: usize, pages: usize) -> View {
    let total_tokens = computed + 1;
    View {
        priority: 0,
        computed_tokens: computed,
        total_tokens,
        pages,
        own_pages: pages,
        admitted: true,
        decoding: true,
        ending: false,
        wanted_from: usize::MAX,
        postponed: false,
    }
}

fn waiting(total: usize) -> View {
    let total_tokens = total;
    View {
        priority: 0,
        computed_tokens: 0,
        total_tokens,
        pages: 0,
        own_pages: 0,
        admitted: false,
        decoding: false,
        ending: false,
        wanted_from: usize::MAX,
        postponed: false,
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
fn nobody_overtakes_one_that_is_postponed() {
    let postponed = View { postponed: true, ..waiting(30) };
    let lower = View { priority: -1, ..decoding(20, 2) };
    let views = [decoding(20, 2), postponed, waiting(1), lower];
    assert_eq!(planned(&views, 100), (vec![(0, 1), (3, 1)], vec![]));
}

#[test]
fn a_waiting_sequence_starts_over_the_cache_and_shares_the_pages_that_others_hold() {
    // Seven pages in all, and one for each of the two to grow into; four are held by the first.
    let holder = decoding(70, 5);
    let over = View { computed_tokens: 64, pages: 4, ..waiting(100) };
    assert_eq!(planned(&[holder, over], 4), (vec![(0, 1), (1, 32)], vec![]));
    assert_eq!(planned(&[holder, over], 3), (vec![(0, 1)], vec![]));
    assert_eq!(planned(&[holder, waiting(100)], 4), (vec![(0, 1)], vec![]));
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

#[test]
fn a_higher_priority_takes_pages_and_places_of_lower_ones_where_that_is_enough() {
    let high = |view: View| View { priority: 1, ..view };
    let low = |computed, pages| View { priority: -1, ..decoding(computed, pages) };
    // 40 tokens want three pages: the last one gives two back.
    assert_eq!(
        planned(&[high(waiting(30)), low(20, 2), low(20, 2)], 0),
        (vec![(0, 30), (1, 1)], vec![2])
    );
    // Enough are free: nobody gives way.
    let views = [high(waiting(30)), low(20, 2), low(20, 2)];
    assert_eq!(planned(&views, 4), (vec![(0, 30), (1, 1), (2, 1)], vec![]));
    // Not even both are enough, beside what the one before it holds: they go on.
    let views = [high(decoding(20, 9)), high(waiting(100)), low(20, 2), low(20, 2)];
    assert_eq!(planned(&views, 1), (vec![(0, 1), (2, 1), (3, 1)], vec![]));
    // Of its own priority nobody gives way, and nobody is admitted before it.
    let views = [decoding(20, 2), waiting(30), View { priority: -1, ..waiting(1) }];
    assert_eq!(planned(&views, 1), (vec![(0, 1)], vec![]));
    // All places are taken.
    let mut views = vec![high(waiting(5))];
    views.extend([low(20, 2); 8]);
    let (runs, preempted) = planned(&views, 100);
    assert_eq!((runs.len(), runs[0], preempted), (8, (0, 5), vec![8]));
}

#[test]
fn pages_that_others_share_do_not_come_back() {
    let high = |view: View| View { priority: 1, ..view };
    let sharing = View { own_pages: 1, ..decoding(95, 6) };
    // 30 tokens want two pages; one is free, and each of the lower ones gives one back.
    assert_eq!(planned(&[high(waiting(30)), sharing], 0), (vec![(1, 1)], vec![]));
    let views = [high(waiting(30)), sharing, sharing];
    assert_eq!(planned(&views, 1), (vec![(0, 30), (1, 1)], vec![2]));
    assert_eq!(planned(&views, 0), (vec![(0, 30)], vec![2, 1]));
    // One that lacks a page gets it from whoever has one.
    let none = View { own_pages: 0, ..sharing };
    assert_eq!(planned(&[decoding(32, 2), sharing, none], 0), (vec![(0, 1)], vec![2, 1]));
    // Nobody behind the second has one: it waits.
    let views = [decoding(20, 2), decoding(32, 2), none];
    assert_eq!(planned(&views, 0), (vec![(0, 1), (2, 1)], vec![]));
}

#[test]
fn whoever_was_admitted_stays_where_nobody_is_displaced() {
    let limits = Limits { max_sequences: 1, displaces: false, ..LIMITS };
    let views = [View { priority: 1, ..waiting(30) }, decoding(20, 2)];
    let mut found = Plan::default();
    plan(&views, 100, &limits, &mut found);
    assert_eq!(
        (&found.runs[..], &found.preempt[..]),
        (&[Run { index: 1, tokens: 1 }][..], &[][..])
    );
}

#[test]
fn one_that_wants_many_rows_leaves_room_for_others() {
    let scored = View { wanted_from: 5, ..waiting(100) };
    // Of eight rows two have an owner; of the other six it takes three, and the newcomers one each.
    let views = [decoding(5, 1), scored, waiting(3), waiting(3)];
    assert_eq!(planned(&views, 100), (vec![(0, 1), (1, 9), (2, 3), (3, 3)], vec![]));
    let full = [decoding(5, 1); 7];
    let views = [&full[..], &[View { computed_tokens: 20, pages: 2, admitted: true, ..scored }]];
    assert_eq!(planned(&views.concat(), 100).0[7], (7, 1));
}
