//! Logits -> one token: sampling parameters, the sampler, and a counter-based random number
//! generator keyed by (seed, position).
//!
//! The order of the steps is the model family's own: repetition penalty, presence and frequency
//! penalties, temperature, top-k, top-p, min-p, softmax, draw. Logits and probabilities are f32;
//! only running sums are f64, because 150,000 f32 additions in a row lose four digits.
//!
//! No full sort: 150,000 candidates fall to a handful by thresholds that are exact (they drop only
//! what the definition drops), and only the survivors are sorted. `tests/sample.rs` holds the
//! result to a readable f64 twin that sorts everything.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// How the next token is drawn from the logits. The order of the steps is the model's own:
/// repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy (argmax after the penalties).
    pub temperature: f32,
    /// 0 means off.
    pub top_k: u32,
    /// 1 means off.
    pub top_p: f32,
    /// 0 means off.
    pub min_p: f32,
    /// 1 means off; applied over the set of all ids of prompt and reply.
    pub repetition_penalty: f32,
    /// 0 means off; over the reply's ids.
    pub presence_penalty: f32,
    /// 0 means off; over the reply's ids, times their count.
    pub frequency_penalty: f32,
    /// The same seed and the same logits give the same tokens.
    pub seed: u64,
}

impl SamplingParams {
    /// Does anything depend on the ids seen so far?
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// `Error::Option`, naming the key, when a value can never work.
    pub fn validate(&self) -> Result<()> {
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        check(at_least_0(self.temperature), "temperature", "must be finite and at least 0")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "must be above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", "must be between 0 and 1")?;
        let penalty = self.repetition_penalty;
        check(
            penalty.is_finite() && penalty > 0.0,
            "repetition_penalty",
            "must be finite and above 0",
        )?;
        check(self.presence_penalty.is_finite(), "presence_penalty", "must be finite")?;
        check(self.frequency_penalty.is_finite(), "frequency_penalty", "must be finite")
    }
}

fn check(holds: bool, key: &str, reason: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::Option { key: key.to_string(), reason: reason.to_string() })
}

/// The ids a sequence has seen, for the penalties.
#[derive(Debug, Clone, Default)]
pub struct SeenTokens {
    /// Every id of prompt and reply, with how often the reply has it.
    reply_counts: HashMap<u32, u32>,
}

impl SeenTokens {
    /// Every id, with how often the reply has it (0: in the prompt only), in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.reply_counts.iter().map(|(&id, &count)| (id, count))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.reply_counts.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.reply_counts.is_empty()
    }

    /// The ids of `prompt`, and no reply yet.
    pub fn from_prompt(prompt: &[u32]) -> SeenTokens {
        SeenTokens { reply_counts: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// Counts one more token of the reply.
    pub fn push_reply(&mut self, id: u32) {
        *self.reply_counts.entry(id).or_insert(0) += 1;
    }
}

/// Draws tokens. Holds only scratch memory, so one serves every sequence of an engine.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Tokens that can still be drawn; `weight` is first the shifted logit, then its exponential.
    candidates: Vec<Candidate>,
    /// Work space of `kth_largest`.
    largest: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Sampler {
    /// A sampler without scratch memory yet.
    pub fn new() -> Sampler {
        Sampler::default()
    }

    /// The token that follows, from `logits` (`[ids in use]`, f32; overwritten). `position` is the
    /// index the new token will have in its sequence; with `params.seed` it alone decides the draw,
    /// so a reply does not depend on what else was in the batch. Greedy ties go to the lowest id.
    ///
    /// `None` when the logits hold NaN or +infinity, or nothing but -infinity.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        params: &SamplingParams,
        seen: &SeenTokens,
        position: u64,
    ) -> Option<u32> {
        apply_penalties(logits, params, seen);
        let max = finite_max(logits)?;
        if params.temperature == 0.0 {
            return logits.iter().position(|&logit| logit == max).map(|id| id as u32);
        }
        // Shifting before dividing keeps every value at or below 0: no temperature can overflow.
        for logit in logits.iter_mut() {
            *logit = (*logit - max) / params.temperature;
        }
        self.keep_candidates(logits, params);
        self.draw(uniform(params.seed, position))
    }

    /// The ids that `Sampler::sample` would draw from, and their probabilities. For tests and
    /// inspection; same arguments and failure.
    pub fn distribution(
        &mut self,
        logits: &mut [f32],
        params: &SamplingParams,
        seen: &SeenTokens,
    ) -> Option<Vec<(u32, f32)>> {
        let greedy = self.sample(logits, params, seen, 0)?;
        if params.temperature == 0.0 {
            return Some(vec![(greedy, 1.0)]);
        }
        let total = total_weight(&self.candidates);
        let share = |c: &Candidate| (c.id, (f64::from(c.weight) / total) as f32);
        Some(self.candidates.iter().map(share).collect())
    }

    /// Top-k, top-p and min-p over `shifted` (`[ids in use]`, largest value 0); fills `candidates`.
    fn keep_candidates(&mut self, shifted: &[f32], params: &SamplingParams) {
        let kth = self.kth_largest(shifted, params.top_k as usize);
        let nucleus = params.top_p < 1.0;
        // -infinity means never: such tokens are no candidates even where nothing else filters.
        let mut floor = f32::MIN.max(kth);
        if nucleus {
            let kept = |logit: f32| if logit >= kth { f64::from(logit.exp()) } else { 0.0 };
            let total: f64 = shifted.iter().map(|&logit| kept(logit)).sum();
            floor = floor.max(nucleus_floor(params.top_p, total, shifted.len()));
            self.collect(shifted, floor);
            self.keep_nucleus(f64::from(params.top_p) * total);
        } else {
            self.collect(shifted, floor);
        }
        // min-p compares with the most likely token, whose weight is 1 whatever was dropped.
        self.candidates.retain(|candidate| candidate.weight >= params.min_p);
    }

    /// Fills `candidates` with the tokens at `floor` or above, in order of id.
    fn collect(&mut self, shifted: &[f32], floor: f32) {
        self.candidates.clear();
        for (id, &logit) in shifted.iter().enumerate() {
            if logit >= floor {
                self.candidates.push(Candidate { id: id as u32, weight: logit.exp() });
            }
        }
    }

    /// Keeps the most likely tokens while those before them weigh less than `mass`; the same set as
    /// dropping from the least likely up while their sum is at most `total - mass`.
    fn keep_nucleus(&mut self, mass: f64) {
        self.candidates
            .sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
        let mut above = 0.0;
        let kept = self.candidates.iter().take_while(|candidate| {
            let keep = above < mass;
            above += f64::from(candidate.weight);
            keep
        });
        let kept = kept.count().max(1);
        self.candidates.truncate(kept);
    }

    fn draw(&self, uniform: f64) -> Option<u32> {
        let target = uniform * total_weight(&self.candidates);
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += f64::from(candidate.weight);
            if sum > target {
                return Some(candidate.id);
            }
        }
        // Only rounding of the last sum leads here.
        self.candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.id)
    }

    /// The `k`-th largest of `values`; -infinity when `k` is 0 or there are no more than `k`.
    ///
    /// One scan with a buffer of 2k values above the best bound so far: nearly every value fails
    /// one comparison, so for small `k` the cost is that of reading the logits.
    fn kth_largest(&mut self, values: &[f32], k: usize) -> f32 {
        if k == 0 || k >= values.len() {
            return f32::NEG_INFINITY;
        }
        let mut bound = f32::NEG_INFINITY;
        self.largest.clear();
        for &value in values {
            if value > bound || self.largest.len() < k {
                self.largest.push(value);
                if self.largest.len() >= 2 * k {
                    bound = self.select(k);
                }
            }
        }
        self.select(k)
    }

    /// Keeps the `k` largest values of `largest`; returns the smallest of them.
    fn select(&mut self, k: usize) -> f32 {
        let (_, kth, _) = self.largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        self.largest.truncate(k);
        kth
    }
}

/// A token whose probability is below `(1 - top_p) / vocabulary` can never be in the nucleus: even
/// all such tokens together weigh less than `1 - top_p`. Returns that bound as a shifted logit,
/// lowered by more than the rounding of `exp` and `ln` so that no token is dropped by error.
fn nucleus_floor(top_p: f32, total: f64, num_ids: usize) -> f32 {
    let bound = (1.0 - f64::from(top_p)) * total / num_ids as f64;
    (bound.ln() - 1e-3) as f32
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Repetition, then presence and frequency penalties, in place.
fn apply_penalties(logits: &mut [f32], params: &SamplingParams, seen: &SeenTokens) {
    if !params.has_penalties() {
        return;
    }
    let repetition = params.repetition_penalty;
    for (&id, &count) in &seen.reply_counts {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if repetition != 1.0 {
            *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
        }
        if count > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
        }
    }
}

/// The largest value; `None` when one is NaN or +infinity or all are -infinity. Written over lanes
/// so that the compiler can use vector registers.
fn finite_max(logits: &[f32]) -> Option<f32> {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut bad = [false; LANES];
    for chunk in logits.chunks(LANES) {
        for (lane, &logit) in chunk.iter().enumerate() {
            lanes[lane] = if logit > lanes[lane] { logit } else { lanes[lane] };
            bad[lane] |= logit.is_nan();
        }
    }
    let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (!bad.contains(&true) && max.is_finite()).then_some(max)
}

/// A number in [0, 1) that depends on `seed` and `position` only: two rounds of the splitmix64
/// finaliser, whose output passes for random even for counters that differ in one bit.
pub fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(key ^ position.wrapping_add(1).wrapping_mul(GOLDEN));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The seed of reply number `choice` of several to one prompt; the first has the request's own.
pub fn seed_of_choice(seed: u64, choice: u32) -> u64 {
    match choice {
        0 => seed,
        _ => mix(mix(seed) ^ u64::from(choice)),
    }
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
