//! What several integration tests share: replayable random numbers, helpers for ops and quantised
//! linears.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

pub mod ops;
pub mod quant;

use std::fmt;

/// SplitMix64 with a printed seed: `QWEN_TEST_SEED=n` replays a failure.
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// A new seed each run, unless the environment gives one.
    pub fn from_env() -> Random {
        let given = std::env::var("QWEN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |elapsed| elapsed.subsec_nanos().into())
        };
        let seed = given.unwrap_or_else(clock);
        Random { seed, state: seed }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let (a, b) = (unit(self.bits()), unit(self.bits()));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}

impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QWEN_TEST_SEED={}", self.seed)
    }
}
