//! GPTQ: matrices of 4- or 8-bit codes, in groups of inputs that share a scale and a zero point.
//!
//! What it is: the form in host memory that the checkpoint makes of a quantised linear and a backend
//! keeps or repacks, and the published formula in plain loops. It reads no file and chooses no kernel.
//!
//! A linear of K inputs and N outputs with b bits a code, as stored (little-endian; g = group):
//!
//! | part | elements | meaning |
//! |---|---|---|
//! | qweight | i32 `[K * b / 32, N]` | word r holds inputs r * 32 / b + j at bits b * j, j from 0 up |
//! | qzeros | i32 `[groups, N * b / 32]` | word c holds outputs c * 32 / b + j at bits b * j |
//! | scales | f16 `[groups, N]` | |
//! | g_idx | i32 `[K]` | the group of each input |
//! | bias | f16 `[N]` | added after the product |
//!
//! w\[k, n\] = scales\[g, n\] * (code\[k, n\] - zero\[g, n\]), where zero is what qzeros holds plus 1
//! (`gptq`: 1 to 2^b) or what it holds (`gptq_v2`). With a scale in f16 the product is exact in f32.

use std::sync::Arc;

use crate::tensor::{HostTensor, HostWords};

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// Int4: eight codes a word.
    Four,
    /// Int8: four codes a word.
    Eight,
}

impl Bits {
    /// The number.
    pub fn count(self) -> usize {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// Codes of a 32-bit word.
    pub fn codes_per_word(self) -> usize {
        32 / self.count()
    }

    /// The zero point of symmetric quantisation: half of the codes are below it.
    pub fn middle(self) -> u32 {
        1 << (self.count() - 1)
    }

    /// Code `index` of `word`.
    pub fn code(self, word: u32, index: usize) -> u32 {
        word >> (index * self.count()) & ((1 << self.count()) - 1)
    }
}

/// How the linears of a model are quantised, as its configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantConfig {
    /// Bits of a code.
    pub bits: Bits,
    /// Inputs of a group; none: one group for all.
    pub group_size: Option<usize>,
    /// Were the inputs quantised in order of activation? Then `g_idx` must be there.
    pub desc_act: bool,
    /// Are all zero points said to be the middle? What the file holds counts; this is for planning.
    pub symmetric: bool,
    /// What is added to a stored zero: 1 in `gptq`, 0 in `gptq_v2`.
    pub zero_offset: u32,
}

impl QuantConfig {
    /// Inputs of a group, for a linear of `inputs`.
    pub fn group_inputs(&self, inputs: usize) -> usize {
        self.group_size.unwrap_or(inputs)
    }

    /// Groups of a linear of `inputs`.
    pub fn num_groups(&self, inputs: usize) -> usize {
        inputs.div_ceil(self.group_inputs(inputs))
    }

    /// Inputs that ranks may not divide: a group, or a word where all inputs are one group.
    pub fn undivided_inputs(&self) -> usize {
        self.group_size.unwrap_or(self.bits.codes_per_word())
    }

    /// The name used in reports.
    pub fn name(&self) -> &'static str {
        match self.bits {
            Bits::Four => "gptq-int4",
            Bits::Eight => "gptq-int8",
        }
    }
}

/// Which group an input belongs to.
#[derive(Debug, Clone)]
pub enum Groups {
    /// Input k to group k / n, for this n.
    Runs(usize),
    /// As listed, one an input (act-order).
    Listed(Arc<[u32]>),
}

/// A quantised matrix in host memory.
#[derive(Clone)]
pub struct QuantTensor {
    bits: Bits,
    codes: HostWords,
    scales: HostTensor,
    zeros: Option<HostTensor>,
    groups: Groups,
    bias: Option<HostTensor>,
}

impl QuantTensor {
    /// `codes [inputs * bits / 32, outputs]` as in qweight, `scales [groups, outputs]` in f16; every
    /// zero point is the middle. Panics when the parts do not fit each other: callers have checked
    /// the file before.
    pub fn new(bits: Bits, codes: HostWords, scales: HostTensor, groups: Groups) -> QuantTensor {
        let inputs = codes.rows() * bits.codes_per_word();
        let fits = match &groups {
            Groups::Runs(size) => {
                size.is_multiple_of(bits.codes_per_word())
                    && inputs.div_ceil(*size) == scales.rows()
            }
            Groups::Listed(list) => {
                list.len() == inputs && list.iter().all(|group| (*group as usize) < scales.rows())
            }
        };
        assert!(fits && codes.cols() == scales.cols(), "parts of a quantised matrix do not fit");
        QuantTensor { bits, codes, scales, zeros: None, groups, bias: None }
    }

    /// The same with these zero points `[groups, outputs]`, in f16 (all of 0 to 256 are exact there).
    pub fn with_zeros(self, zeros: HostTensor) -> QuantTensor {
        let shape = (self.scales.rows(), self.scales.cols());
        assert_eq!((zeros.rows(), zeros.cols()), shape, "zero points of another shape");
        QuantTensor { zeros: Some(zeros), ..self }
    }

    /// The same with a bias `[outputs]`.
    pub fn with_bias(self, bias: HostTensor) -> QuantTensor {
        assert_eq!(bias.rows() * bias.cols(), self.outputs(), "a bias of another length");
        QuantTensor { bias: Some(bias), ..self }
    }

    /// Bits of a code.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Columns of the matrix `[outputs, inputs]`.
    pub fn inputs(&self) -> usize {
        self.codes.rows() * self.bits.codes_per_word()
    }

    /// Rows of the matrix `[outputs, inputs]`.
    pub fn outputs(&self) -> usize {
        self.codes.cols()
    }

    /// `[inputs * bits / 32, outputs]`, laid out as qweight.
    pub fn codes(&self) -> &HostWords {
        &self.codes
    }

    /// `[groups, outputs]` in f16.
    pub fn scales(&self) -> &HostTensor {
        &self.scales
    }

    /// `[groups, outputs]` in f16; none where every zero point is the middle.
    pub fn zeros(&self) -> Option<&HostTensor> {
        self.zeros.as_ref()
    }

    /// The group of each input.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// `[outputs]`, added to the product; none where there is nothing to add.
    pub fn bias(&self) -> Option<&HostTensor> {
        self.bias.as_ref()
    }

    /// The group of input `k`.
    pub fn group(&self, k: usize) -> usize {
        match &self.groups {
            Groups::Runs(size) => k / size,
            Groups::Listed(list) => list[k] as usize,
        }
    }

    /// The matrix `[outputs, inputs]` by the formula, each element exact.
    pub fn dequantise(&self) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let scales = self.scales.to_f32();
        let zeros = self.zeros.as_ref().map(HostTensor::to_f32);
        let middle = self.bits.middle() as f32;
        let per_word = self.bits.codes_per_word();
        let mut matrix = vec![0.0; outputs * inputs];
        for k in 0..inputs {
            let group = self.group(k) * outputs;
            for n in 0..outputs {
                let code = self.bits.code(self.codes.get(k / per_word, n), k % per_word) as f32;
                let zero = zeros.as_ref().map_or(middle, |zeros| zeros[group + n]);
                matrix[n * inputs + k] = scales[group + n] * (code - zero);
            }
        }
        matrix
    }
}
