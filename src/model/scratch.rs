//! The activation buffers of one rank, made once and used by every step.

use super::Limits;
use super::config::ModelConfig;
use crate::backend::{Backend, BufferKind, HeadShape};
use crate::checkpoint::shard::Share;
use crate::error::Result;

/// Activations of one step, this rank's share.
pub(super) struct Scratch<B: Backend> {
    /// `[tokens, hidden]` the residual stream.
    pub(super) residual: B::Buffer,
    /// `[tokens, hidden]` normed input of a block.
    pub(super) normed: B::Buffer,
    /// `[tokens, qkv]` queries, keys, values.
    pub(super) qkv: B::Buffer,
    /// `[tokens, heads * head_dim]` attention results.
    pub(super) attended: B::Buffer,
    /// `[tokens, width share]` MLP activations.
    pub(super) hidden: B::Buffer,
    /// `[tokens, hidden]` what a block adds to the residual.
    pub(super) delta: B::Buffer,
    /// `[rows, hidden]` residual, block output and normed rows whose logits are wanted.
    pub(super) last: B::Buffer,
    pub(super) last_delta: B::Buffer,
    pub(super) last_normed: B::Buffer,
    /// `[rows, vocab share]`.
    pub(super) logits: B::Buffer,
}

impl<B: Backend> Scratch<B> {
    /// Buffers for steps within `limits`.
    pub(super) fn new(
        backend: &mut B,
        config: &ModelConfig,
        heads: HeadShape,
        limits: &Limits,
        share: &Share,
    ) -> Result<Scratch<B>> {
        let (tokens, rows) = (limits.max_tokens, limits.max_logits_rows);
        let hidden = config.hidden_size;
        use BufferKind::{Activation, Stream};
        Ok(Scratch {
            residual: backend.buffer(Stream, tokens, hidden)?,
            normed: backend.buffer(Activation, tokens, hidden)?,
            qkv: backend.buffer(Activation, tokens, heads.qkv_cols())?,
            attended: backend.buffer(Activation, tokens, heads.num_heads * heads.head_dim)?,
            hidden: backend.buffer(Activation, tokens, config.intermediate_size / share.parts)?,
            delta: backend.buffer(Stream, tokens, hidden)?,
            last: backend.buffer(Stream, rows, hidden)?,
            last_delta: backend.buffer(Stream, rows, hidden)?,
            last_normed: backend.buffer(Activation, rows, hidden)?,
            logits: backend.buffer(Stream, rows, share.logits_cols(config.vocab_size))?,
        })
    }
}
