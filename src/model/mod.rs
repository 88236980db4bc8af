//! The model graph: `forward(Batch)`: embed, layers, norm, logits. Knows no concrete backend, and
//! rank numbers only where it asks for its share of the weights.

pub mod config;
mod fields;
pub mod generation;
mod layer;
mod load;
pub mod rope;
mod scratch;

use crate::backend::{Backend, HeadShape, KvSpec, RopeStep};
use crate::batch::Batch;
use crate::checkpoint::shard::{Split, slice};
use crate::checkpoint::{Checkpoint, names};
use crate::error::Result;
use crate::tensor::Dtype;
use config::ModelConfig;
use layer::{Layer, StepContext};
use load::Loader;
pub use load::Progress;
use rope::Rope;
use scratch::Scratch;

/// One rank of a loaded model, ready to run steps. The engine drives one thread per rank, each
/// with the same `Batch`.
pub trait Rank: Send {
    /// Runs one step. On rank 0, `logits` becomes `[logits_rows, vocab_size]` in f32; other ranks
    /// leave it empty. After an error or a panic the rank must be dropped: that releases the
    /// ranks that wait for it.
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()>;
}

/// What one step may hold at most, and the size of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token rows of a step.
    pub max_tokens: usize,
    /// Rows of a step whose logits are wanted.
    pub max_logits_rows: usize,
    /// Pages of the KV cache.
    pub num_pages: usize,
}

/// Where a rank stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// 0-based.
    pub rank: usize,
    /// Ranks in all.
    pub world: usize,
}

/// One rank's share of a model on backend `B`.
pub struct Model<B: Backend> {
    backend: B,
    config: ModelConfig,
    heads: HeadShape,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    lm_head: B::Matrix,
    kv: B::KvCache,
    rope: Rope,
    rope_step: RopeStep,
    scratch: Scratch<B>,
}

impl<B: Backend> Model<B> {
    /// Loads this rank's share of `checkpoint`. The KV cache has the dtype of the weights.
    ///
    /// Errors: shapes that do not fit the config, a world that does not divide the model, too
    /// little memory, or `Error::Cancelled` when `progress` says so.
    pub fn load(
        mut backend: B,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        placement: Placement,
        limits: Limits,
        progress: Progress<'_>,
    ) -> Result<Model<B>> {
        let Placement { rank, world } = placement;
        let heads = HeadShape {
            num_heads: config.num_heads / world,
            num_kv_heads: config.num_kv_heads / world,
            head_dim: config.head_dim,
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let mut loader = Loader { backend: &mut backend, checkpoint, rank, world, progress };
        let dtype = loader.dtype(&names::layer(0, names::LayerTensor::QkvWeight))?;
        let embedding = loader.matrix(names::EMBEDDING, (vocab, hidden), Split::Replicated)?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(&mut loader, config, index))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = loader.vector(names::FINAL_NORM, hidden, Split::Replicated)?;
        let lm_head = loader.matrix(names::LM_HEAD, (vocab, hidden), Split::Vocab)?;
        let share = slice(Split::Vocab, vocab, hidden, rank, world)?;
        let vocab_share = share.row_ranges.iter().map(ExactSizeIterator::len).sum();
        let scratch = Scratch::new(&mut backend, config, heads, &limits, (world, vocab_share))?;
        let kv = backend.kv_cache(kv_spec(config, heads, limits.num_pages, dtype))?;
        Ok(Model {
            backend,
            config: config.clone(),
            heads,
            embedding,
            layers,
            final_norm,
            lm_head,
            kv,
            rope: Rope::new(config),
            rope_step: RopeStep::default(),
            scratch,
        })
    }

    fn step(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        let Model { backend, scratch: s, .. } = self;
        self.rope.fill(batch, &mut self.rope_step);
        let step = StepContext {
            batch,
            rope: &self.rope_step,
            heads: self.heads,
            epsilon: self.config.norm_epsilon,
        };
        backend.embed(&self.embedding, &batch.token_ids, &mut s.residual);
        for (index, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(index + 1).map_or(&self.lm_head, Layer::first_weight);
            layer.forward(backend, &step, s, &mut self.kv, next)?;
        }
        logits.clear();
        if batch.logits_rows.is_empty() {
            return Ok(());
        }
        backend.gather_rows(&s.residual, &batch.logits_rows, &mut s.last);
        backend.gather_rows(&s.delta, &batch.logits_rows, &mut s.last_delta);
        backend.add_norm(
            Some(&s.last_delta),
            &mut s.last,
            &self.final_norm,
            step.epsilon,
            &mut s.last_normed,
        );
        backend.linear(&s.last_normed, &self.lm_head, None, &mut s.logits);
        backend.gather_logits(&s.logits, logits)
    }
}

impl<B: Backend> Rank for Model<B> {
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        self.step(batch, logits)
    }
}

impl<B: Backend> Drop for Model<B> {
    /// However this rank ends, the others must not wait for it.
    fn drop(&mut self) {
        self.backend.abandon();
    }
}

/// The KV cache of one rank.
pub fn kv_spec(config: &ModelConfig, heads: HeadShape, num_pages: usize, dtype: Dtype) -> KvSpec {
    KvSpec {
        num_layers: config.num_layers,
        num_pages,
        num_kv_heads: heads.num_kv_heads,
        head_dim: heads.head_dim,
        dtype,
    }
}
