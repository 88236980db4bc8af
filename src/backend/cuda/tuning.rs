//! Which of several ways to do the same work is the fastest on this device: asked of its clock.
//!
//! The ways take turns, so that a clock that rises or falls meets all of them, and each finds the
//! caches as a step leaves them: full of other things. Of ways that are about as fast as the fastest,
//! the first is taken: noise should not decide.

use std::sync::Arc;

use super::driver::{Context, Mark, Stream};
use super::memory::DeviceMemory;
use crate::error::{Error, Result};

/// Most timed runs of one way, and fewest where the time is up.
const MOST_ROUNDS: usize = 5;
const FEWEST_ROUNDS: usize = 2;
/// Microseconds of timed runs after which no more are begun than must be.
const ENOUGH_US: f32 = 40_000.0;
/// A way is given up once its best run is slower than the best of all by this factor.
const HOPELESS: f32 = 1.25;
/// A way takes an earlier one's place only if its time is below this part of the other's.
const CLEARLY: f32 = 0.98;

/// What came of a contest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Winner {
    /// The fastest way.
    pub(super) way: usize,
    /// Microseconds of the first way that works, and of the fastest: medians. None where there was
    /// nothing to compare.
    pub(super) times_us: Option<(f32, f32)>,
}

/// One way and its times.
struct Racer {
    way: usize,
    times_us: Vec<f32>,
    is_in: bool,
}

impl Racer {
    fn best_us(&self) -> f32 {
        self.times_us.iter().copied().fold(f32::INFINITY, f32::min)
    }

    fn median_us(&self) -> f32 {
        let mut sorted = self.times_us.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f32::INFINITY)
    }
}

/// The fastest of `num_ways`, where `run(way)` does the work once and says how many microseconds it
/// took. Ways that fail when they are run for the first time do not take part; the last one's error if
/// all of them do.
pub(super) fn contest(
    num_ways: usize,
    mut run: impl FnMut(usize) -> Result<f32>,
) -> Result<Winner> {
    let (mut racers, mut error) = (Vec::new(), None);
    for way in 0..num_ways {
        // The first run loads the way's kernel: it is not timed.
        match run(way) {
            Ok(_) => racers.push(Racer { way, times_us: Vec::new(), is_in: true }),
            Err(failed) => error = Some(failed),
        }
    }
    if racers.len() > 1 {
        race(&mut racers, &mut run)?;
    }
    let no_way = || Error::EngineFailed { reason: "a bug in the library: no way".to_string() };
    let first = racers.first().ok_or_else(|| error.unwrap_or_else(no_way))?;
    let in_race = || racers.iter().filter(|racer| racer.is_in);
    let best_us = in_race().map(Racer::median_us).fold(f32::INFINITY, f32::min);
    let winner = in_race().find(|racer| best_us >= CLEARLY * racer.median_us()).unwrap_or(first);
    let times_us = (racers.len() > 1).then(|| (first.median_us(), winner.median_us()));
    Ok(Winner { way: winner.way, times_us })
}

fn race(racers: &mut [Racer], run: &mut impl FnMut(usize) -> Result<f32>) -> Result<()> {
    let mut spent_us = 0.0;
    for round in 0..MOST_ROUNDS {
        if round >= FEWEST_ROUNDS && spent_us > ENOUGH_US {
            break;
        }
        for racer in racers.iter_mut().filter(|racer| racer.is_in) {
            let time_us = run(racer.way)?;
            spent_us += time_us;
            racer.times_us.push(time_us);
        }
        let best_us = racers.iter().map(Racer::best_us).fold(f32::INFINITY, f32::min);
        for racer in racers.iter_mut() {
            racer.is_in &= racer.best_us() <= HOPELESS * best_us;
        }
    }
    Ok(())
}

/// The device's clock: two marks in a queue of work.
pub(super) struct Timer {
    start: Mark,
    end: Mark,
}

impl Timer {
    pub(super) fn new(context: &Arc<Context>) -> Result<Timer> {
        Ok(Timer { start: Mark::new(context)?, end: Mark::new(context)? })
    }

    /// Microseconds that the device spends on what `work` queues on `stream`. `scratch` is
    /// overwritten.
    pub(super) fn time_us(
        &self,
        stream: &Stream,
        scratch: &DeviceMemory,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<f32> {
        // Writing over it (64 MiB) clears the caches of a GPU like the H200. It also gives the device something to do while the host
        // queues the work: else the time would be that of the queueing. Twice, for slow hosts.
        scratch.clear(stream)?;
        scratch.clear(stream)?;
        self.start.set(stream)?;
        work()?;
        self.end.set(stream)?;
        self.end.wait()?;
        self.end.us_since(&self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Error {
        Error::Device { operation: "multiply matrices", code: 15, reason: "no".to_string() }
    }

    /// A contest of ways that take these times; `None`: a way that does not work. Also the runs of
    /// each.
    fn held(times_us: &[Option<f32>]) -> (Result<Winner>, Vec<usize>) {
        let mut runs = vec![0; times_us.len()];
        let winner = contest(times_us.len(), |way| {
            runs[way] += 1;
            times_us[way].ok_or_else(failed)
        });
        (winner, runs)
    }

    fn winner(way: usize, first_us: f32, best_us: f32) -> Result<Winner> {
        Ok(Winner { way, times_us: Some((first_us, best_us)) })
    }

    #[test]
    fn the_fastest_wins() {
        let (found, runs) = held(&[Some(100.0), Some(90.0), Some(95.0), Some(300.0)]);
        assert_eq!(found, winner(1, 100.0, 90.0));
        assert_eq!(runs, [6, 6, 6, 2], "what is hopeless is given up");
    }

    #[test]
    fn of_ways_about_as_fast_the_first_is_taken() {
        assert_eq!(held(&[Some(100.0), Some(98.5)]).0, winner(0, 100.0, 100.0));
        assert_eq!(held(&[Some(100.0), Some(97.0)]).0, winner(1, 100.0, 97.0));
        assert_eq!(held(&[Some(200.0), Some(100.0), Some(99.0)]).0, winner(1, 200.0, 100.0));
    }

    #[test]
    fn ways_that_do_not_work_are_passed_over() {
        assert_eq!(held(&[None, Some(50.0), Some(40.0)]).0, winner(2, 50.0, 40.0));
        assert_eq!(held(&[None, Some(50.0)]).0, Ok(Winner { way: 1, times_us: None }));
        assert_eq!(held(&[None, None]).0, Err(failed()));
    }

    #[test]
    fn one_way_is_not_timed() {
        let (found, runs) = held(&[Some(7.0)]);
        assert_eq!(found, Ok(Winner { way: 0, times_us: None }));
        assert_eq!(runs, [1]);
    }

    #[test]
    fn one_slow_run_does_not_decide() {
        let mut runs = [0, 0];
        let found = contest(2, |way| {
            runs[way] += 1;
            Ok(if way == 1 && runs[1] == 3 { 1000.0 } else { 100.0 - 10.0 * way as f32 })
        });
        assert_eq!(found, winner(1, 100.0, 90.0));
    }

    #[test]
    fn long_work_is_run_less_often() {
        let (found, runs) = held(&[Some(30_000.0), Some(25_000.0)]);
        assert_eq!((found, runs), (winner(1, 30_000.0, 25_000.0), vec![3, 3]));
    }

    #[test]
    fn a_device_that_fails_between_runs_is_an_error() {
        let mut runs = 0;
        let found = contest(2, |_| {
            runs += 1;
            if runs > 3 { Err(failed()) } else { Ok(1.0) }
        });
        assert_eq!(found, Err(failed()));
    }
}
