//! The model graph: `forward(Batch)`: embed, layers, norm, logits. Knows no concrete backend, and
//! rank numbers only where it asks for its share of the weights.

pub mod config;
mod fields;
pub mod generation;
mod layer;
mod load;
mod load_quantised;
mod quantisation;
pub mod rope;
mod scratch;

use crate::backend::{Backend, HeadShape, KvSpec, RopeStep, StepStart};
use crate::batch::{Batch, Output};
use crate::checkpoint::names;
use crate::checkpoint::shard::{Split, slice};
use crate::error::Result;
use crate::tensor::Dtype;
use config::ModelConfig;
use layer::{Layer, StepContext};
use load::Loader;
pub use load::{Progress, Weights};
pub use load_quantised::quantised_bytes;
use rope::Rope;
use scratch::Scratch;

/// One rank of a loaded model, ready to run steps. The engine drives one thread per rank, each
/// with the same `Batch`.
pub trait Rank: Send {
    /// Begins a step: queues its work, or does it at once. The batch is not needed afterwards. After
    /// an error or a panic the rank must be dropped: that releases the ranks that wait for it.
    fn submit(&mut self, batch: &Batch) -> Result<()>;

    /// Waits for the oldest step that was submitted and not collected. On rank 0, `output` becomes
    /// its logits, or the tokens drawn if the batch said how; other ranks leave it empty. Errors as
    /// for `submit`.
    fn collect(&mut self, output: &mut Output) -> Result<()>;

    /// Does rank 0 draw the tokens itself where the batch says how? Then a step of draws may be
    /// submitted while one is not yet collected, and be fed with the tokens that one draws.
    fn draws_tokens(&self) -> bool {
        false
    }

    /// `Backend::load_report`.
    fn load_report(&self) -> &str {
        ""
    }

    /// One whole step for its logits, `[logits_rows, vocab_size]` on rank 0.
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<()> {
        let mut output = Output { logits: std::mem::take(logits), ..Output::default() };
        self.submit(batch)?;
        self.collect(&mut output)?;
        *logits = output.logits;
        Ok(())
    }
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
    /// The step submitted last gives logits or tokens.
    has_logits: bool,
}

impl<B: Backend> Model<B> {
    /// Loads this rank's share of `weights`. The KV cache has the dtype of the weights.
    ///
    /// Errors: shapes that do not fit the config, a world that does not divide the model, too
    /// little memory, or `Error::Cancelled` when `progress` says so.
    pub fn load<'a>(
        mut backend: B,
        weights: impl Into<Weights<'a>>,
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
        let weights = weights.into();
        weights.check_quantisation(config)?;
        let quantisation = config.quantisation;
        let mut loader =
            Loader { backend: &mut backend, weights, quantisation, rank, world, progress };
        let dtype = loader.weights.dtype()?;
        loader.backend.begin_load();
        let embedding = loader.embedding(names::EMBEDDING, (vocab, hidden))?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(&mut loader, config, index))
            .collect::<Result<Vec<_>>>()?;
        let final_norm = loader.norm(names::FINAL_NORM, hidden)?;
        let lm_head = loader.matrix(names::LM_HEAD, (vocab, hidden), Split::Vocab)?;
        loader.finish()?;
        let share = slice(Split::Vocab, vocab, hidden, rank, world)?;
        let vocab_share = share.row_ranges.iter().map(ExactSizeIterator::len).sum();
        let scratch = Scratch::new(&mut backend, config, heads, &limits, (world, vocab_share))?;
        let kv = backend.kv_cache(kv_spec(config, heads, limits.num_pages, dtype))?;
        let mut model = Model {
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
            has_logits: false,
        };
        model.warm_up()?;
        Ok(model)
    }

    /// Runs a step of padding for each size the backend asks for.
    fn warm_up(&mut self) -> Result<()> {
        for rows in self.backend.warm_up_rows() {
            self.forward(&Batch::padding(rows), &mut Vec::new())?;
        }
        Ok(())
    }

    /// The ops of a step: embed, layers, and the head for the rows whose logits are wanted.
    fn run(&mut self, batch: &Batch) -> Result<()> {
        let Model { backend, scratch: s, .. } = self;
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
        if batch.logits_rows.is_empty() {
            return Ok(());
        }
        backend.gather_rows(&s.residual, &batch.logits_rows, &mut s.last);
        backend.gather_rows(&s.delta, &batch.logits_rows, &mut s.last_delta);
        let delta = Some(&s.last_delta);
        backend.add_norm(delta, &mut s.last, &self.final_norm, step.epsilon, &mut s.last_normed);
        backend.linear(&s.last_normed, &self.lm_head, None, &mut s.logits);
        Ok(())
    }
}

impl<B: Backend> Rank for Model<B> {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.rope.fill(batch, &mut self.rope_step, B::HOST_ANGLES);
        if self.backend.begin_step(batch, &self.rope_step)? == StepStart::Run {
            self.run(batch)?;
        }
        self.has_logits = !batch.logits_rows.is_empty();
        self.backend.finish_step(self.has_logits.then_some(&self.scratch.logits))
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        output.clear();
        self.backend.collect_step(self.has_logits.then_some(&self.scratch.logits), output)
    }

    fn draws_tokens(&self) -> bool {
        B::DRAWS
    }

    fn load_report(&self) -> &str {
        self.backend.load_report()
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
