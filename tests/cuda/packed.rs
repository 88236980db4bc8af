//! Quantised weights as the device has them: packed bit for bit as a slow twin packs them, and
//! dequantised bit for bit as the published formula has them, rounded to f16.

use half::f16;
use qwen::backend::Backend;
use qwen::backend::cuda::{Cuda, Weight};
use qwen::backend::random::{RandomCodes, seed_of};
use qwen::quant::{Bits, QuantConfig, QuantTensor};

use crate::common::Random;
use crate::common::quant::{Codes, Order, random_tensor, tensor_with};
use crate::device::{gpu, limits, quantised_backend};

/// No input, or no group.
const NONE: u32 = u32::MAX;

/// The layout as `cuda/quant_layout.cuh` describes it, element by element.
struct Twin<'a> {
    /// One matrix, or two whose rows are interleaved in eights.
    sources: &'a [&'a QuantTensor],
    /// Input of each packed input.
    order: &'a [u32],
    /// Groups of a chunk.
    groups: usize,
}

impl Twin<'_> {
    fn rows(&self) -> usize {
        self.sources.len() * self.sources[0].outputs()
    }

    /// Where row `row` comes from: which source, which output.
    fn origin(&self, row: usize) -> (&QuantTensor, usize) {
        match self.sources {
            [first, second] => ([first, second][row / 8 % 2], row / 16 * 8 + row % 8),
            one => (one[0], row),
        }
    }

    fn code(&self, row: usize, k: usize) -> u32 {
        let bits = self.sources[0].bits();
        let input = self.order[k];
        if row >= self.rows() || input == NONE {
            return bits.middle();
        }
        let (source, output) = self.origin(row);
        let (word, at) =
            (input as usize / bits.codes_per_word(), input as usize % bits.codes_per_word());
        bits.code(source.codes().get(word, output), at)
    }

    /// The group of unit `unit` of a chunk: that of all its inputs.
    fn group(&self, unit: usize) -> Option<usize> {
        let len = 128 / self.groups;
        let inputs = &self.order[unit * len..(unit + 1) * len];
        let mut found = inputs.iter().filter(|input| **input != NONE);
        let group = self.sources[0].group(*found.next()? as usize);
        assert!(found.all(|input| self.sources[0].group(*input as usize) == group), "two groups");
        Some(group)
    }

    /// Scales, or zeros, of a unit of 128 / groups inputs, in the order of a tile's rows.
    fn table(&self, tile: usize, unit: usize, zeros: bool) -> Vec<u8> {
        let middle = self.sources[0].bits().middle() as f32;
        let mut values = [0.0; 64];
        for (w, h, g) in (0..4).flat_map(|w| (0..16).map(move |i| (w, i / 8, i % 8))) {
            let row = tile * 64 + 16 * w + 8 * h + g;
            let group = self.group(unit).filter(|_| row < self.rows());
            let at = |tensor: &qwen::tensor::HostTensor, output| {
                let bytes = tensor.bytes();
                let at = 2 * (group.expect("a group") * tensor.cols() + output);
                f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
            };
            values[16 * w + 2 * g + h] = match group {
                Some(_) => {
                    let (source, output) = self.origin(row);
                    match zeros {
                        true => source.zeros().map_or(middle, |zeros| at(zeros, output)),
                        false => at(source.scales(), output),
                    }
                }
                None if zeros => middle,
                None => 0.0,
            };
        }
        values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
    }

    /// Codes of a chunk.
    fn words(&self, tile: usize, chunk: usize) -> Vec<u32> {
        let four = self.sources[0].bits() == Bits::Four;
        let (steps, span) = if four { (2, 64) } else { (4, 32) };
        let mut words = Vec::new();
        for (w, i, lane) in
            (0..4).flat_map(|w| (0..steps).flat_map(move |i| (0..32).map(move |lane| (w, i, lane))))
        {
            let (g, t) = (lane / 4, lane % 4);
            for (j, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let row = tile * 64 + 16 * w + 8 * h + g;
                let base = chunk * 128 + span * i + span / 2 * j + 2 * t;
                let places: &[(u32, usize)] = match four {
                    true => &[(0, 0), (4, 1), (2, 8), (6, 9), (1, 16), (5, 17), (3, 24), (7, 25)],
                    false => &[(0, 0), (1, 1), (2, 8), (3, 9)],
                };
                let bits = if four { 4 } else { 8 };
                let word = places
                    .iter()
                    .fold(0, |word, (place, k)| word | self.code(row, base + k) << (bits * place));
                words.push(word);
            }
        }
        words
    }

    /// Everything.
    fn bytes(&self) -> Vec<u8> {
        let has_zeros = self.sources.iter().any(|source| source.zeros().is_some());
        let mut bytes = Vec::new();
        for tile in 0..self.rows().div_ceil(64) {
            for chunk in 0..self.order.len() / 128 {
                bytes.extend(self.words(tile, chunk).iter().flat_map(|word| word.to_le_bytes()));
                for zeros in [false, true].into_iter().filter(|zeros| has_zeros || !zeros) {
                    for unit in 0..self.groups {
                        bytes.extend(self.table(tile, chunk * self.groups + unit, zeros));
                    }
                }
            }
        }
        bytes
    }

    /// `[rows, packed inputs]`, rounded to f16; padding is whatever it is.
    fn dense(&self) -> Vec<Option<f32>> {
        let matrices: Vec<Vec<f32>> = self.sources.iter().map(|s| s.dequantise()).collect();
        let inputs = self.sources[0].inputs();
        let mut dense = Vec::new();
        for row in 0..self.rows() {
            let (source, output) = self.origin(row);
            let which = self.sources.iter().position(|s| std::ptr::eq(*s, source)).expect("one");
            let line = &matrices[which][output * inputs..][..inputs];
            dense.extend(self.order.iter().map(|&input| {
                (input != NONE).then(|| f16::from_f32(line[input as usize]).to_f32())
            }));
        }
        dense
    }
}

/// Groups of a chunk, for groups of `size` of `k` inputs.
fn groups_of(codes: &Codes) -> usize {
    match codes.size {
        _ if codes.size >= codes.k => 1,
        size if size.is_multiple_of(128) => 1,
        size if size.is_multiple_of(64) => 2,
        _ => 4,
    }
}

/// The packed form of `sources` is the twin's, and its values the formula's.
fn check(cuda: &mut Cuda, weight: &Weight, sources: &[&QuantTensor], groups: usize, what: &str) {
    let inputs = sources[0].inputs();
    let order = cuda.input_order(weight).expect("read");
    assert_eq!(order.is_none(), order_is_plain(sources[0]), "{what}: the order of inputs");
    let order = order.unwrap_or_else(|| (0..inputs as u32).collect());
    let mut seen: Vec<u32> = order.iter().copied().filter(|input| *input != NONE).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..inputs as u32), "{what}: every input once");
    let twin = Twin { sources, order: &order, groups };
    let (got, want) = (cuda.packed_bytes(weight).expect("read"), twin.bytes());
    assert_eq!(got.len(), want.len(), "{what}: packed bytes");
    let wrong = got.iter().zip(&want).position(|(got, want)| got != want);
    assert_eq!(wrong, None, "{what}: the first wrong byte");
    let dense = cuda.dequantised(weight).expect("read");
    assert_eq!(dense.len(), twin.rows() * order.len(), "{what}: elements");
    for (at, (got, want)) in dense.iter().zip(twin.dense()).enumerate() {
        let (row, k) = (at / order.len(), at % order.len());
        match want {
            Some(want) => assert!(*got == want, "{what}: row {row} k {k}: {got}, not {want}"),
            None => assert!(got.is_finite(), "{what}: row {row} k {k}: {got} in padding"),
        }
    }
}

/// Groups in runs, in whole chunks.
fn order_is_plain(source: &QuantTensor) -> bool {
    let inputs = source.inputs();
    let sorted = (1..inputs).all(|k| source.group(k - 1) <= source.group(k));
    sorted && inputs.is_multiple_of(128)
}

fn random_codes(random: &mut Random) -> Codes {
    Codes {
        bits: random.pick(&[Bits::Four, Bits::Eight]),
        n: random.pick(&[8, 16, 24, 64, 72, 136, 200, 320]),
        k: random.pick(&[64, 128, 192, 256, 384, 576, 1024]),
        size: random.pick(&[32, 64, 96, 128, 256, 1 << 12]),
        symmetric: random.below(2) == 0,
        order: random.pick(&[Order::Runs, Order::Runs, Order::Shuffled]),
    }
}

#[test]
fn matrices_are_packed_and_dequantised_bit_for_bit() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    for _ in 0..40 {
        let codes = random_codes(&mut random);
        let what = format!("{random} {codes:?}");
        let tensor = random_tensor(&mut random, &codes);
        let matrix = cuda.quantised_matrix(&tensor).expect("memory");
        check(&mut cuda, &matrix, &[&tensor], groups_of(&codes), &what);
    }
    // Groups of any sizes are filled up with padding, in units of 32.
    let any =
        Codes { bits: Bits::Four, n: 72, k: 512, size: 64, symmetric: false, order: Order::Any };
    let tensor = random_tensor(&mut random, &any);
    let matrix = cuda.quantised_matrix(&tensor).expect("memory");
    check(&mut cuda, &matrix, &[&tensor], 4, &format!("{random} {any:?}"));
}

#[test]
fn gate_and_up_are_packed_in_eights() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (320, 64));
    for _ in 0..20 {
        let codes = random_codes(&mut random);
        let what = format!("{random} {codes:?}");
        let gate = random_tensor(&mut random, &codes);
        // Zeros of one and not of the other are the middle in the other.
        let other = Codes { symmetric: random.below(2) == 0, ..codes };
        let up = tensor_with(&mut random, &other, gate.groups().clone());
        let pair = cuda.quantised_gate_up(&gate, &up).expect("memory");
        check(&mut cuda, pair.matrix(), &[&gate, &up], groups_of(&codes), &what);
    }
}

/// In a load, one matrix after the other goes through the same staging memory, which grows: all of them
/// are given out before the first one is packed.
#[test]
fn matrices_of_a_load_share_their_staging_memory() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let mut cuda = quantised_backend(&device, limits(64), (64, 64));
    cuda.begin_load();
    let mut given = Vec::new();
    for _ in 0..12 {
        let codes = random_codes(&mut random);
        let what = format!("{random} {codes:?}");
        let first = random_tensor(&mut random, &codes);
        let second = tensor_with(&mut random, &codes, first.groups().clone());
        let groups = groups_of(&codes);
        let alone = cuda.quantised_matrix(&first).expect("memory");
        let pair = cuda.quantised_gate_up(&first, &second).expect("memory").into_matrix();
        given.push((alone, vec![first.clone()], groups, what.clone()));
        given.push((pair, vec![first, second], groups, what));
    }
    while cuda.advance(0).expect("it arrives").is_some() {}
    for (weight, sources, groups, what) in &given {
        let sources: Vec<&QuantTensor> = sources.iter().collect();
        check(&mut cuda, weight, &sources, *groups, what);
    }
}

/// Codes made on the device are those that are sent there, also in more than one piece (64 MiB).
#[test]
fn random_codes_are_those_of_the_host() {
    let Some(device) = gpu() else { return };
    let mut cuda = quantised_backend(&device, limits(64), (4168, 64));
    let format = |bits, group_size| QuantConfig {
        bits,
        group_size,
        desc_act: false,
        symmetric: true,
        zero_offset: 1,
    };
    for (bits, group, outputs, inputs) in [
        (Bits::Four, Some(128), 200, 576),
        (Bits::Eight, Some(32), 72, 128),
        (Bits::Eight, Some(128), 4168, 16384),
    ] {
        let codes = |name: &str| RandomCodes {
            format: format(bits, group),
            outputs,
            inputs,
            seed: seed_of(name, 0),
        };
        let (gate, up) = (codes("gate"), codes("up"));
        let tensors = [gate, up].map(|codes| codes.tensor().expect("memory"));
        let what = format!("{bits:?} {outputs} {inputs}");
        let made = cuda.random_quantised_matrix(&gate).expect("memory");
        let sent = cuda.quantised_matrix(&tensors[0]).expect("memory");
        assert!(same(&cuda, &made, &sent), "{what}");
        let made = cuda.random_quantised_gate_up(&gate, &up).expect("memory");
        let sent = cuda.quantised_gate_up(&tensors[0], &tensors[1]).expect("memory");
        assert!(same(&cuda, made.matrix(), sent.matrix()), "{what}: gate and up");
        if outputs < 1000 {
            let groups = if group == Some(32) { 4 } else { 1 };
            check(&mut cuda, made.matrix(), &[&tensors[0], &tensors[1]], groups, &what);
        }
    }
}

fn same(cuda: &Cuda, a: &Weight, b: &Weight) -> bool {
    cuda.packed_bytes(a).expect("read") == cuda.packed_bytes(b).expect("read")
}
