//! Distributions of what requests took, in buckets that never change: the loop adds to them without a lock
//! (one search among some twenty bounds and two additions for each token), anybody reads them at any time.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::engine::metrics::Number;
use crate::engine::request::Usage;

/// Upper bounds of waits, in microseconds: from a step of a small model to a long queue.
const WAITS: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
];

/// Upper bounds of the time of one token, in microseconds: dense where replies are read along, from 1,000
/// tokens a second to one in five seconds.
const TOKEN_TIMES: &[u64] = &[
    1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 75_000,
    100_000, 150_000, 200_000, 300_000, 500_000, 1_000_000, 2_000_000, 5_000_000,
];

/// Upper bounds of numbers of tokens.
const TOKENS: &[u64] =
    &[1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];

const US_A_SECOND: u64 = 1_000_000;

/// Counts of values in buckets.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Ascending; a bucket holds what is above the bound before its own and not above that.
    bounds: &'static [u64],
    /// So many units of a value make one of what is told.
    units: u64,
    /// One for each bound, and one for what is above all of them.
    counts: Vec<Number>,
    sum: Number,
}

/// A histogram at one moment, in the units that are told.
pub(super) struct Reading {
    pub(super) bounds: Vec<f64>,
    /// One more than bounds; each value is in one of them.
    pub(super) counts: Vec<u64>,
    pub(super) sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64], units: u64) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| Number::default()).collect();
        Histogram { bounds, units, counts, sum: Number::default() }
    }

    fn add(&self, value: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)].add(1);
        self.sum.add(value);
    }

    fn add_time(&self, time: Duration) {
        // To the nearest, so that sums of short times are not short of them.
        let us = (time.as_nanos() + 500) / 1_000;
        self.add(u64::try_from(us).unwrap_or(u64::MAX));
    }

    pub(super) fn read(&self) -> Reading {
        let told = |value: u64| value as f64 / self.units as f64;
        Reading {
            bounds: self.bounds.iter().copied().map(told).collect(),
            counts: self.counts.iter().map(Number::get).collect(),
            sum: told(self.sum.get()),
        }
    }
}

impl Reading {
    /// How many values there were. Not counted apart, so that it is what the buckets have.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// All distributions of one engine.
#[derive(Debug)]
pub(crate) struct Histograms {
    first_token: Histogram,
    next_token: Histogram,
    queue: Histogram,
    request: Histogram,
    prompt: Histogram,
    generated: Histogram,
}

impl Default for Histograms {
    fn default() -> Histograms {
        Histograms {
            first_token: Histogram::new(WAITS, US_A_SECOND),
            next_token: Histogram::new(TOKEN_TIMES, US_A_SECOND),
            queue: Histogram::new(WAITS, US_A_SECOND),
            request: Histogram::new(WAITS, US_A_SECOND),
            prompt: Histogram::new(TOKENS, 1),
            generated: Histogram::new(TOKENS, 1),
        }
    }
}

impl Histograms {
    /// Name, one sentence for Prometheus, and the histogram.
    pub(super) fn told(&self) -> [(&'static str, &'static str, &Histogram); 6] {
        [
            (
                "time_to_first_token_seconds",
                "From a request's submit to its first token.",
                &self.first_token,
            ),
            (
                "time_between_tokens_seconds",
                "From each token of a request to its next one.",
                &self.next_token,
            ),
            ("queue_time_seconds", "From a request's submit to its first step.", &self.queue),
            (
                "request_duration_seconds",
                "From a request's submit to its end, whichever that was.",
                &self.request,
            ),
            (
                "request_prompt_tokens",
                "Prompt tokens of each request that has ended.",
                &self.prompt,
            ),
            (
                "request_generated_tokens",
                "Reply tokens of each request that has ended.",
                &self.generated,
            ),
        ]
    }

    /// By name: `bounds`, `counts` (one more: what is above all bounds; not cumulative), `count`, `sum`.
    pub(super) fn to_json(&self) -> Value {
        let object = |histogram: &Histogram| {
            let reading = histogram.read();
            let (count, Reading { bounds, counts, sum }) = (reading.count(), reading);
            json!({ "bounds": bounds, "counts": counts, "count": count, "sum": sum })
        };
        let told = self.told().into_iter();
        let object: Map<String, Value> =
            told.map(|(name, _, histogram)| (name.to_string(), object(histogram))).collect();
        Value::Object(object)
    }
}

/// When what happened to one request: `submitted` is when its owner called.
#[derive(Debug)]
pub(crate) struct Clock {
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Clock {
    pub(crate) fn new(submitted: Instant) -> Clock {
        Clock { submitted, last_token: None }
    }

    /// Its first step is being made.
    pub(crate) fn begun(&self, histograms: &Histograms) {
        histograms.queue.add_time(self.submitted.elapsed());
    }

    /// A token of it was drawn and is about to be told.
    pub(crate) fn token(&mut self, histograms: &Histograms) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => histograms.first_token.add_time(now - self.submitted),
            Some(last) => histograms.next_token.add_time(now - last),
        }
    }

    /// It has ended.
    pub(crate) fn ended(&self, usage: &Usage, histograms: &Histograms) {
        histograms.request.add_time(self.submitted.elapsed());
        histograms.prompt.add(usage.prompt_tokens);
        histograms.generated.add(usage.completion_tokens);
    }
}
