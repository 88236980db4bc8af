//! The engine's promises, on a fake model that makes its mistakes visible.

// Helpers outside `#[test]` functions are tests, too: a panic is how they fail.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod batching;
mod cancel;
mod choices;
mod control;
mod deterministic;
mod displaced;
mod drawing;
mod embed;
mod fake;
mod fork;
mod format;
mod host;
mod life;
mod logprobs;
mod metrics;
mod prefix;
mod queue;
mod rank;
mod scheduler;
mod score;
mod session;
mod sharing;
mod soak;
mod stops;
mod told;
mod tools;
