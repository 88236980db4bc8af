//! The CUDA backend on a GPU, against the plain CPU reference: ops, whole models, engines, faults.
//!
//! Without a usable GPU each test says so and ends; with `QWEN_REQUIRE_GPU=1` that is a failure.
#![cfg(feature = "cuda")]
#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod caller;
mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod deferred;
mod demo;
mod device;
mod faults;
mod fed;
mod gptq;
mod host;
#[cfg(feature = "test-hooks")]
mod injected;
mod logits;
mod long;
mod memory;
mod model;
mod opened;
mod ops;
mod packed;
mod parallel;
mod products;
mod quantised;
mod random;
mod served;
mod streamed;
