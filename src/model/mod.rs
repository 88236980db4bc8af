//! The model graph: `forward(Batch)`: embed, layers, norm, logits. Knows no concrete backend, and
//! of ranks only which share is its own.

pub mod config;
mod fields;
pub mod generation;
mod layer;
mod load;
mod load_quantised;
mod quantisation;
pub mod rope;
mod scratch;

use crate::backend::{Backend, HeadShape, KvSpec, RopeStep, StepOutputs, StepStart};
use crate::batch::{Batch, Output};
use crate::checkpoint::names;
use crate::checkpoint::shard::{Division, Share, Split};
use crate::error::Result;
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
    /// its logits, or the tokens drawn if the batch said how, and on the last rank, which may be the same,
    /// its hidden states; all else is empty. Errors as for `submit`.
    fn collect(&mut self, output: &mut Output) -> Result<()>;

    /// Does rank 0 draw the tokens itself where the batch says how? Then a step of draws may be
    /// submitted while one is not yet collected, and be fed with the tokens that one draws.
    fn draws_tokens(&self) -> bool {
        false
    }

    /// `Backend::BATCH_INVARIANT`.
    fn batch_invariant(&self) -> bool {
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
pub struct Placement<'a> {
    /// 0-based.
    pub rank: usize,
    /// Ranks in all.
    pub world: usize,
    /// What each of them holds.
    pub division: &'a Division,
}

impl Placement<'_> {
    /// The only rank.
    pub const ALONE: Placement<'static> =
        Placement { rank: 0, world: 1, division: &Division::Tensors };
}

/// What comes after the layers.
struct Head<B: Backend> {
    norm: B::Vector,
    linear: B::Matrix,
}

/// One rank's share of a model on backend `B`.
pub struct Model<B: Backend> {
    backend: B,
    config: ModelConfig,
    share: Share,
    heads: HeadShape,
    /// With whoever has the first layer.
    embedding: Option<B::Matrix>,
    layers: Vec<Layer<B>>,
    /// With whoever has the last layer.
    head: Option<Head<B>>,
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
        placement: Placement<'_>,
        limits: Limits,
        progress: Progress<'_>,
    ) -> Result<Model<B>> {
        let Placement { rank, world, division } = placement;
        let share = division.share(config.num_layers, rank, world);
        let heads = HeadShape {
            num_heads: config.num_heads / share.parts,
            num_kv_heads: config.num_kv_heads / share.parts,
            head_dim: config.head_dim,
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let weights = weights.into();
        weights.check_quantisation(config)?;
        let quantisation = config.quantisation;
        let (part, parts) = (share.part, share.parts);
        let mut loader =
            Loader { backend: &mut backend, weights, quantisation, part, parts, progress };
        let dtype = loader.weights.dtype()?;
        loader.backend.begin_load();
        let embedding = match share.is_first() {
            true => Some(loader.embedding(names::EMBEDDING, (vocab, hidden))?),
            false => None,
        };
        let layers = share
            .layers
            .clone()
            .enumerate()
            .map(|place| Layer::load(&mut loader, config, place))
            .collect::<Result<Vec<_>>>()?;
        let head = match share.is_last() {
            true => Some(Head {
                norm: loader.norm(names::FINAL_NORM, hidden)?,
                linear: loader.matrix(names::LM_HEAD, (vocab, hidden), Split::Vocab)?,
            }),
            false => None,
        };
        loader.finish()?;
        let scratch = Scratch::new(&mut backend, config, heads, &limits, &share)?;
        let kv = KvSpec {
            num_layers: layers.len(),
            num_pages: limits.num_pages,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            dtype,
        };
        let kv = backend.kv_cache(kv)?;
        let mut model = Model {
            backend,
            config: config.clone(),
            share,
            heads,
            embedding,
            layers,
            head,
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

    /// The ops of a step: embed, layers, and the head for the rows whose logits are wanted; of these,
    /// what is this rank's.
    fn run(&mut self, batch: &Batch) -> Result<()> {
        let Model { backend, scratch: s, head, .. } = self;
        let Share { parts, turn, turns, .. } = self.share;
        let step = StepContext {
            batch,
            rope: &self.rope_step,
            heads: self.heads,
            epsilon: self.config.norm_epsilon,
            is_divided: parts > 1,
        };
        if let Some(table) = &self.embedding {
            backend.embed(table, &batch.token_ids, &mut s.residual);
        }
        for to in 1..=turn {
            backend.hand_over(batch, (to - 1, to), &mut s.residual, &s.delta)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let head = head.as_ref().map(|head| &head.linear);
            let next = self.layers.get(index + 1).map(Layer::first_weight).or(head);
            layer.forward(backend, &step, s, &mut self.kv, next)?;
        }
        for to in turn + 1..turns {
            backend.hand_over(batch, (to - 1, to), &mut s.residual, &s.delta)?;
        }
        let Some(Head { norm, linear }) = head else { return Ok(()) };
        let rows = &batch.logits_rows;
        if !batch.hidden_rows.is_empty() {
            // All rows are normed then, in place of those that logits come from.
            backend.add_norm(Some(&s.delta), &mut s.residual, norm, step.epsilon, &mut s.normed);
        }
        if rows.is_empty() {
            return Ok(());
        }
        if batch.hidden_rows.is_empty() {
            backend.gather_rows(&s.residual, rows, &mut s.last);
            backend.gather_rows(&s.delta, rows, &mut s.last_delta);
            let delta = Some(&s.last_delta);
            backend.add_norm(delta, &mut s.last, norm, step.epsilon, &mut s.last_normed);
        } else {
            backend.gather_rows(&s.normed, rows, &mut s.last_normed);
        }
        backend.linear(&s.last_normed, linear, None, &mut s.logits);
        Ok(())
    }

    /// Of ranks that all have the hidden states, the last gives them.
    fn gives_hidden(&self, batch: &Batch) -> bool {
        let Share { part, parts, .. } = self.share;
        !batch.hidden_rows.is_empty() && self.share.is_last() && part + 1 == parts
    }
}

impl<B: Backend> Rank for Model<B> {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.rope.fill(batch, &mut self.rope_step, B::HOST_ANGLES);
        if self.backend.begin_step(batch, &self.rope_step)? == StepStart::Run {
            self.run(batch)?;
        }
        self.has_logits = !batch.logits_rows.is_empty();
        let hidden = self.gives_hidden(batch);
        self.backend.finish_step(StepOutputs {
            logits: self.has_logits.then_some(&self.scratch.logits),
            hidden: hidden.then_some((&self.scratch.normed, batch.hidden_rows.as_slice())),
        })
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        output.clear();
        self.backend.collect_step(self.has_logits.then_some(&self.scratch.logits), output)
    }

    fn draws_tokens(&self) -> bool {
        B::DRAWS
    }

    fn batch_invariant(&self) -> bool {
        B::BATCH_INVARIANT
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
