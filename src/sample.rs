//! Sampling parameters, the reference sampler, and a counter-based random number generator keyed
//! by (seed, position).

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
