//! The fake as a rank that draws, like one on a GPU: up to two steps are on their way, and what the
//! engine has not collected is known only here. Logits that leave the device are waited for: no step
//! may be on its way beside one whose tokens the engine draws.

use std::collections::VecDeque;

use qwen::batch::{Batch, FED, NO_TOKEN, Output};
use qwen::error::Result;
use qwen::model::Rank;
use qwen::sample::{Sampler, SamplingParams, SeenTokens};

use crate::fake::{Fake, VOCAB};

/// See above.
pub(crate) struct Drawing {
    fake: Fake,
    /// Tokens of the steps on their way, oldest first, and of the last one that was collected.
    drawn: VecDeque<Vec<u32>>,
    submitted: usize,
    /// A step that is on its way gives logits.
    gives_logits: bool,
}

impl Drawing {
    pub(crate) fn new(mut fake: Fake) -> Drawing {
        fake.gives_logits = true;
        let drawn = VecDeque::from([Vec::new()]);
        Drawing { fake, drawn, submitted: 0, gives_logits: false }
    }

    fn draw(&self, batch: &Batch, row: usize, logits: &mut [f32]) -> u32 {
        let draw = &batch.draws[row];
        let params = SamplingParams {
            temperature: draw.temperature,
            top_k: draw.top_k,
            top_p: draw.top_p,
            min_p: draw.min_p,
            repetition_penalty: draw.repetition_penalty,
            presence_penalty: draw.presence_penalty,
            frequency_penalty: draw.frequency_penalty,
            seed: 0,
        };
        let listed = &batch.seen[draw.seen_start as usize..][..draw.seen_count as usize];
        let ids: Vec<u32> = listed.iter().map(|(id, _)| *id).collect();
        let mut seen = SeenTokens::from_prompt(&ids);
        for (id, count) in listed {
            (0..*count).for_each(|_| seen.push_reply(*id));
        }
        if let Some(fed) = self.fed(batch.token_ids[batch.logits_rows[row] as usize]) {
            seen.push_reply(fed);
        }
        let Some(choices) = Sampler::new().distribution(logits, &params, &seen) else {
            return NO_TOKEN;
        };
        let mut sum = 0.0;
        let passed = |(_, share): &&(u32, f32)| {
            sum += f64::from(*share);
            sum > draw.uniform
        };
        choices.iter().find(passed).or(choices.last()).map_or(NO_TOKEN, |(id, _)| *id)
    }

    /// The token that an entry of `token_ids` stands for, if it is fed.
    fn fed(&self, entry: u32) -> Option<u32> {
        let before = self.drawn.back().expect("there is always one");
        (entry & FED != 0).then(|| before[(entry & !FED) as usize])
    }
}

impl Rank for Drawing {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        assert!(self.submitted < 2, "three steps on their way");
        let gives_logits = batch.draws.is_empty() && !batch.logits_rows.is_empty();
        let is_alone = self.submitted == 0;
        assert!(is_alone || !(gives_logits || self.gives_logits), "a step beside one of logits");
        self.gives_logits = gives_logits;
        self.submitted += 1;
        let resolve = |&id: &u32| self.fed(id).map_or(id, |id| if id == NO_TOKEN { 0 } else { id });
        let token_ids = batch.token_ids.iter().map(resolve).collect();
        self.fake.submit(&Batch { token_ids, ..batch.clone() })?;
        if batch.draws.is_empty() {
            self.drawn.push_back(Vec::new());
            return Ok(()); // The engine draws: the fake has the logits.
        }
        let mut logits = std::mem::take(&mut self.fake.logits);
        let rows = logits.chunks_exact_mut(VOCAB).enumerate();
        let tokens = rows.map(|(row, logits)| self.draw(batch, row, &mut logits[..464])).collect();
        self.drawn.push_back(tokens);
        Ok(())
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        if self.fake.rank == 0 {
            self.fake.control.end_step()?;
        }
        self.submitted -= 1;
        self.drawn.pop_front();
        let at = self.drawn.len() - 1 - self.submitted;
        let (logits, hidden) = (std::mem::take(&mut self.fake.logits), self.fake.take_hidden());
        *output = Output { logits, hidden, tokens: self.drawn[at].clone(), ..Output::default() };
        Ok(())
    }

    fn draws_tokens(&self) -> bool {
        true
    }

    fn batch_invariant(&self) -> bool {
        self.fake.batch_invariant()
    }
}
