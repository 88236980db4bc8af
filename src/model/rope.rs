//! Rotary angles: base frequencies, dynamic NTK, log-n query scaling. Pure arithmetic.
//!
//! inv_freq[i] = base^(-2i / head_dim); angle = position * inv_freq, in f32 as the trained model
//! computes it. Pairs are (d, d + head_dim / 2).

use std::collections::HashMap;

use super::config::ModelConfig;
use crate::backend::RopeStep;
use crate::batch::Batch;

/// Dynamic NTK factor for a prompt of `prompt_tokens` with training length `train_tokens`:
/// max(1, 2^ceil(log2(L / S) + 1) - 1). Chosen once, from the prompt.
pub fn ntk_alpha(prompt_tokens: usize, train_tokens: usize) -> f64 {
    if prompt_tokens <= train_tokens {
        return 1.0;
    }
    let ratio = (prompt_tokens as f64 / train_tokens as f64).log2() + 1.0;
    (ratio.ceil().exp2() - 1.0).max(1.0)
}

/// `[head_dim / 2]` frequencies for base * alpha^(head_dim / (head_dim - 2)).
pub fn inv_freq(base: f64, head_dim: usize, alpha: f64) -> Vec<f32> {
    let dim = head_dim as f64;
    // Two-element heads have one frequency, 1, whatever the base.
    let exponent = if head_dim > 2 { dim / (dim - 2.0) } else { 1.0 };
    let base = base * alpha.powf(exponent);
    (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim) as f32).collect()
}

/// The dynamic NTK factor of a model for a prompt of `prompt_tokens`: what the keys of a sequence
/// depend on besides its tokens. Log-n scales queries only.
pub fn ntk_factor(config: &ModelConfig, prompt_tokens: usize) -> f64 {
    match config.use_dynamic_ntk {
        true => ntk_alpha(prompt_tokens, config.train_context_tokens),
        false => 1.0,
    }
}

/// Log-n factor of a query at 0-based `position`: 1 up to the training length S, then
/// ln(position + 1) / ln(S).
pub fn logn_scale(position: usize, train_tokens: usize) -> f32 {
    if position < train_tokens {
        return 1.0;
    }
    (((position + 1) as f64).ln() / (train_tokens as f64).ln()) as f32
}

/// Fills `RopeStep`s; remembers the frequencies of each NTK factor it has met.
pub struct Rope {
    config: ModelConfig,
    /// By the bits of alpha: a handful of powers of two, less one.
    frequencies: HashMap<u64, Vec<f32>>,
}

impl Rope {
    /// Rotary settings of a model.
    pub fn new(config: &ModelConfig) -> Rope {
        Rope { config: config.clone(), frequencies: HashMap::new() }
    }

    /// Frequencies, angles (if `with_angles`) and query scales of every row of `batch`.
    pub fn fill(&mut self, batch: &Batch, step: &mut RopeStep, with_angles: bool) {
        step.inv_freq.clear();
        step.cos.clear();
        step.sin.clear();
        step.query_scale.clear();
        for sequence in 0..batch.num_sequences() {
            let alpha = ntk_factor(&self.config, batch.ntk_lens[sequence] as usize);
            let (base, head_dim) = (self.config.rope_base, self.config.head_dim);
            let frequencies = self
                .frequencies
                .entry(alpha.to_bits())
                .or_insert_with(|| inv_freq(base, head_dim, alpha));
            step.inv_freq.extend_from_slice(frequencies);
            for row in batch.rows(sequence) {
                let position = batch.positions[row];
                for frequency in frequencies.iter().filter(|_| with_angles) {
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    step.cos.push(cos as f32);
                    step.sin.push(sin as f32);
                }
                let scale = match self.config.use_logn_attention {
                    true => logn_scale(position as usize, self.config.train_context_tokens),
                    false => 1.0,
                };
                step.query_scale.push(scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 1e-6, "{got} is not {want}");
    }

    #[test]
    fn frequencies_of_the_published_bases() {
        let large = inv_freq(1e6, 128, 1.0);
        for (i, want) in [(0, 1.0), (1, 0.805_842_2), (2, 0.649_381_64), (32, 1e-3)] {
            close(f64::from(large[i]), want);
        }
        close(f64::from(large[63]), 1.240_937_8e-6);
        close(f64::from(inv_freq(1e4, 128, 1.0)[63]), 1.154_782_1e-4);
    }

    #[test]
    fn ntk_steps_at_the_training_length() {
        for (tokens, alpha) in
            [(1, 1.0), (8192, 1.0), (8193, 3.0), (16384, 3.0), (16385, 7.0), (32768, 7.0)]
        {
            assert_eq!(ntk_alpha(tokens, 8192), alpha, "{tokens} tokens");
        }
        close(1e4 * 3f64.powf(128.0 / 126.0), 30_527.74);
        close(1e4 * 15f64.powf(128.0 / 126.0), 156_588.32);
    }

    #[test]
    fn logn_grows_past_the_training_length() {
        assert_eq!(logn_scale(8191, 8192), 1.0);
        assert!(logn_scale(8192, 8192) > 1.0);
        assert!((logn_scale(16383, 8192) - 1.0769).abs() < 1e-4);
        assert!((logn_scale(4095, 2048) - 1.0909).abs() < 1e-4);
    }
}
