//! What the tests of quantised linears share: random ones, and their products in float64.

use std::sync::Arc;

use half::f16;
use qwen::quant::{Bits, Groups, QuantTensor};
use qwen::tensor::{Dtype, HostTensor, HostWords};

use super::Random;
use super::ops::U;

/// Which group an input belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In runs.
    Runs,
    /// Groups of one size, inputs shuffled: act-order.
    Shuffled,
    /// Any.
    Any,
}

/// A quantised matrix `[n, k]`, in groups of `size` inputs.
#[derive(Debug, Clone, Copy)]
pub struct Codes {
    pub bits: Bits,
    pub n: usize,
    pub k: usize,
    pub size: usize,
    pub symmetric: bool,
    pub order: Order,
}

/// A group for each of `k` inputs.
pub fn groups(random: &mut Random, k: usize, size: usize, order: Order) -> Groups {
    let mut list: Vec<u32> = (0..k).map(|input| (input / size) as u32).collect();
    match order {
        Order::Runs => return Groups::Runs(size),
        Order::Shuffled => (1..k).rev().for_each(|at| list.swap(at, random.below(at + 1))),
        Order::Any => {
            let num_groups = k.div_ceil(size);
            list.fill_with(|| random.below(num_groups) as u32);
        }
    }
    Groups::Listed(list.into_iter().collect::<Arc<[u32]>>())
}

/// Uniform codes, scales such that products keep the size of x.
pub fn random_tensor(random: &mut Random, codes: &Codes) -> QuantTensor {
    let order = groups(random, codes.k, codes.size, codes.order);
    tensor_with(random, codes, order)
}

/// The same with these groups.
pub fn tensor_with(random: &mut Random, codes: &Codes, order: Groups) -> QuantTensor {
    let Codes { bits, n, k, size, symmetric, .. } = *codes;
    let rows = k / bits.codes_per_word();
    let words: Vec<u8> = (0..rows * n).flat_map(|_| (random.bits() as u32).to_le_bytes()).collect();
    let num_groups = k.div_ceil(size);
    let halves = |values: Vec<f32>| {
        let bytes = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        HostTensor::from_vec(Dtype::F16, num_groups, n, bytes)
    };
    let spread = (k as f32).sqrt() * bits.middle() as f32;
    let scales = (0..num_groups * n).map(|_| (1.0 + 0.3 * random.normal()) / spread).collect();
    let levels = 2 * bits.middle() as usize;
    let zeros: Vec<f32> = (0..num_groups * n).map(|_| random.below(levels + 1) as f32).collect();
    let tensor = QuantTensor::new(bits, HostWords::from_vec(rows, n, words), halves(scales), order);
    if symmetric { tensor } else { tensor.with_zeros(halves(zeros)) }
}

/// x W^T in float64 of the dequantised matrix. Every code times scale is one rounding at most (the
/// order of scaling is the backend's), K products are summed in f32 in any order: (K + 4) u of the
/// sum of |x| times the largest |scale * code| that centred codes can have, twice for what follows. A
/// backend may instead take inputs in fixed point, each off by 2 u of the largest.
pub fn product(x: &[f32], tensor: &QuantTensor) -> (Vec<f64>, Vec<f64>) {
    let k = tensor.inputs();
    let (matrix, scales) = (tensor.dequantise(), tensor.scales().to_f32());
    // A code from the middle is at most the middle; zeros move it by as much again.
    let reach =
        f64::from(tensor.bits().middle()) * if tensor.zeros().is_some() { 2.0 } else { 1.0 };
    let (mut want, mut bound) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(k) {
        for (n, line) in matrix.chunks_exact(k).enumerate() {
            let scale = |i| f64::from(scales[tensor.group(i) * tensor.outputs() + n]).abs();
            let size: f64 = (0..k).map(|i| f64::from(row[i]).abs() * scale(i) * reach).sum();
            let most = row.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let fixed: f64 = (0..k).map(|i| 2.0 * U * f64::from(most) * scale(i) * reach).sum();
            want.push(row.iter().zip(line).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
            bound.push(2.0 * (k + 4) as f64 * U * size + fixed + 1e-30);
        }
    }
    (want, bound)
}
