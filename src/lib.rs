//! libqwen: Qwen-1 chat models inside your process.
//!
//! The path of a request, and the one direction data flows:
//!
//! ```text
//! C ABI (capi) -> engine (scheduler) -> model graph -> backend trait -> kernels
//! side rooms, knowing no device: text, grammar, checkpoint, quant, sample, kv, tensor, reader
//! ```
//!
//! Rooms and what each may import are listed in `tests/tidy/rooms.rs`, which holds them to it.

pub mod backend;
pub mod batch;
pub mod capi;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod grammar;
pub mod kv;
pub mod model;
pub mod quant;
#[doc(hidden)]
pub mod reader;
pub mod sample;
pub mod tensor;
pub mod text;
