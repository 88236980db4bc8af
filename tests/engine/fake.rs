//! A model that makes mistakes of the engine visible.
//!
//! The fake keeps a paged cache of its own: each token is written at its slot, and logits are a hash
//! of all tokens of the context as read back through the block table. A wrong slot, page, position
//! or order gives other logits or an error, so text that equals `expected` proves the batch right.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use qwen::batch::{Batch, FED, Output, PAGE_TOKENS};
use qwen::engine::{Engine, EngineOptions, EngineParts, FinishReason, GenerationParams, LogHook};
use qwen::error::{Error, Result};
use qwen::model::Rank;
use qwen::model::config::ModelConfig;
use qwen::model::generation::{ChatFormat, GenerationConfig};
use qwen::model::rope;
use qwen::text::tokenizer::Tokenizer;

pub(crate) use crate::control::{Control, Fault};
use crate::drawing::Drawing;
pub(crate) use crate::told::{Told, read, tell};

/// 256 single bytes and 208 specials are in use; the rest is padding that must never be drawn.
pub(crate) const VOCAB: usize = 480;
pub(crate) const END_OF_TEXT: u32 = 256;
pub(crate) const IM_END: u32 = 258;
/// A token whose presence in a context makes the logits NaN.
pub(crate) const POISON: u32 = 7;
/// A prompt that begins with it is repeated by the reply, from its second token on.
pub(crate) const ECHO: u32 = 9;
pub(crate) const LONG: Duration = Duration::from_secs(10);

/// Polls, for what has no event to wait for.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "nothing happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// One rank of the fake model.
pub(crate) struct Fake {
    pub(crate) rank: usize,
    /// Of the step that was submitted.
    pub(crate) logits: Vec<f32>,
    /// `[slots]` (token, position, NTK factor).
    cache: Vec<Option<(u32, u32, f64)>>,
    /// `[slots]` what else the numbers of a GPU depend on: the shape of the step that computed them.
    shapes: Vec<u64>,
    /// Logits depend on these, too.
    pub(crate) varies: bool,
    pub(crate) control: Arc<Control>,
    /// Only the first rank's leave the model; a rank that draws wants its own.
    pub(crate) gives_logits: bool,
    /// Most rows of logits that a step has room for.
    pub(crate) max_rows: usize,
    /// Hidden states of the steps that were submitted, oldest first; of the last rank.
    hidden: VecDeque<Vec<f32>>,
    pub(crate) gives_hidden: bool,
}

impl Fake {
    pub(crate) fn new(rank: usize, num_pages: usize, control: &Arc<Control>) -> Fake {
        Fake {
            rank,
            logits: Vec::new(),
            cache: vec![None; num_pages * PAGE_TOKENS],
            shapes: vec![0; num_pages * PAGE_TOKENS],
            varies: false,
            control: Arc::clone(control),
            gives_logits: rank == 0,
            max_rows: usize::MAX,
            hidden: VecDeque::new(),
            gives_hidden: rank == 0,
        }
    }

    /// What of the steps that computed the context of `sequence` up to position `last` tells in the logits.
    fn rounding(&self, batch: &Batch, sequence: usize, last: u32) -> u64 {
        let slot = |position: usize| {
            let page = batch.pages(sequence)[position / PAGE_TOKENS] as usize;
            page * PAGE_TOKENS + position % PAGE_TOKENS
        };
        let shapes = (0..=last as usize).map(|position| self.shapes[slot(position)]);
        if self.varies { shapes.fold(0, |hash, shape| push_hash(hash, shape as u32)) } else { 0 }
    }

    /// Reads the context of `sequence` up to position `last`, as an attention would.
    fn context(&self, batch: &Batch, sequence: usize, last: u32) -> Result<Vec<u32>> {
        let factor = ntk_factor(batch, sequence);
        let token = |position: u32| {
            let page = batch.pages(sequence)[position as usize / PAGE_TOKENS] as usize;
            match self.cache[page * PAGE_TOKENS + position as usize % PAGE_TOKENS] {
                Some((token, at, ntk)) if at == position && ntk == factor => Ok(token),
                other => {
                    let reason = format!("position {position} reads {other:?}");
                    Err(Error::EngineFailed { reason })
                }
            }
        };
        (0..=last).map(token).collect()
    }

    /// Those of the oldest step that was not collected.
    pub(crate) fn take_hidden(&mut self) -> Vec<f32> {
        self.hidden.pop_front().unwrap_or_default()
    }
}

impl Rank for Fake {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        if self.rank == 0 {
            self.control.begin_step()?;
        }
        self.logits.clear();
        assert!(batch.logits_rows.len() <= self.max_rows, "more rows than there is room for");
        assert!(batch.seen.len() <= self.cache.len(), "more ids than there is room for");
        assert!(batch.token_ids.iter().all(|id| id & FED == 0), "a token this rank cannot know");
        let mut rows = batch.logits_rows.iter().peekable();
        let mut states = batch.hidden_rows.iter().peekable();
        let mut hidden = Vec::new();
        for sequence in 0..batch.num_sequences() {
            for row in batch.rows(sequence) {
                let cell =
                    (batch.token_ids[row], batch.positions[row], ntk_factor(batch, sequence));
                let slot = batch.slot_mapping[row] as usize;
                self.cache[slot] = Some(cell);
                let in_all = batch.num_tokens() * 100 + batch.num_sequences();
                self.shapes[slot] = (in_all * 1000 + batch.rows(sequence).len()) as u64;
            }
            let last = batch.rows(sequence).end - 1;
            assert_eq!(batch.positions[last] + 1, batch.context_lens[sequence]);
            while let Some(&row) = rows.next_if(|&&row| row as usize <= last) {
                let position = batch.positions[row as usize];
                let context = self.context(batch, sequence, position)?;
                if self.gives_logits {
                    let prompt_len = batch.ntk_lens[sequence] as usize;
                    let rounding = self.rounding(batch, sequence, position);
                    push_logits(&context, prompt_len, rounding, &mut self.logits);
                    let drawn = context.len().checked_sub(prompt_len);
                    if let Some(token) = drawn.and_then(|drawn| self.control.said(drawn)) {
                        let start = self.logits.len() - VOCAB;
                        self.logits[start + token as usize] = 900.0;
                    }
                }
            }
            while let Some(&row) = states.next_if(|&&row| row as usize <= last) {
                let context = self.context(batch, sequence, batch.positions[row as usize])?;
                hidden.extend(state_after(&context, batch.ntk_lens[sequence] as usize));
            }
        }
        assert!(states.next().is_none(), "a row of no sequence");
        self.hidden.push_back(if self.gives_hidden { hidden } else { Vec::new() });
        Ok(())
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        if self.rank == 0 {
            self.control.end_step()?;
        }
        let (logits, hidden) = (std::mem::take(&mut self.logits), self.take_hidden());
        *output = Output { logits, hidden, ..Output::default() };
        Ok(())
    }

    fn batch_invariant(&self) -> bool {
        !self.varies
    }
}

/// What keys are rotated by: a page of another factor is as wrong as one of other tokens.
fn ntk_factor(batch: &Batch, sequence: usize) -> f64 {
    rope::ntk_alpha(batch.ntk_lens[sequence] as usize, config().train_context_tokens)
}

fn push_hash(hash: u64, token: u32) -> u64 {
    let mixed = (hash ^ u64::from(token + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// The model's hidden state after `context`, whose first `prompt_len` ids are the prompt.
pub(crate) fn state_after(context: &[u32], prompt_len: usize) -> Vec<f32> {
    let hash = context.iter().fold(prompt_len as u64, |hash, &id| push_hash(hash, id));
    let number = |at: u32| (push_hash(push_hash(hash, at), 5) >> 40) as f32 / (1u64 << 23) as f32;
    let states = (0..config().hidden_size as u32).map(|at| number(at) - 1.0);
    match context.contains(&POISON) {
        true => states.map(|_| f32::NAN).collect(),
        false => states.collect(),
    }
}

/// What the model says after `context`, whose first `prompt_len` ids are the prompt.
pub(crate) fn logits_after(context: &[u32], prompt_len: usize) -> Vec<f32> {
    let mut logits = Vec::new();
    push_logits(context, prompt_len, 0, &mut logits);
    logits
}

fn push_logits(context: &[u32], prompt_len: usize, rounding: u64, logits: &mut Vec<f32>) {
    let start = logits.len();
    let seed = prompt_len as u64 ^ rounding;
    let hash = context.iter().fold(seed, |hash, &id| push_hash(hash, id));
    logits.extend((0..VOCAB as u32).map(|id| logit(hash, id)));
    if context[0] == ECHO {
        let echo = context[(1 + context.len() - prompt_len) % prompt_len];
        logits[start + echo as usize] = 900.0;
    }
    if context.contains(&POISON) {
        logits[start..].fill(f32::NAN);
    }
}

/// Letters are likely, an end is now and then, padding would always win.
fn logit(hash: u64, id: u32) -> f32 {
    let noise = (push_hash(push_hash(hash, id), 3) >> 40) as f32 / (1u64 << 24) as f32 * 4.0;
    match id {
        97..=104 => noise + 6.0,
        IM_END => noise + 5.6,
        id if id >= 464 => 1000.0,
        _ => noise,
    }
}

/// What greedy decoding must give: ids and why it ends.
pub(crate) fn expected(prompt: &[u32], params: &GenerationParams) -> (Vec<u32>, FinishReason) {
    let mut hash = prompt.iter().fold(prompt.len() as u64, |hash, &id| push_hash(hash, id));
    let mut reply = Vec::new();
    loop {
        let best = |a: u32, b: u32| if logit(hash, b) > logit(hash, a) { b } else { a };
        let token = (0..464).reduce(best).expect("ids");
        let stops = [END_OF_TEXT, 257, IM_END];
        if (stops.contains(&token) && !params.ignore_eos) || params.stop_token_ids.contains(&token)
        {
            return (reply, FinishReason::Stop);
        }
        reply.push(token);
        hash = push_hash(hash, token);
        if reply.len() >= params.max_tokens {
            return (reply, FinishReason::Length);
        }
    }
}

/// 256 single bytes, through the tokenizer's own loader.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static SHARED: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    Arc::clone(SHARED.get_or_init(|| {
        let folder = scratch_folder();
        let encode = |byte: u8| base64::engine::general_purpose::STANDARD.encode([byte]);
        let lines = (0..=255u8).map(|byte| format!("{} {byte}\n", encode(byte)));
        std::fs::write(folder.join("qwen.tiktoken"), lines.collect::<String>()).expect("written");
        let tokenizer = Tokenizer::open(&folder).expect("a byte vocabulary");
        std::fs::remove_dir_all(&folder).expect("removed");
        Arc::new(tokenizer)
    }))
}

fn scratch_folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwen-engine-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

fn config() -> ModelConfig {
    ModelConfig {
        num_layers: 1,
        hidden_size: 8,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 8,
        intermediate_size: 8,
        vocab_size: VOCAB,
        norm_epsilon: 1e-6,
        rope_base: 10000.0,
        train_context_tokens: 2048,
        use_dynamic_ntk: true,
        use_logn_attention: true,
        quantisation: None,
    }
}

pub(crate) fn generation(chat_format: ChatFormat) -> GenerationConfig {
    GenerationConfig {
        chat_format,
        eos_token_ids: vec![END_OF_TEXT],
        max_window_size: 6144,
        max_new_tokens: 40,
        do_sample: false,
        temperature: 1.0,
        top_k: 0,
        top_p: 0.8,
        repetition_penalty: 1.0,
        stop_words_ids: Vec::new(),
    }
}

/// An engine to be built.
pub(crate) struct Lab {
    pub(crate) num_pages: usize,
    pub(crate) num_ranks: usize,
    /// The ranks draw, all the same, so that the engine is a step ahead.
    pub(crate) draws: bool,
    /// Numbers depend on the steps that compute them, as on a GPU.
    pub(crate) varies: bool,
    pub(crate) options: EngineOptions,
    pub(crate) chat_format: ChatFormat,
    pub(crate) stop_words_ids: Vec<Vec<u32>>,
    pub(crate) log: Option<LogHook>,
}

/// A roomy engine of one rank.
pub(crate) fn lab() -> Lab {
    Lab {
        num_pages: 4096,
        num_ranks: 1,
        draws: false,
        varies: false,
        options: EngineOptions { prefill_chunk_tokens: 512, ..EngineOptions::default() },
        chat_format: ChatFormat::ChatMl,
        stop_words_ids: Vec::new(),
        log: None,
    }
}

/// The same, once with a rank that gives logits and once with one that draws.
pub(crate) fn labs() -> [Lab; 2] {
    [lab(), Lab { draws: true, ..lab() }]
}

impl Lab {
    pub(crate) fn start(self) -> (Engine, Arc<Control>) {
        let control = Arc::new(Control::default());
        let ranks = (0..self.num_ranks)
            .map(|rank| {
                let mut fake = Fake::new(rank, self.num_pages, &control);
                fake.max_rows = self.options.max_batch_sequences;
                fake.varies = self.varies;
                fake.gives_hidden = rank + 1 == self.num_ranks;
                match self.draws {
                    true => Box::new(Drawing::new(fake)) as Box<dyn Rank>,
                    false => Box::new(fake),
                }
            })
            .collect();
        (self.start_with(ranks), control)
    }

    pub(crate) fn start_with(self, ranks: Vec<Box<dyn Rank>>) -> Engine {
        Engine::start(self.parts(ranks)).expect("the engine starts")
    }

    pub(crate) fn parts(self, ranks: Vec<Box<dyn Rank>>) -> EngineParts {
        EngineParts {
            tokenizer: tokenizer(),
            config: config(),
            generation: GenerationConfig {
                stop_words_ids: self.stop_words_ids,
                ..generation(self.chat_format)
            },
            ranks,
            num_pages: self.num_pages,
            options: self.options,
            log: self.log,
            info: serde_json::json!({ "model": "fake" }),
        }
    }
}

/// Greedy, `max_tokens`.
pub(crate) fn greedy(max_tokens: usize) -> GenerationParams {
    let mut params = GenerationParams::from_config(&generation(ChatFormat::ChatMl), 1);
    params.max_tokens = max_tokens;
    params
}

/// A prompt of `len` ordinary ids that differs for each `seed`.
pub(crate) fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 16 + (push_hash(seed, i) >> 33) as u32 % 200).collect()
}

/// Asserts that `told` is what greedy decoding of `prompt` must give.
pub(crate) fn assert_expected(told: &Told, prompt: &[u32], params: &GenerationParams) {
    let (ids, finish) = expected(prompt, params);
    assert_eq!(told.last.error, None);
    assert_eq!((&told.ids, told.last.finish), (&ids, Some(finish)), "prompt of {}", prompt.len());
    let bytes: Vec<u8> = ids.iter().filter(|&&id| id < 256).map(|&id| id as u8).collect();
    assert_eq!(told.bytes, bytes);
    let usage = told.last.usage;
    assert_eq!(usage.prompt_tokens as usize, prompt.len());
    assert_eq!(usage.completion_tokens as usize, ids.len());
}

pub(crate) fn metric(engine: &Engine, name: &str) -> u64 {
    engine.metrics()[name].as_u64().unwrap_or_else(|| panic!("no metric {name}"))
}

/// A small random number generator for test inputs; reproducible by its seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = push_hash(self.0, 11);
        (self.0 >> 33) as usize % sides
    }
}
