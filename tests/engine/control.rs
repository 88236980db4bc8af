//! What a test does to the fake model while an engine runs it: hold it, slow it down, break it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use qwen::error::{Error, Result};

use crate::fake::{IM_END, LONG, wait_until};

/// What the test does to the model.
#[derive(Default)]
pub(crate) struct Control {
    steps: AtomicU64,
    collected: AtomicU64,
    /// Steps begun while another was not collected.
    ahead: AtomicU64,
    /// Steps that may begin; `None`: any number.
    permits: Mutex<Option<u64>>,
    changed: Condvar,
    fault: Mutex<Option<(u64, Fault)>>,
    delay_us: AtomicU64,
    /// What every reply says, in bytes; then it ends.
    script: Mutex<Option<Vec<u8>>>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    Error,
    Panic,
    /// As an error on a device: it is seen when the step is collected.
    Late,
}

impl Control {
    /// Steps begun so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Steps begun so far while another was not collected.
    pub(crate) fn steps_ahead(&self) -> u64 {
        self.ahead.load(Ordering::SeqCst)
    }

    /// From now on every reply says `text` and ends.
    pub(crate) fn say(&self, text: &str) {
        *self.script.lock() = Some(text.as_bytes().to_vec());
    }

    /// The script's token number `index`.
    pub(crate) fn said(&self, index: usize) -> Option<u32> {
        let script = self.script.lock();
        script.as_ref().map(|script| script.get(index).map_or(IM_END, |&byte| u32::from(byte)))
    }

    /// From now on each step waits for a permit.
    pub(crate) fn hold(&self) {
        *self.permits.lock() = Some(0);
    }

    pub(crate) fn allow(&self, steps: u64) {
        if let Some(permits) = self.permits.lock().as_mut() {
            *permits += steps;
        }
        self.changed.notify_all();
    }

    pub(crate) fn release(&self) {
        *self.permits.lock() = None;
        self.changed.notify_all();
    }

    /// Waits until step number `step` has begun (and waits for its permit, if held).
    pub(crate) fn wait_for_step(&self, step: u64) {
        wait_until(|| self.steps() >= step);
    }

    pub(crate) fn slow_down(&self, step: Duration) {
        self.delay_us.store(step.as_micros() as u64, Ordering::SeqCst);
    }

    /// The fault happens in step number `step` (counted from 1).
    pub(crate) fn break_at(&self, step: u64, fault: Fault) {
        *self.fault.lock() = Some((step, fault));
    }

    /// What a collected step gives back besides its output.
    pub(crate) fn end_step(&self) -> Result<()> {
        let step = self.collected.fetch_add(1, Ordering::SeqCst) + 1;
        match *self.fault.lock() {
            Some((at, Fault::Late)) if at == step => {
                Err(Error::EngineFailed { reason: "injected".into() })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn begin_step(&self) -> Result<()> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        let is_ahead = step > self.collected.load(Ordering::SeqCst) + 1;
        self.ahead.fetch_add(u64::from(is_ahead), Ordering::SeqCst);
        let mut permits = self.permits.lock();
        // A test that fails while it holds the model must end, not hang in the engine's drop.
        while *permits == Some(0) {
            if self.changed.wait_for(&mut permits, LONG).timed_out() {
                return Err(Error::EngineFailed { reason: "held for too long".into() });
            }
        }
        if let Some(left) = permits.as_mut() {
            *left -= 1;
        }
        drop(permits);
        std::thread::sleep(Duration::from_micros(self.delay_us.load(Ordering::SeqCst)));
        match *self.fault.lock() {
            Some((at, Fault::Error)) if at == step => {
                Err(Error::EngineFailed { reason: "injected".into() })
            }
            Some((at, Fault::Panic)) if at == step => panic!("injected"),
            _ => Ok(()),
        }
    }
}
