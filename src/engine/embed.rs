//! `Engine::embed`: final hidden states of a text, as one request of the batch.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::options::GenerationParams;
use crate::engine::request::Request;
use crate::engine::sequence::{Limits, Sequence};
use crate::engine::states::{Pooling, States};
use crate::engine::step::bug;
use crate::engine::{Engine, check_prompt, check_room};
use crate::error::{Error, Result};
use crate::sample::SamplingParams;
use crate::text::tokenizer::Specials;

impl Engine {
    /// The model's hidden states of `tokens`, behind its last norm: `[hidden]` f32, with `Pooling::None`
    /// `[tokens, hidden]`; each row scaled to length 1 if `normalize`. Waits for them. Of `params` the
    /// `priority`, the time limits and, with `Pooling::Last`, `cache` count.
    ///
    /// Errors: `Error::Argument` where there is no token or one outside the vocabulary,
    /// `Error::OutOfHostMemory`, and those of `submit_tokens` and of a request that fails.
    pub fn embed(
        &self,
        tokens: &[u32],
        (pooling, normalize): (Pooling, bool),
        params: &GenerationParams,
    ) -> Result<Vec<f32>> {
        let shared = self.shared();
        shared.health()?;
        params.validate()?;
        check_prompt(tokens, shared)?;
        let limits = Limits {
            total_tokens: tokens.len() + 1,
            stop_token_ids: Vec::new(),
            stop_texts: Vec::new(),
            react: None,
        };
        let (request, result) = (Request::prepared(None), Arc::default());
        let params = GenerationParams { sampling: greedy(params), ..plain(params) };
        let mailbox = (request.mailbox().clone(), 0);
        let mut sequence = Sequence::new(tokens.to_vec(), &params, limits, mailbox);
        let hidden_size = shared.model.hidden_size;
        sequence.states = Some(States::new(pooling, (tokens.len(), hidden_size), &result)?);
        // All other states must be computed.
        let uses_cache = pooling == Pooling::Last && shared.prefix_cache && params.cache;
        let root = crate::model::rope::ntk_factor(&shared.model, tokens.len()).to_bits();
        sequence.prefix_root = uses_cache.then_some(root);
        shared.submit(vec![sequence])?;
        let mut states = wait(&request, &result)?;
        if states.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite { position: tokens.len() as u64 });
        }
        if normalize {
            states.chunks_exact_mut(hidden_size).for_each(scale_to_one);
        }
        Ok(states)
    }

    /// A text as what `embed` takes.
    pub(crate) fn encode_to_embed(&self, text: &str) -> Result<Vec<u32>> {
        self.health()?;
        // Before encoding, which takes far more memory than the text itself.
        check_room(self.tokenizer().fewest_tokens(text), self.shared())?;
        Ok(self.tokenizer().encode(text, Specials::AsText))
    }
}

/// What counts of a caller's options. One token is drawn behind the text, and told to nobody.
fn plain(params: &GenerationParams) -> GenerationParams {
    GenerationParams {
        n: 1,
        echo: false,
        logprobs: false,
        logit_bias: Vec::new(),
        ..params.clone()
    }
}

fn greedy(params: &GenerationParams) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        ..params.sampling.clone()
    }
}

/// The result stands before the request's last event.
fn wait(request: &Request, result: &Mutex<Vec<f32>>) -> Result<Vec<f32>> {
    loop {
        let event = request.next(None)?;
        if let Some(error) = event.error {
            return Err(error);
        }
        if event.finish.is_some() {
            let states = std::mem::take(&mut *result.lock());
            return (!states.is_empty()).then_some(states).ok_or_else(|| bug("no hidden states"));
        }
    }
}

/// Zeros stay as they are.
fn scale_to_one(row: &mut [f32]) {
    let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
