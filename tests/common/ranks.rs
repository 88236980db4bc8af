//! Models of committed tiny checkpoints, all ranks in one process, driven step by step.

#![allow(unreachable_pub, reason = "each test that includes it uses its part")]
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen::backend::Backend;
use qwen::backend::comm::{Comm, Solo, Threads};
use qwen::backend::cpu::fast::{Fast, Isa};
use qwen::backend::cpu::reference::Reference;
use qwen::batch::{Batch, PAGE_TOKENS};
use qwen::checkpoint::Checkpoint;
use qwen::checkpoint::shard::Division;
use qwen::model::config::ModelConfig;
use qwen::model::{Limits, Model, Placement, Rank, Weights};

/// Longest sequence a test runs.
const MAX_TOKENS: usize = 160;

/// A backend to test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Reference,
    Fast(Isa),
}

impl Kind {
    /// The reference and the fast backend on every instruction set of this machine.
    pub fn all() -> Vec<Kind> {
        let fast = Isa::available().into_iter().map(Kind::Fast);
        std::iter::once(Kind::Reference).chain(fast).collect()
    }
}

/// A folder under tests/data/tiny.
pub fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)
}

/// A loaded checkpoint on `world` ranks, and the tokens of one sequence run so far.
pub struct Ranks {
    pub ranks: Vec<Box<dyn Rank>>,
    pub vocab_size: usize,
}

impl Ranks {
    /// The checkpoint in `folder`, every tensor divided.
    pub fn open(folder: &Path, kind: Kind, world: usize) -> Ranks {
        let config = ModelConfig::open(folder).expect("config.json");
        let checkpoint = Checkpoint::open(folder).expect("checkpoint");
        Ranks::load((&checkpoint).into(), &config, kind, (world, &Division::Tensors))
    }

    pub fn load(
        weights: Weights<'_>,
        config: &ModelConfig,
        kind: Kind,
        (world, division): (usize, &Division),
    ) -> Ranks {
        let comm: Arc<dyn Comm> = if world == 1 { Arc::new(Solo) } else { Threads::new(world) };
        let ranks = (0..world)
            .map(|rank| {
                let comm = comm.clone();
                let place = Placement { rank, world, division };
                match kind {
                    Kind::Reference => load(Reference::new(comm, rank), weights, config, place),
                    Kind::Fast(isa) => {
                        let backend = Fast::with_isa(comm, rank, 2, isa).expect("threads");
                        load(backend, weights, config, place)
                    }
                }
            })
            .collect();
        Ranks { ranks, vocab_size: config.vocab_size }
    }

    /// Runs `tokens[start..end]` of a sequence whose earlier tokens are cached; the logits of each.
    pub fn run(&mut self, tokens: &[u32], start: usize, prompt_tokens: usize) -> Vec<f32> {
        let end = tokens.len();
        // Pages in falling order: nothing may rely on them being neighbours.
        let pages: Vec<u32> = (0..MAX_TOKENS.div_ceil(PAGE_TOKENS) as u32).rev().collect();
        let slot =
            |p: usize| pages[p / PAGE_TOKENS] * PAGE_TOKENS as u32 + (p % PAGE_TOKENS) as u32;
        let batch = Batch {
            token_ids: tokens[start..].to_vec(),
            positions: (start as u32..end as u32).collect(),
            slot_mapping: (start..end).map(slot).collect(),
            cu_seqlens: vec![0, (end - start) as u32],
            context_lens: vec![end as u32],
            max_pages: pages.len(),
            block_table: pages,
            ntk_lens: vec![prompt_tokens as u32],
            logits_rows: (0..(end - start) as u32).collect(),
            ..Batch::default()
        };
        let mut logits = vec![Vec::new(); self.ranks.len()];
        std::thread::scope(|scope| {
            for (rank, logits) in self.ranks.iter_mut().zip(&mut logits) {
                let batch = &batch;
                scope.spawn(move || rank.forward(batch, logits).expect("step"));
            }
        });
        logits.swap_remove(0)
    }

    /// A prompt in chunks of `chunk`, then the rest token by token: the logits of the last `rows`.
    pub fn generate(
        &mut self,
        tokens: &[u32],
        prompt: usize,
        chunk: usize,
        rows: usize,
    ) -> Vec<f32> {
        let mut logits = Vec::new();
        let mut start = 0;
        while start < tokens.len() {
            let end = if start < prompt { prompt.min(start + chunk) } else { start + 1 };
            logits.extend(self.run(&tokens[..end], start, prompt));
            start = end;
        }
        logits.split_off(logits.len() - rows * self.vocab_size)
    }
}

fn load<B: Backend + 'static>(
    backend: B,
    weights: Weights<'_>,
    config: &ModelConfig,
    placement: Placement<'_>,
) -> Box<dyn Rank> {
    let limits = Limits {
        max_tokens: MAX_TOKENS,
        max_logits_rows: MAX_TOKENS,
        num_pages: MAX_TOKENS.div_ceil(PAGE_TOKENS),
    };
    let model = Model::load(backend, weights, config, placement, limits, &mut |_| true);
    Box::new(model.expect("the model loads"))
}
