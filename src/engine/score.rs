//! `Engine::score`: the log-likelihood of a continuation, as one request of the batch.

use crate::engine::logits::TokenLogprobs;
use crate::engine::options::GenerationParams;
use crate::engine::request::Request;
use crate::engine::sequence::{Limits, Sequence};
use crate::engine::{Engine, check_prompt, check_room};
use crate::error::{Error, Result};
use crate::text::tokenizer::Specials;

/// How likely the model finds a continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The sum over its tokens.
    pub logprob: f64,
    /// Each of its tokens.
    pub tokens: Vec<ScoredToken>,
}

/// One token of a continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// It, and as many alternatives as were asked for.
    pub logprobs: TokenLogprobs,
    /// It is the likeliest in its place, of equals that with the lowest id.
    pub is_greedy: bool,
}

impl Engine {
    /// How likely the model finds `continuation` behind `context`; waits for it. Of `params` the
    /// `top_logprobs`, `priority` and time limits count. The dynamic NTK factor is that of a prompt of
    /// all tokens but the last.
    ///
    /// Errors: `Error::Argument` where one of both is empty or has an id outside the vocabulary, and
    /// those of `submit_tokens` and of a request that fails.
    pub fn score(
        &self,
        context: &[u32],
        continuation: &[u32],
        params: &GenerationParams,
    ) -> Result<Score> {
        let shared = self.shared();
        shared.health()?;
        let params = GenerationParams {
            n: 1,
            echo: false,
            logit_bias: Vec::new(),
            logprobs: true,
            top_logprobs: params.top_logprobs.max(1),
            ..params.clone()
        };
        params.validate()?;
        let empty = |argument| Error::Argument { argument, reason: "has no tokens".to_string() };
        if context.is_empty() {
            return Err(empty("context"));
        }
        let mut tokens = [context, continuation].concat();
        check_prompt(&tokens, shared)?;
        let last = tokens.pop().filter(|_| !continuation.is_empty());
        let last = last.ok_or_else(|| empty("continuation"))?;
        let limits = Limits {
            total_tokens: tokens.len() + 1,
            stop_token_ids: Vec::new(),
            stop_texts: Vec::new(),
            react: None,
        };
        let request = Request::prepared(None);
        let sequence = Sequence::new(tokens, &params, limits, (request.mailbox().clone(), 0));
        shared.submit(vec![sequence.scoring(context.len(), last)])?;
        wait(&request)
    }

    /// Two texts as what `score` takes: encoded as one, and cut where the tokens of the first alone end.
    /// An empty context becomes `<|endoftext|>`.
    pub(crate) fn encode_to_score(
        &self,
        context: &str,
        continuation: &str,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let tokenizer = self.tokenizer();
        self.health()?;
        // Before encoding, which takes far more memory than the text itself.
        let fewest = [context, continuation].map(|text| tokenizer.fewest_tokens(text));
        check_room(fewest[0] + fewest[1], self.shared())?;
        let mut all = tokenizer.encode(&[context, continuation].concat(), Specials::AsText);
        let num_context = tokenizer.encode(context, Specials::AsText).len().min(all.len());
        let continuation = all.split_off(num_context);
        if all.is_empty() {
            all.push(tokenizer.end_of_text());
        }
        Ok((all, continuation))
    }
}

fn wait(request: &Request) -> Result<Score> {
    let mut score = Score { logprob: 0.0, tokens: Vec::new() };
    loop {
        let event = request.next(None)?;
        if let Some(error) = event.error {
            return Err(error);
        }
        for logprobs in event.logprobs {
            let is_greedy = logprobs.top.first().is_some_and(|top| top.id == logprobs.token.id);
            score.logprob += logprobs.token.logprob;
            score.tokens.push(ScoredToken { logprobs, is_greedy });
        }
        if event.finish.is_some() {
            return Ok(score);
        }
    }
}
