//! What a sequence does with its logits on the host: rules before a token is drawn from them, and how
//! likely the model found a token.
//!
//! A backend that draws tokens itself knows nothing of this. A sequence that has such a wish has its
//! steps give logits, and the loop draws: for all sequences of that step, with nothing running ahead.

use std::collections::BTreeMap;

use crate::engine::options::GenerationParams;
use crate::error::Result;
use crate::grammar::GrammarState;
use crate::text::tokenizer::Tokenizer;

/// A token, and how likely the model found it.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability: the log-softmax, in f64, of the model's own logits over
    /// the ids of the vocabulary, before biases, penalties, temperature and everything after it. NaN of
    /// the first token of a prompt, which nothing comes before.
    pub logprob: f64,
    /// Its bytes, of a control token those of its name. Half a character is possible.
    pub bytes: Vec<u8>,
}

/// A token of a reply or prompt, and the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token itself.
    pub token: Logprob,
    /// The likeliest first, of equals the lower id; as many as were asked for.
    pub top: Vec<Logprob>,
}

/// A token on its way to its reader: drawn, or of an echo.
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// The wishes of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct LogitRules {
    /// Id, and what is added to its logit.
    bias: Vec<(u32, f32)>,
    /// Log-probabilities are wanted, with so many of the likeliest tokens each.
    pub(crate) num_top: Option<usize>,
    /// What the reply must look like.
    pub(crate) grammar: Option<GrammarState>,
}

impl LogitRules {
    pub(crate) fn new(params: &GenerationParams) -> LogitRules {
        let num_top = params.logprobs.then_some(params.top_logprobs as usize);
        // The last of an id counts.
        let bias: BTreeMap<u32, f32> = params.logit_bias.iter().copied().collect();
        LogitRules { bias: bias.into_iter().collect(), num_top, grammar: None }
    }

    /// Is there any?
    pub(crate) fn need_logits(&self) -> bool {
        !self.bias.is_empty() || self.num_top.is_some() || self.grammar.is_some()
    }

    /// Does beforehand, while the model computes, what needs no logits.
    pub(crate) fn prepare(&mut self) {
        if let Some(grammar) = &mut self.grammar {
            grammar.prepare();
        }
    }

    /// Changes `logits` (`[ids in use]`) as the rules say; the format has the last word.
    pub(crate) fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.mask(logits))
    }

    /// Takes the token that was drawn; `true`: the format has no more to come.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool> {
        let Some(grammar) = &mut self.grammar else { return Ok(false) };
        grammar.accept(token)?;
        Ok(grammar.is_over())
    }
}

/// How likely `logits` (`[ids in use]`, as the model gave them) make token `id`, and the `num_top`
/// likeliest. `None` for an id they do not have, and where they are no finite numbers.
pub(crate) fn measure(
    logits: &[f32],
    id: u32,
    num_top: usize,
    tokenizer: &Tokenizer,
) -> Option<TokenLogprobs> {
    let chosen = *logits.get(id as usize)?;
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    // A NaN passes through the sum.
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    let log_total = max + sum.ln();
    if !log_total.is_finite() {
        return None;
    }
    let entry = |id: u32, logit: f32| Logprob {
        id,
        logprob: f64::from(logit) - log_total,
        bytes: tokenizer.token_bytes(id).unwrap_or_default().to_vec(),
    };
    let top = likeliest(logits, num_top).into_iter().map(|(id, logit)| entry(id, logit)).collect();
    Some(TokenLogprobs { token: entry(id, chosen), top })
}

/// A token that nothing comes before.
pub(crate) fn unmeasured(id: u32, tokenizer: &Tokenizer) -> TokenLogprobs {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    TokenLogprobs { token: Logprob { id, logprob: f64::NAN, bytes }, top: Vec::new() }
}

/// The `count` largest logits, in order; of equals the lower id comes first.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if top.len() == count && top.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let at = top.partition_point(|(_, other)| *other >= logit);
        top.insert(at, (id as u32, logit));
        top.truncate(count);
    }
    top
}
