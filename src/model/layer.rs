//! One transformer layer on one rank: its weights, and its attention and MLP blocks.

use super::config::ModelConfig;
use super::load::Loader;
use super::scratch::Scratch;
use crate::backend::{Backend, HeadShape, RopeStep};
use crate::batch::Batch;
use crate::checkpoint::names::{self, LayerTensor};
use crate::checkpoint::shard::Split;
use crate::error::Result;

/// What every layer of a step shares.
pub(super) struct StepContext<'a> {
    pub(super) batch: &'a Batch,
    pub(super) rope: &'a RopeStep,
    pub(super) heads: HeadShape,
    pub(super) epsilon: f32,
    /// The ranks have parts of this layer's tensors: what they yield is summed.
    pub(super) is_divided: bool,
}

impl StepContext<'_> {
    /// What a block adds, of all ranks that have parts of it.
    fn sum<B: Backend>(&self, backend: &mut B, delta: &mut B::Buffer) -> Result<()> {
        if self.is_divided { backend.all_reduce(delta) } else { Ok(()) }
    }
}

/// The weights of one layer on one rank.
pub(super) struct Layer<B: Backend> {
    /// Among this rank's.
    index: usize,
    attention_norm: B::Vector,
    qkv: B::Matrix,
    qkv_bias: B::Vector,
    o: B::Matrix,
    mlp_norm: B::Vector,
    gate_up: B::GateUp,
    down: B::Matrix,
}

impl<B: Backend> Layer<B> {
    /// Loads this rank's part of layer `number`, which is the `index`-th that it has.
    pub(super) fn load(
        loader: &mut Loader<'_, B>,
        config: &ModelConfig,
        (index, number): (usize, usize),
    ) -> Result<Layer<B>> {
        let name = |tensor| names::layer(number, tensor);
        let hidden = config.hidden_size;
        let heads_cols = config.num_heads * config.head_dim;
        let qkv_rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
        let width = config.intermediate_size;
        use LayerTensor::*;
        use Split::*;
        Ok(Layer {
            index,
            attention_norm: loader.norm(&name(AttentionNorm), hidden)?,
            qkv: loader.matrix(&name(QkvWeight), (qkv_rows, hidden), ColumnThirds)?,
            qkv_bias: loader.bias(&name(QkvBias), qkv_rows, ColumnThirds)?,
            o: loader.matrix(&name(OWeight), (hidden, heads_cols), Row)?,
            mlp_norm: loader.norm(&name(MlpNorm), hidden)?,
            gate_up: loader.gate_up((&name(GateWeight), &name(UpWeight)), (width, hidden))?,
            down: loader.matrix(&name(DownWeight), (hidden, width), Row)?,
        })
    }

    /// Attention, then MLP. On entry `scratch.delta` holds what the layer before adds to the
    /// residual (nothing before the first layer of a rank); on return, what this one adds. `next` is
    /// the weight that is read after this layer, if it is here.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        step: &StepContext<'_>,
        scratch: &mut Scratch<B>,
        kv: &mut B::KvCache,
        next: Option<&B::Matrix>,
    ) -> Result<()> {
        self.attention(backend, step, scratch, kv)?;
        self.mlp(backend, step, scratch, next)
    }

    /// The weight that is read first.
    pub(super) fn first_weight(&self) -> &B::Matrix {
        &self.qkv
    }

    fn attention(
        &self,
        backend: &mut B,
        step: &StepContext<'_>,
        s: &mut Scratch<B>,
        kv: &mut B::KvCache,
    ) -> Result<()> {
        let delta = (self.index > 0).then_some(&s.delta);
        backend.add_norm(delta, &mut s.residual, &self.attention_norm, step.epsilon, &mut s.normed);
        backend.linear(&s.normed, &self.qkv, Some(&self.qkv_bias), &mut s.qkv);
        backend.rope_kv_write(step.batch, step.rope, step.heads, &mut s.qkv, (kv, self.index));
        backend.soon(&self.o);
        backend.attention(step.batch, step.heads, &s.qkv, (kv, self.index), &mut s.attended);
        backend.soon_gate_up(&self.gate_up);
        backend.linear(&s.attended, &self.o, None, &mut s.delta);
        step.sum(backend, &mut s.delta)
    }

    fn mlp(
        &self,
        backend: &mut B,
        step: &StepContext<'_>,
        s: &mut Scratch<B>,
        next: Option<&B::Matrix>,
    ) -> Result<()> {
        backend.add_norm(
            Some(&s.delta),
            &mut s.residual,
            &self.mlp_norm,
            step.epsilon,
            &mut s.normed,
        );
        backend.soon(&self.down);
        backend.swiglu(&s.normed, &self.gate_up, &mut s.hidden);
        if let Some(next) = next {
            backend.soon(next);
        }
        backend.linear(&s.hidden, &self.down, None, &mut s.delta);
        step.sum(backend, &mut s.delta)
    }
}
