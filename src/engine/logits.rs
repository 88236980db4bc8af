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
    let log_total = log_total(logits);
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

/// Logits that are looked at side by side.
const LANES: usize = 8;

/// `ln(sum(exp(logits)))` to 1e-12; no finite number where one of them is NaN or +inf, or all are -inf.
///
/// A measured token costs this once for the whole vocabulary, on the thread that all requests wait for:
/// loops are such that compilers make vectors of them.
fn log_total(logits: &[f32]) -> f64 {
    let max = f64::from(largest(logits));
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let mut sums = [0.0; LANES];
    for chunk in chunks.iter().chain([&last]) {
        let mut terms = [0.0; LANES];
        for (term, logit) in terms.iter_mut().zip(chunk) {
            *term = f64::from(*logit) - max;
        }
        exp_of_negative(&mut terms);
        for (sum, term) in sums.iter_mut().zip(&terms) {
            *sum += term;
        }
    }
    max + sums.iter().sum::<f64>().ln()
}

/// The largest number; of none -inf, whatever NaNs there are.
fn largest(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (most, &logit) in most.iter_mut().zip(chunk) {
            *most = larger(*most, logit);
        }
    }
    most.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// `exp(x)` in the place of numbers that are not positive, to a relative 1e-12 where it counts beside 1:
/// `exp(r) 2^n` with n the integer next to `x / ln 2`, by the series of exp(r), whose first term left out is
/// `(ln 2 / 2)^11 / 11!`, 2e-13. NaN of a NaN; of less than -700, what exp(-700) is.
#[inline(always)]
fn exp_of_negative(x: &mut [f64; LANES]) {
    use std::f64::consts::{LN_2, LOG2_E};
    /// What a number less than 2^51 is added to for its nearest integer, which are then the lowest bits.
    const TO_INTEGER: f64 = 1.5 * (1_u64 << 52) as f64;
    /// 1 / k!, from k = 10 down.
    const SERIES: [f64; 11] = [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let (mut shifted, mut exp) = ([0.0; LANES], [0.0; LANES]);
    for (x, shifted) in x.iter_mut().zip(&mut shifted) {
        *x = if *x < -700.0 { -700.0 } else { *x };
        *shifted = *x * LOG2_E + TO_INTEGER;
        *x -= (*shifted - TO_INTEGER) * LN_2;
    }
    for term in SERIES {
        for (exp, r) in exp.iter_mut().zip(&*x) {
            *exp = *exp * r + term;
        }
    }
    // The integer becomes an exponent.
    for ((x, exp), shifted) in x.iter_mut().zip(&exp).zip(&shifted) {
        *x = exp * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0_f64.to_bits()));
    }
}

/// The `count` largest logits, in order; of equals the lower id comes first.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    /// Most chunks have none of them, which their largest tells.
    const CHUNK: usize = 64;
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let is_too_small = |top: &[(u32, f32)], logit: f32| {
        top.len() == count && top.last().is_none_or(|(_, least)| logit <= *least)
    };
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        if is_too_small(&top, largest(chunk)) {
            continue;
        }
        for (id, &logit) in (index * CHUNK..).zip(chunk) {
            if is_too_small(&top, logit) {
                continue;
            }
            let at = top.partition_point(|(_, other)| *other >= logit);
            top.insert(at, (id as u32, logit));
            top.truncate(count);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of no pattern, of the size of a model's logits.
    fn logits(count: usize, spread: f32) -> Vec<f32> {
        let mut state = 20_261_129_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| spread * (uniform() + uniform() + uniform())).collect()
    }

    #[test]
    fn totals_are_those_of_the_standard_library() {
        for (count, spread) in [(1, 1.0), (7, 3.0), (8, 0.1), (1000, 30.0), (152_064, 12.0)] {
            let logits = logits(count, spread);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let off = (log_total(&logits) - sum.ln()).abs();
            assert!(off < 1e-12, "{count}, {spread}: off by {off}");
        }
        for x in (0..70_000).map(|step| f64::from(step) / -100.0) {
            let mut all = [x; LANES];
            exp_of_negative(&mut all);
            let off = (all[3] / x.exp() - 1.0).abs();
            // Of n ln 2 half a last bit is lost.
            assert!(off < 1e-12 - x * f64::EPSILON, "{x}: off by {off}");
        }
    }

    #[test]
    fn what_is_no_number_shows_in_the_total() {
        let (inf, nan) = (f32::INFINITY, f32::from_bits(0x7fff_ffff));
        for odd in [inf, nan, -nan, f32::NAN] {
            for at in [0, 5, 8, 16] {
                let mut logits = logits(17, 5.0);
                logits[at] = odd;
                assert!(!log_total(&logits).is_finite(), "{odd:?} at {at}");
            }
        }
        assert!(!log_total(&[-inf; 17]).is_finite() && !log_total(&[]).is_finite());
        // Ids that are forbidden.
        let total = log_total(&[-inf, 1.0, -inf, 1.0, -inf, -inf, -inf, -inf, -inf]);
        assert!((total - (1.0 + std::f64::consts::LN_2)).abs() < 1e-12);
    }

    #[test]
    fn the_likeliest_are_those_of_a_sort() {
        let mut logits = logits(1000, 8.0);
        // Equals, also in different chunks.
        (logits[3], logits[70], logits[500], logits[999]) = (9.5, 9.5, 9.5, 9.5);
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        for count in [0, 1, 3, 20, 1000] {
            assert_eq!(likeliest(&logits, count), sorted[..count], "{count}");
        }
    }

    /// `cargo test --profile checked --lib -- --ignored --nocapture measured_token`
    #[test]
    #[ignore = "a measurement"]
    fn what_a_measured_token_costs() {
        let logits = logits(152_064, 12.0);
        for _ in 0..3 {
            let begun = std::time::Instant::now();
            let totals: f64 = (0..100).map(|_| log_total(std::hint::black_box(&logits))).sum();
            let (total_us, between) =
                (begun.elapsed().as_micros() / 100, std::time::Instant::now());
            let tops: usize =
                (0..100).map(|_| likeliest(std::hint::black_box(&logits), 20).len()).sum();
            let top_us = between.elapsed().as_micros() / 100;
            eprintln!("{total_us} us for the total, {top_us} us for 20 ({totals:.3}, {tops})");
        }
    }
}
