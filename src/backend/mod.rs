//! The backend trait: a few coarse ops, each with its shapes, accumulate type and rounding.
//!
//! It is not a tensor library: one op is one step of a transformer layer, coarse enough that a
//! device backend can fuse what it likes behind it. The plain loops of `cpu::reference` are the
//! specification; every other backend is tested against them.
//!
//! Arithmetic, the same for all backends:
//! - activations and the residual stream are f32, all sums are accumulated in f32;
//! - `linear` and `swiglu` round their input to bf16 when the weights are bf16 (the precision the
//!   model was trained in); with f16, f32 and quantised weights the input stays f32;
//! - queries, keys and values are rounded to the cache's dtype after the rotary embedding; scores,
//!   softmax and the weighted sum are f32;
//! - on the CPU a row's result never depends on which other rows are in the step, to the bit. On a GPU
//!   it may, by rounding: how a product or a long context is divided depends on the step. The same
//!   request alone gives the same bits every time.

pub mod comm;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod random;

use crate::batch::{Batch, Output};
use crate::error::{Error, Result};
use crate::quant::QuantTensor;
use crate::tensor::{Dtype, HostTensor};
use random::{Normal, RandomCodes};

/// Sizes of one rank's KV cache. A page holds `batch::PAGE_TOKENS` tokens of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers on this rank.
    pub num_layers: usize,
    /// Pages the cache holds.
    pub num_pages: usize,
    /// KV heads on this rank.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type of stored keys and values (and of the rounded queries).
    pub dtype: Dtype,
}

/// Rotary angles and query scales of the rows of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeStep {
    /// `[sequences, head_dim / 2]` angle per position.
    pub inv_freq: Vec<f32>,
    /// `[tokens, head_dim / 2]` cosines; empty where a backend makes its own (`HOST_ANGLES`).
    pub cos: Vec<f32>,
    /// `[tokens, head_dim / 2]` sines; the same.
    pub sin: Vec<f32>,
    /// `[tokens]` factor of the query after rotation (log-n attention; 1 when off).
    pub query_scale: Vec<f32>,
}

/// The shape of one attention layer on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads on this rank.
    pub num_heads: usize,
    /// KV heads on this rank; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head, even.
    pub head_dim: usize,
}

impl HeadShape {
    /// Columns of the stacked Q, K, V rows.
    pub fn qkv_cols(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// What a buffer is for; a backend may store each at its own precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// The residual stream, what is added to it, and logits: always f32.
    Stream,
    /// Inputs of linears, and what is computed between two of them: f32, or the dtype that the
    /// linears round their inputs to.
    Activation,
}

/// How a step goes on after `Backend::begin_step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStart {
    /// The caller calls the ops.
    Run,
    /// The backend has them all recorded from a step before and has queued them.
    Replayed,
}

/// What of a step leaves it, on one rank.
#[derive(Debug)]
pub struct StepOutputs<'a, B> {
    /// `[rows, vocab share]`; a rank whose share is empty has not touched them.
    pub logits: Option<&'a B>,
    /// Hidden states `[tokens, hidden]`, an `Activation`, and which of the rows.
    pub hidden: Option<(&'a B, &'a [u32])>,
}

/// A device (or the host) that can run the ops of one rank. Methods are called from one thread.
///
/// Shapes are outermost first. `Buffer` holds up to `max_rows` rows; each op that writes a buffer
/// also sets how many rows it holds. A step is `begin_step`, the ops, `finish_step`, `collect_step`;
/// before the last a backend may queue work and wait for none of it. Shape mismatches are bugs of the
/// caller: asserts.
pub trait Backend: Send {
    /// A weight matrix `[out, in]` in its stored dtype.
    type Matrix: Send;
    /// The gate and up matrices of an MLP, `[width, hidden]` each.
    type GateUp: Send;
    /// A weight vector `[n]` (norm weight or bias), as f32.
    type Vector: Send;
    /// Activations `[rows, cols]`.
    type Buffer: Send;
    /// Keys and values of all layers.
    type KvCache: Send;

    /// Does a row's result depend, to the bit, on nothing but the tokens up to it: neither on the rows
    /// beside it, nor on which steps computed those before it?
    const BATCH_INVARIANT: bool = false;

    /// Does it want cosines and sines from the host? Otherwise frequencies are enough.
    const HOST_ANGLES: bool = true;

    /// Does it read the bytes of weights itself, by `advance`? Otherwise they are in memory when it
    /// gets them.
    const STREAMS: bool = false;

    /// From now on weights may be given out before they are in place: `advance` brings them.
    fn begin_load(&mut self) {}

    /// Brings the next piece of the weights given out so far, unless only `ahead_bytes` of them, or
    /// less, are still to come: how many bytes came since it was asked last. None: no more than those
    /// are missing. Errors are those of any weight before.
    fn advance(&mut self, _ahead_bytes: u64) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What loading waited for, in seconds and a few words; empty where there is nothing to tell.
    fn load_report(&self) -> &str {
        ""
    }

    /// Makes a weight matrix ready. `Error::OutOfHostMemory` when it must be copied and cannot.
    fn matrix(&mut self, source: &HostTensor) -> Result<Self::Matrix>;
    /// Makes the embedding table ready, of which only a few rows are read in a step.
    fn embedding(&mut self, source: &HostTensor) -> Result<Self::Matrix> {
        self.matrix(source)
    }
    /// Makes the matrices of an MLP's first half ready. They have one shape and one dtype.
    fn gate_up(&mut self, gate: &HostTensor, up: &HostTensor) -> Result<Self::GateUp>;
    /// Makes a quantised matrix ready; its bias, if it has one, is added by every op that uses it.
    /// `Error::Argument` where the backend has no kernels for it.
    fn quantised_matrix(&mut self, _source: &QuantTensor) -> Result<Self::Matrix> {
        Err(no_quantised_kernels())
    }
    /// The same for the matrices of an MLP's first half. They have one shape and one width of codes.
    fn quantised_gate_up(
        &mut self,
        _gate: &QuantTensor,
        _up: &QuantTensor,
    ) -> Result<Self::GateUp> {
        Err(no_quantised_kernels())
    }
    /// A weight matrix of random numbers, as `matrix` would make it of `normal.tensor()`; a backend
    /// with memory of its own makes them there.
    fn random_matrix(&mut self, normal: &Normal) -> Result<Self::Matrix> {
        self.matrix(&normal.tensor()?)
    }
    /// The same for the matrices of an MLP's first half.
    fn random_gate_up(&mut self, gate: &Normal, up: &Normal) -> Result<Self::GateUp> {
        self.gate_up(&gate.tensor()?, &up.tensor()?)
    }
    /// A quantised matrix of random codes, as `quantised_matrix` would make it of `codes.tensor()`.
    fn random_quantised_matrix(&mut self, codes: &RandomCodes) -> Result<Self::Matrix> {
        self.quantised_matrix(&codes.tensor()?)
    }
    /// The same for the matrices of an MLP's first half.
    fn random_quantised_gate_up(
        &mut self,
        gate: &RandomCodes,
        up: &RandomCodes,
    ) -> Result<Self::GateUp> {
        self.quantised_gate_up(&gate.tensor()?, &up.tensor()?)
    }
    /// Makes a weight vector ready.
    fn vector(&mut self, source: &HostTensor) -> Result<Self::Vector>;
    /// An activation buffer for up to `max_rows` rows of `cols`.
    fn buffer(&mut self, kind: BufferKind, max_rows: usize, cols: usize) -> Result<Self::Buffer>;
    /// A KV cache, all pages zero.
    fn kv_cache(&mut self, spec: KvSpec) -> Result<Self::KvCache>;

    /// A hint that changes no result: after the next op, `weight` is what will be read.
    fn soon(&mut self, _weight: &Self::Matrix) {}

    /// The same of an MLP's first half.
    fn soon_gate_up(&mut self, _weights: &Self::GateUp) {}

    /// Sizes of decode steps to run once, on padding, before the first real one: what a backend
    /// prepares for them is then ready.
    fn warm_up_rows(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Begins a step. A row whose slot is `u32::MAX` is padding, in a sequence with a context of 0.
    fn begin_step(&mut self, _batch: &Batch, _rope: &RopeStep) -> Result<StepStart> {
        Ok(StepStart::Run)
    }

    /// `out[i] = table[token_ids[i]]`, exact. `table [vocab, hidden]`, `out [tokens, hidden]`.
    fn embed(&mut self, table: &Self::Matrix, token_ids: &[u32], out: &mut Self::Buffer);

    /// `residual += delta` (when given), then `out = residual * rsqrt(mean(residual^2) + eps) * w`
    /// row by row. All `[rows, hidden]`; `w [hidden]`. A delta that a linear has just made is used
    /// up, and the next op, if it is a linear, the only one that may then read `out`.
    fn add_norm(
        &mut self,
        delta: Option<&Self::Buffer>,
        residual: &mut Self::Buffer,
        weight: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
    );

    /// `out = x W^T + bias`. `x [rows, in]`, `W [out, in]`, `bias [out]`, `out [rows, out]`.
    fn linear(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    );

    /// `out = (x up^T) * silu(x gate^T)`. `x [rows, hidden]`, weights `[width, hidden]`,
    /// `out [rows, width]`.
    fn swiglu(&mut self, x: &Self::Buffer, gate_up: &Self::GateUp, out: &mut Self::Buffer);

    /// Rotates the queries and keys of `qkv [tokens, qkv_cols]`, scales and rounds the queries in
    /// place, and stores keys and values of layer `layer` at the batch's slots.
    fn rope_kv_write(
        &mut self,
        batch: &Batch,
        rope: &RopeStep,
        heads: HeadShape,
        qkv: &mut Self::Buffer,
        kv: (&mut Self::KvCache, usize),
    );

    /// Causal attention of the queries in `qkv` over the cached keys and values of layer `layer`:
    /// row at position p sees positions 0..=p. `out [tokens, num_heads * head_dim]`.
    fn attention(
        &mut self,
        batch: &Batch,
        heads: HeadShape,
        qkv: &Self::Buffer,
        kv: (&Self::KvCache, usize),
        out: &mut Self::Buffer,
    );

    /// `out[i] = x[rows[i]]`; `rows` are the batch's `logits_rows`. Both are of one kind.
    fn gather_rows(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer);

    /// Sums `x` over all ranks; every rank gets the same bits. World 1: nothing to do.
    fn all_reduce(&mut self, x: &mut Self::Buffer) -> Result<()>;

    /// `x + delta` of rank `from` becomes `x` of rank `to`, of as many rows as the batch has; -0 may
    /// become +0. What the other ranks have in `x` is of no use afterwards. All ranks call it, and only
    /// where there are several. `x` and `delta [tokens, hidden]` of kind `Stream`.
    fn hand_over(
        &mut self,
        batch: &Batch,
        from_to: (usize, usize),
        x: &mut Self::Buffer,
        delta: &Self::Buffer,
    ) -> Result<()>;

    /// Does it draw tokens itself, where a batch says how? Then no logits leave it for such a batch.
    const DRAWS: bool = false;

    /// Ends the ops of a step. A backend that draws queues the draws here, waits for nothing, and takes
    /// one more step before this one is collected.
    fn finish_step(&mut self, outputs: StepOutputs<'_, Self::Buffer>) -> Result<()>;

    /// Waits for the oldest step that was finished and not collected; on rank 0, `output` (empty
    /// before) gets its tokens, or its logits: those of all ranks side by side along the columns, in
    /// rank order; and where `finish_step` was given hidden states, those. A step that gives logits is collected before the next begins.
    fn collect_step(&mut self, logits: Option<&Self::Buffer>, output: &mut Output) -> Result<()>;

    /// Tells the other ranks that this one cannot go on, so that none waits for it.
    fn abandon(&mut self);
}

fn no_quantised_kernels() -> Error {
    let reason = "it is quantised, and this backend has no kernels for that".to_string();
    Error::Argument { argument: "checkpoint", reason }
}
