//! Counters, gauges and distributions of an engine: written by the loop and by submitters, read by anybody at
//! any time without a lock. Each number is exact on its own; two read together may be a step apart.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use crate::engine::histogram::Histograms;

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
    pub(crate) histograms: Histograms,
}

/// What Prometheus has to know of a number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// May fall.
    Gauge,
    /// Only grows.
    Counter,
    /// Only grows, in microseconds; told in seconds.
    Time,
}

/// One number as it is told.
pub(super) struct Told<'a> {
    /// In the JSON.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) number: &'a Number,
    /// One sentence, for Prometheus.
    pub(super) help: &'static str,
}

impl Metrics {
    /// The numbers, in the JSON's order. Each of several replies to one prompt counts as a request.
    #[rustfmt::skip]
    pub(super) fn told(&self) -> [Told<'_>; 20] {
        use Kind::{Counter, Gauge, Time};
        let told = |name, kind, number, help| Told { name, kind, number, help };
        [
            told("requests_waiting", Gauge, &self.requests_waiting, "Requests that wait for their first step."),
            told("requests_running", Gauge, &self.requests_running, "Requests in the running batch."),
            told("requests_preempted", Gauge, &self.requests_preempted, "Requests that gave their pages back and wait to go on."),
            told("requests_submitted", Counter, &self.requests_submitted, "Requests accepted."),
            told("requests_refused", Counter, &self.requests_refused, "Requests refused because the queue was full."),
            told("requests_finished", Counter, &self.requests_finished, "Requests that came to their end."),
            told("requests_cancelled", Counter, &self.requests_cancelled, "Requests ended by their callers or a shutdown."),
            told("requests_failed", Counter, &self.requests_failed, "Requests ended by an error, a deadline among them."),
            told("pages_used", Gauge, &self.pages_used, "KV pages held by requests."),
            told("pages_total", Gauge, &self.pages_total, "KV pages in all."),
            told("pages_cached", Gauge, &self.pages_cached, "KV pages held by none, kept for their contents."),
            told("prefix_hit_tokens", Counter, &self.prefix_hit_tokens, "Tokens not computed, thanks to the prefix cache."),
            told("prefix_evictions", Counter, &self.prefix_evictions, "Kept KV pages given up for their memory."),
            told("prompt_tokens", Counter, &self.prompt_tokens, "Tokens of the prompts that were begun."),
            told("generated_tokens", Counter, &self.generated_tokens, "Tokens drawn, those that stop a reply among them."),
            told("computed_tokens", Counter, &self.computed_tokens, "Tokens that went through the model, also again after a preemption."),
            told("preemptions", Counter, &self.preemptions, "Times that a request gave its pages back."),
            told("steps", Counter, &self.steps, "Steps of the batch."),
            told("forward_us", Time, &self.forward_us, "Time that steps took."),
            told("device_us", Time, &self.device_us, "The part of it from a step's first work on a GPU to its end."),
        ]
    }

    /// A JSON object of the numbers, and `histograms` last.
    /// `pages_used` are held by sequences, `pages_cached` by none: they are kept for their contents until
    /// their memory is needed (`prefix_evictions` were). `prefix_hit_tokens` counts what was not computed
    /// because such pages, or those of a running sequence, had it. `computed_tokens` counts what went
    /// through the model: also
    /// again after a preemption, and rows submitted ahead for a reply that then had ended.
    /// `forward_us` is the time steps took; `device_us` the part of it from each step's first work on a
    /// GPU to its end, so that the rest it was idle between steps.
    pub(crate) fn to_json(&self) -> Value {
        let numbers = self.told().into_iter();
        let mut object: Map<String, Value> =
            numbers.map(|told| (told.name.to_string(), told.number.get().into())).collect();
        object.insert("histograms".to_string(), self.histograms.to_json());
        Value::Object(object)
    }
}
