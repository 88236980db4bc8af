//! Random weights: matrices of normal numbers that are the same wherever they are made.
//!
//! What it is: a counter-based generator. Element i depends on the seed and i alone, so any number
//! of threads, or a GPU (`cuda/random.cu`, the same formula), can make any part. What it is for:
//! measuring a model's shape without its checkpoint. Never zeros: products of zeros draw less power
//! and run faster than real ones.

use crate::error::{Error, Result};
use crate::quant::{Groups, QuantConfig, QuantTensor};
use crate::tensor::{Dtype, HostTensor, HostWords};

/// A matrix `[rows, cols]` of independent numbers, N(mean, deviation^2), rounded to `dtype`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normal {
    /// Element type.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub deviation: f32,
    /// Which numbers; see `seed_of`.
    pub seed: u64,
}

/// The step of SplitMix64 from one number to the next.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Elements made by one thread at a time; even.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// The seed of the numbers called `name` (FNV-1a, so that it is the same for ever), apart by `part`.
pub fn seed_of(name: &str, part: u64) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash.wrapping_add(part))
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `z`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Normal {
    /// Bytes of the whole matrix.
    pub fn num_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size_bytes()
    }

    /// The numbers in host memory, made on all of the machine's cores.
    pub fn tensor(&self) -> Result<HostTensor> {
        let mut bytes = reserved(self.num_bytes())?;
        let chunk_bytes = CHUNK_ELEMENTS * self.dtype.size_bytes();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = bytes.len().div_ceil(cores).next_multiple_of(chunk_bytes);
        std::thread::scope(|scope| {
            for (worker, part) in bytes.chunks_mut(share).enumerate() {
                let first_pair = worker * share / self.dtype.size_bytes() / 2;
                scope.spawn(move || self.fill(part, first_pair as u64));
            }
        });
        Ok(HostTensor::from_vec(self.dtype, self.rows, self.cols, bytes))
    }

    /// Fills `bytes` with the numbers from pair `first` on.
    fn fill(&self, bytes: &mut [u8], first: u64) {
        let size = self.dtype.size_bytes();
        for (two, pair) in bytes.chunks_mut(2 * size).zip(first..) {
            for (to, x) in two.chunks_exact_mut(size).zip(self.pair(pair)) {
                match self.dtype {
                    Dtype::Bf16 => to.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
                    Dtype::F16 => to.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
                    Dtype::F32 => to.copy_from_slice(&x.to_le_bytes()),
                }
            }
        }
    }

    /// Elements 2 `pair` and 2 `pair` + 1, by Box and Muller from two 24-bit uniform numbers.
    fn pair(&self, pair: u64) -> [f32; 2] {
        const SCALE: f32 = 1.0 / 16_777_216.0;
        let bits = mix(self.seed.wrapping_add((pair + 1).wrapping_mul(GOLDEN)));
        // Never 0, whose logarithm is infinite.
        let radius_bits = ((bits >> 40) as f32 + 0.5) * SCALE;
        let angle = (bits & 0xff_ffff) as f32 * (SCALE * std::f32::consts::TAU);
        let radius = (-2.0 * radius_bits.ln()).sqrt() * self.deviation;
        let (sin, cos) = angle.sin_cos();
        [self.mean + radius * cos, self.mean + radius * sin]
    }
}

/// A quantised matrix `[outputs, inputs]` of random codes, symmetric, whose elements have a standard
/// deviation near 1 / sqrt(inputs).
#[derive(Debug, Clone, Copy)]
pub struct RandomCodes {
    /// Bits of a code, and groups; they are in order whatever it says.
    pub format: QuantConfig,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
    /// Which codes; see `seed_of`.
    pub seed: u64,
}

impl RandomCodes {
    /// The scale of all groups.
    pub fn scale(&self) -> half::f16 {
        // Uniform codes 0 to 2^b - 1 have a deviation of 2^b / sqrt(12).
        let deviation = 2.0 * self.format.bits.middle() as f32 / 12_f32.sqrt();
        half::f16::from_f32(1.0 / ((self.inputs as f32).sqrt() * deviation))
    }

    /// Bytes of codes and scales.
    pub fn num_bytes(&self) -> usize {
        let (format, inputs) = (&self.format, self.inputs);
        self.outputs * (inputs * format.bits.count() / 8 + 2 * format.num_groups(inputs))
    }

    /// The matrix in host memory.
    pub fn tensor(&self) -> Result<QuantTensor> {
        let RandomCodes { format, outputs, inputs, seed } = *self;
        let rows = inputs / format.bits.codes_per_word();
        let mut bytes = reserved(rows * outputs * 4)?;
        for (pair, eight) in bytes.chunks_mut(8).enumerate() {
            let bits = mix(seed.wrapping_add((pair as u64 + 1).wrapping_mul(GOLDEN)));
            eight.copy_from_slice(&bits.to_le_bytes()[..eight.len()]);
        }
        let codes = HostWords::from_vec(rows, outputs, bytes);
        let groups = format.num_groups(inputs);
        let scales = self.scale().to_le_bytes().repeat(groups * outputs);
        let scales = HostTensor::from_vec(Dtype::F16, groups, outputs, scales);
        Ok(QuantTensor::new(format.bits, codes, scales, Groups::Runs(format.group_inputs(inputs))))
    }
}

/// `len` zero bytes for random weights.
fn reserved(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Error::OutOfHostMemory {
        purpose: "random weights",
        needed_bytes: len as u64,
        available_bytes: None,
    })?;
    bytes.resize(len, 0_u8);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(rows: usize, cols: usize) -> Normal {
        let seed = seed_of("a matrix", 0);
        Normal { dtype: Dtype::F32, rows, cols, mean: 0.5, deviation: 0.25, seed }
    }

    #[test]
    fn the_numbers_are_normal() {
        let values = normal(1000, 1001).tensor().unwrap().to_f32();
        let moment = |power: i32| {
            let scaled = values.iter().map(|x| f64::from((x - 0.5) / 0.25).powi(power));
            scaled.sum::<f64>() / values.len() as f64
        };
        // Each within five standard errors: sqrt(1, 2, 15, 96 over a million).
        assert!(moment(1).abs() < 5e-3, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 7.1e-3, "{}", moment(2));
        assert!(moment(3).abs() < 2e-2, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 5e-2, "{}", moment(4));
        assert!(values.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn every_part_is_the_same_in_any_whole() {
        let (small, large) = (normal(3, 7).tensor().unwrap(), normal(3000, 1001).tensor().unwrap());
        assert_eq!(small.to_f32(), large.to_f32()[..21]);
        let again = normal(3000, 1001).tensor().unwrap();
        assert!(large.bytes() == again.bytes(), "two makings differ");
        let mut chunk = vec![0; 400];
        normal(1, 1).fill(&mut chunk, (2 * CHUNK_ELEMENTS / 2) as u64);
        assert_eq!(chunk, large.bytes()[2 * CHUNK_ELEMENTS * 4..][..400]);
    }

    #[test]
    fn names_and_parts_are_apart() {
        let seeds = [seed_of("a", 0), seed_of("a", 1), seed_of("b", 0)];
        assert!(seeds[0] != seeds[1] && seeds[0] != seeds[2] && seeds[1] != seeds[2]);
    }
}
