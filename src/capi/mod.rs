//! The C ABI: every exported function, one `guard` around each.
//!
//! What it is: the only place where C pointers become Rust values and back. `include/qwen.h` is
//! generated from the doc comments of these files, so they are the manual. What it is not: logic;
//! each export reads its arguments, calls `engine`, `text` or `sample`, and hands the result out.
//!
//! ```text
//! codes     status codes and constants        guard     catch_unwind, the silent panic hook
//! arguments pointers in, out-pointers         errors    qwen_error
//! buffers   qwen_buf, qwen_tokens, qwen_floats       version   version, ABI check, build info
//! keys      the table of option keys          shape     what an option's value may be
//! fields    from option values to fields and back        options   qwen_options
//! log       the log hook
//! logprobs  qwen_logprob, of an event's tokens           tool_call   the call that an event tells of
//! score     log-likelihoods                   embed     hidden states
//! tokenizer, detok, engine, session, request, queue, event     one handle type each
//! ```
//!
//! Handles are boxes around shared (`Arc`) insides. A call clones the inside before it works, so a
//! handle may be freed while a call on it runs, even from that call's own callback.

// The contract of every pointer is in the function's own comment, which is the header's text; a
// second copy under the heading rustdoc asks for would only make the header longer.
#![allow(clippy::missing_safety_doc)]
// The names are C's.
#![allow(non_camel_case_types)]

mod arguments;
pub mod buffers;
pub mod codes;
pub mod detok;
pub mod embed;
pub mod engine;
pub mod errors;
pub mod event;
mod fields;
mod guard;
#[cfg(feature = "test-hooks")]
pub mod hooks;
mod keys;
pub mod log;
pub mod logprobs;
pub mod options;
pub mod queue;
pub mod request;
pub mod score;
pub mod session;
mod shape;
pub mod tokenizer;
pub mod tool_call;
pub mod version;
