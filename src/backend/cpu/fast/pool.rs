//! A thread pool for work that lasts microseconds: threads wait by spinning for a moment, then by
//! sleeping, and a job is a borrowed closure.
//!
//! Between two jobs memory would stand still: while the last thread finishes, and while one thread
//! does the little work between them. Threads without work use that time to ask for the first part
//! of what they will read in the next job, which then lies in their second-level cache.
//!
//! A thread that has not begun its part when the caller is done with its own loses it: the caller
//! does that part, too. So on a machine that is busy with other things nobody waits for a thread the
//! system does not run.
//!
//! A decode step hands out about five jobs a layer, each 20-300 us long; waking a sleeping thread
//! costs about 50 us, so the threads keep awake between the jobs of a step.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::parts::Cursor;
use super::simd::{CACHE_LINE, prefetch_second};
use crate::error::{Error, Result};

/// How long a thread stays awake with nothing to do.
const AWAKE: Duration = Duration::from_micros(300);

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts jobs; a change means a new one is in `job`.
    epoch: AtomicU64,
    job: Mutex<Option<SendJob>>,
    /// Parts of the present job that are not finished, the caller's own not counted.
    running: AtomicUsize,
    /// By worker: the last job whose part was begun, by the worker or by the caller in its place.
    begun: Vec<Begun>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
    /// What each thread will read in the next job.
    ahead: Vec<Ahead>,
}

/// A cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Begun(AtomicU64);

impl Begun {
    /// May the caller of this do the part of job `epoch`? True once.
    fn claim(&self, epoch: u64) -> bool {
        self.0.compare_exchange(epoch - 1, epoch, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Addresses to be asked for while there is nothing else to do; a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Ahead {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Most that is asked for ahead: a part of a second-level cache.
const AHEAD_BYTES: usize = 256 * 1024;
/// Asked for between two looks at whether there is work.
const AHEAD_STEP: usize = 8 * CACHE_LINE;

impl Ahead {
    /// Asks for the next few lines; `false` when there are no more.
    fn step(&self) -> bool {
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        if start >= end {
            return false;
        }
        for line in (start..end.min(start + AHEAD_STEP)).step_by(CACHE_LINE) {
            prefetch_second(line as *const u8);
        }
        // Lost when a new range has come meanwhile: only this thread moves it on.
        let _ = self.start.compare_exchange(
            start,
            start + AHEAD_STEP,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        true
    }
}

#[derive(Clone, Copy)]
struct SendJob(Job);

// SAFETY: the closure behind the pointer is Sync, and `Pool::run` keeps it alive until every
// worker is done with it.
unsafe impl Send for SendJob {}

/// Threads that run one closure at a time, all of them together.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cursors: Vec<Cursor>,
}

impl Pool {
    /// A pool of `num_threads`, the calling thread included.
    pub(super) fn new(num_threads: usize) -> Result<Pool> {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: Mutex::new(None),
            running: AtomicUsize::new(0),
            begun: (0..num_threads.max(1)).map(|_| Begun::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            ahead: (0..num_threads.max(1)).map(|_| Ahead::default()).collect(),
        });
        let cursors = (0..num_threads.max(1)).map(|_| Cursor::default()).collect();
        let mut pool = Pool { shared, threads: Vec::new(), cursors };
        for worker in 1..num_threads.max(1) {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("qwen-cpu-{worker}"))
                .spawn(move || work(&shared, worker))
                .map_err(|error| Error::EngineFailed {
                    reason: format!("cannot start a thread: {error}"),
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(super) fn num_threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// One cursor a thread, for dividing the work of one job.
    pub(super) fn cursors(&self) -> &[Cursor] {
        &self.cursors
    }

    /// Ends the threads.
    fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        let _guard = self.shared.sleepers.lock();
        self.shared.wake.notify_all();
    }

    /// What each thread will read after the next job, from `base` on: threads without work ask for
    /// it, so that memory has no pause between two jobs.
    pub(super) fn foresee(&self, base: *const u8, part: impl Fn(usize) -> Range<usize>) {
        for (worker, ahead) in self.shared.ahead.iter().enumerate() {
            let Range { start, end } = part(worker);
            let base = base as usize;
            // Empty in between: a mix of two ranges would be harmless, but long.
            ahead.end.store(0, Ordering::Relaxed);
            ahead.start.store(base + start, Ordering::Relaxed);
            ahead.end.store(base + end.min(start + AHEAD_BYTES), Ordering::Relaxed);
        }
    }

    /// Calls `job(0)` here and `job(1)`, `job(2)`... on the other threads (or here, where a thread
    /// does not come); returns when all are done. A panic in any of them becomes a panic here, after all are done.
    pub(super) fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; this function does not return before every worker
        // has finished with the closure.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        *shared.job.lock() = Some(SendJob(erased));
        shared.running.store(self.threads.len(), Ordering::Release);
        let epoch = shared.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        if *shared.sleepers.lock() > 0 {
            shared.wake.notify_all();
        }
        let mut mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        for worker in (1..self.num_threads()).filter(|&worker| shared.begun[worker].claim(epoch)) {
            mine = mine.and(catch_unwind(AssertUnwindSafe(|| job(worker))));
            shared.running.fetch_sub(1, Ordering::AcqRel);
        }
        let mut spins = 0_u32;
        while shared.running.load(Ordering::Acquire) > 0 {
            if !shared.ahead[0].step() {
                pause(&mut spins);
            }
        }
        if let Err(panic) = mine {
            std::panic::resume_unwind(panic);
        }
        let others_panicked = shared.panicked.swap(false, Ordering::AcqRel);
        assert!(!others_panicked, "a CPU kernel panicked on another thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A worker catches its jobs' panics, so it ends normally.
            let _ = thread.join();
        }
    }
}

/// One moment of waiting: the core's pause at first, the scheduler's yield later, so that more
/// threads than cores still make progress.
fn pause(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    if *spins < 2000 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        seen = next_epoch(shared, seen, &shared.ahead[worker]);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if !shared.begun[worker].claim(seen) {
            continue;
        }
        let job = *shared.job.lock();
        if let Some(SendJob(job)) = job {
            // SAFETY: `Pool::run` keeps the closure alive until `running` is zero.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(worker) }));
            if outcome.is_err() {
                shared.panicked.store(true, Ordering::Release);
            }
        }
        shared.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits until the epoch is not `seen` and returns it.
fn next_epoch(shared: &Shared, seen: u64, ahead: &Ahead) -> u64 {
    let mut spins = 0;
    let mut since = None;
    loop {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            return epoch;
        }
        if ahead.step() {
            continue;
        }
        pause(&mut spins);
        if spins.is_multiple_of(256) && since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
            let mut sleepers = shared.sleepers.lock();
            if shared.epoch.load(Ordering::SeqCst) == seen {
                *sleepers += 1;
                shared.wake.wait(&mut sleepers);
                *sleepers -= 1;
            }
            (spins, since) = (0, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever comes first.
    #[test]
    fn every_part_of_a_job_is_done_once() {
        for num_threads in [1, 2, 3, 9] {
            let pool = Pool::new(num_threads).expect("threads");
            for _ in 0..200 {
                let counts: Vec<AtomicUsize> =
                    (0..num_threads).map(|_| Default::default()).collect();
                pool.run(&|worker| _ = counts[worker].fetch_add(1, Ordering::Relaxed));
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn nobody_waits_for_a_thread_that_is_not_run() {
        let pool = Pool::new(2).expect("threads");
        pool.stop();
        while !pool.threads[0].is_finished() {
            std::thread::yield_now();
        }
        // What stopped the thread counted as a job.
        assert!(pool.shared.begun[1].claim(1));
        let here = std::thread::current().id();
        let done = AtomicUsize::new(0);
        pool.run(&|worker| {
            assert_eq!(std::thread::current().id(), here);
            done.fetch_add(1 + worker, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 3);
    }

    #[test]
    fn what_is_foreseen_is_asked_for_once_and_never_beyond_its_end() {
        let pool = Pool::new(1).expect("no threads");
        let ahead = &pool.shared.ahead[0];
        assert!(!ahead.step(), "nothing is foreseen");
        for (len, steps) in [(0, 0), (1, 1), (AHEAD_STEP, 1), (AHEAD_STEP + 1, 2)] {
            pool.foresee(std::ptr::dangling(), |_| 64..64 + len);
            assert_eq!((0..100).take_while(|_| ahead.step()).count(), steps, "{len} bytes");
        }
        pool.foresee(std::ptr::dangling(), |_| 0..100 * AHEAD_BYTES);
        let steps = (0..10_000).take_while(|_| ahead.step()).count();
        assert_eq!(steps, AHEAD_BYTES / AHEAD_STEP, "a part of a cache, not all of a matrix");
    }
}
