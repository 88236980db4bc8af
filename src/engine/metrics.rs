//! Counters and gauges of an engine: written by the loop and by submitters, read by anybody at any
//! time without a lock. Each number is exact on its own; two read together may be a step apart.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// A number that threads share.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All numbers of one engine. Names are those of the JSON.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests_waiting: Number,
    pub(crate) requests_running: Number,
    pub(crate) requests_preempted: Number,
    pub(crate) requests_submitted: Number,
    pub(crate) requests_refused: Number,
    pub(crate) requests_finished: Number,
    pub(crate) requests_cancelled: Number,
    pub(crate) requests_failed: Number,
    pub(crate) pages_used: Number,
    pub(crate) pages_total: Number,
    pub(crate) pages_cached: Number,
    pub(crate) prefix_hit_tokens: Number,
    pub(crate) prefix_evictions: Number,
    pub(crate) prompt_tokens: Number,
    pub(crate) generated_tokens: Number,
    pub(crate) computed_tokens: Number,
    pub(crate) preemptions: Number,
    pub(crate) steps: Number,
    pub(crate) forward_us: Number,
    pub(crate) device_us: Number,
}

impl Metrics {
    /// The numbers as a flat JSON object. Each of several replies to one prompt counts as a request.
    /// `pages_used` are held by sequences, `pages_cached` by none: they are kept for their contents until
    /// their memory is needed (`prefix_evictions` were). `prefix_hit_tokens` counts what was not computed
    /// because such pages, or those of a running sequence, had it. `computed_tokens` counts what went
    /// through the model: also
    /// again after a preemption, and rows submitted ahead for a reply that then had ended.
    /// `forward_us` is the time steps took; `device_us` the part of it from each step's first work on a
    /// GPU to its end, so that the rest it was idle between steps.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "requests_waiting": self.requests_waiting.get(),
            "requests_running": self.requests_running.get(),
            "requests_preempted": self.requests_preempted.get(),
            "requests_submitted": self.requests_submitted.get(),
            "requests_refused": self.requests_refused.get(),
            "requests_finished": self.requests_finished.get(),
            "requests_cancelled": self.requests_cancelled.get(),
            "requests_failed": self.requests_failed.get(),
            "pages_used": self.pages_used.get(),
            "pages_total": self.pages_total.get(),
            "pages_cached": self.pages_cached.get(),
            "prefix_hit_tokens": self.prefix_hit_tokens.get(),
            "prefix_evictions": self.prefix_evictions.get(),
            "prompt_tokens": self.prompt_tokens.get(),
            "generated_tokens": self.generated_tokens.get(),
            "computed_tokens": self.computed_tokens.get(),
            "preemptions": self.preemptions.get(),
            "steps": self.steps.get(),
            "forward_us": self.forward_us.get(),
            "device_us": self.device_us.get(),
        })
    }
}
