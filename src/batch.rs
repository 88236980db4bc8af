//! `Batch`: everything that crosses from the engine to the model for one step. Plain data.

/// One step over several sequences. Tokens of a sequence are consecutive; sequence `s` owns rows
/// `cu_seqlens[s]..cu_seqlens[s + 1]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[tokens]` vocabulary ids; or `FED | r`: the token that the step submitted just before draws
    /// for its wanted row `r`, which the host may not know yet.
    pub token_ids: Vec<u32>,
    /// `[tokens]` absolute 0-based position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[tokens]` KV slot of each token: `page * page_tokens + offset in page`; or `NO_SLOT`.
    pub slot_mapping: Vec<u32>,
    /// `[sequences + 1]` first row of each sequence, then the number of tokens.
    pub cu_seqlens: Vec<u32>,
    /// `[sequences]` tokens in the cache once this step has run (its own tokens included).
    pub context_lens: Vec<u32>,
    /// `[sequences, max_pages]` page numbers in order, row-major; unused entries are 0.
    pub block_table: Vec<u32>,
    /// Row length of `block_table`.
    pub max_pages: usize,
    /// `[sequences]` tokens of the prompt that was first prefilled; it alone chooses the dynamic
    /// NTK factor, which never changes while a sequence grows (nor when it is recomputed).
    pub ntk_lens: Vec<u32>,
    /// `[rows wanted]` rows (indices into the tokens) whose logits are returned, ascending.
    pub logits_rows: Vec<u32>,
    /// `[rows wanted]` how the token after each of those rows is drawn; empty where the caller draws,
    /// then nothing is fed with tokens of this step.
    pub draws: Vec<Draw>,
    /// `[hidden rows]` rows whose hidden states, behind the last norm, are returned, ascending.
    pub hidden_rows: Vec<u32>,
    /// What the sequences have seen, for the penalties: an id, and how often the reply has it. A fed
    /// token of a sequence is not among them and counts once more.
    pub seen: Vec<(u32, u32)>,
}

/// How one token is drawn (see `sample::SamplingParams` for the meaning of each number).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Draw {
    /// 0: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 1: off.
    pub repetition_penalty: f32,
    /// 0: off.
    pub presence_penalty: f32,
    /// 0: off.
    pub frequency_penalty: f32,
    /// The random number, in [0, 1).
    pub uniform: f64,
    /// Where in `Batch::seen` its sequence's ids begin, and how many there are.
    pub seen_start: u32,
    /// How many.
    pub seen_count: u32,
}

/// What a step gives back. A batch with `draws` gives tokens, any other logits, on the first rank; the
/// last rank gives hidden states; all else is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// `[rows wanted, vocab_size]`.
    pub logits: Vec<f32>,
    /// `[rows wanted]` drawn ids; `NO_TOKEN` where the logits were no numbers.
    pub tokens: Vec<u32>,
    /// `[hidden rows, hidden]`.
    pub hidden: Vec<f32>,
    /// Microseconds from the step's first work on the device to its end; 0 where nobody counts them.
    pub device_us: f32,
}

impl Output {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.logits.clear();
        self.tokens.clear();
        self.hidden.clear();
        self.device_us = 0.0;
    }
}

/// Marks an entry of `Batch::token_ids` that is not an id but a wanted row of the step before. Only
/// for ranks that draw tokens.
pub const FED: u32 = 1 << 31;

/// In place of a drawn token: the logits were no numbers.
pub const NO_TOKEN: u32 = u32::MAX;

impl Batch {
    /// A decode step of `rows` rows that are all padding: nothing is read from the cache or written
    /// to it.
    pub fn padding(rows: usize) -> Batch {
        let count = rows as u32;
        Batch {
            token_ids: vec![0; rows],
            positions: vec![0; rows],
            slot_mapping: vec![NO_SLOT; rows],
            cu_seqlens: (0..=count).collect(),
            context_lens: vec![0; rows],
            block_table: Vec::new(),
            max_pages: 0,
            ntk_lens: vec![1; rows],
            logits_rows: (0..count).collect(),
            ..Batch::default()
        }
    }

    /// Number of token rows.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// Rows of sequence `sequence`.
    pub fn rows(&self, sequence: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[sequence] as usize..self.cu_seqlens[sequence + 1] as usize
    }

    /// Pages of sequence `sequence`, in order.
    pub fn pages(&self, sequence: usize) -> &[u32] {
        &self.block_table[sequence * self.max_pages..(sequence + 1) * self.max_pages]
    }
}

/// The slot of a row that is padding: its keys and values go nowhere.
pub const NO_SLOT: u32 = u32::MAX;

/// Tokens in one KV page, on every backend.
pub const PAGE_TOKENS: usize = 16;
