//! The quantised linears of a model: out of its checkpoint, or random ones of the same shape.

use super::config::ModelConfig;
use super::load::{Loader, Weights};
use crate::backend::Backend;
use crate::backend::random::{RandomCodes, seed_of};
use crate::checkpoint::shard::{Split, slice};
use crate::error::{Error, Result};
use crate::quant::{QuantConfig, QuantTensor};

impl Weights<'_> {
    /// Files and configuration agree on whether the linears are quantised.
    pub fn check_quantisation(&self, config: &ModelConfig) -> Result<()> {
        let Weights::Stored(checkpoint) = self else { return Ok(()) };
        let (file, reason) = match (checkpoint.is_quantised(), config.quantisation) {
            (true, None) => ("quantize_config.json", "the weights are quantised: it must say how"),
            (false, Some(_)) => ("config.json", "it speaks of quantised weights; there are none"),
            _ => return Ok(()),
        };
        Err(Error::corrupt(&checkpoint.folder().join(file), reason))
    }
}

/// One rank's part of a quantised linear.
pub(super) enum Codes {
    Stored(Box<QuantTensor>),
    Random(RandomCodes),
}

impl<B: Backend> Loader<'_, B> {
    /// This rank's part of the linear `name`, a matrix `[outputs, inputs]`, if it is quantised.
    pub(super) fn quantised_matrix(
        &mut self,
        name: &str,
        shape: (usize, usize),
        split: Split,
    ) -> Result<Option<B::Matrix>> {
        let Some(codes) = self.quantised(name, shape, split)? else { return Ok(None) };
        let matrix = match &codes {
            Codes::Stored(tensor) => self.backend.quantised_matrix(tensor),
            Codes::Random(codes) => self.backend.random_quantised_matrix(codes),
        };
        matrix.map(Some)
    }

    /// This rank's part of two linears of one shape, by outputs, if they are quantised.
    pub(super) fn quantised_gate_up(
        &mut self,
        (gate, up): (&str, &str),
        shape: (usize, usize),
    ) -> Result<Option<B::GateUp>> {
        let Some(first) = self.quantised(gate, shape, Split::Column)? else { return Ok(None) };
        let pair = match (first, self.quantised(up, shape, Split::Column)?) {
            (Codes::Stored(gate), Some(Codes::Stored(up))) => {
                self.backend.quantised_gate_up(&gate, &up)
            }
            (Codes::Random(gate), Some(Codes::Random(up))) => {
                self.backend.random_quantised_gate_up(&gate, &up)
            }
            _ => Err(mixed(up)),
        };
        pair.map(Some)
    }

    fn quantised(
        &mut self,
        name: &str,
        shape: (usize, usize),
        split: Split,
    ) -> Result<Option<Codes>> {
        let Some(format) = self.quantisation else { return Ok(None) };
        let part = slice(split, shape.0, shape.1, self.part, self.parts)?;
        match self.weights {
            Weights::Stored(checkpoint) if checkpoint.has_codes(name) => {
                // What is summed over ranks gets its bias once.
                let with_bias = split != Split::Row || self.part == 0;
                let tensor =
                    checkpoint.quantised(name, shape, &format, &part, (with_bias, B::STREAMS))?;
                self.report(checkpoint.looked_at_bytes(name) as usize / self.parts)?;
                self.bring(tensor.scales().span())?;
                self.bring(tensor.codes().span())?;
                Ok(Some(Codes::Stored(Box::new(tensor))))
            }
            // lm_head, the one linear divided so, is never quantised.
            Weights::Random(_) if split != Split::Vocab => {
                let seed = seed_of(name, self.part as u64);
                let (outputs, inputs) = (part.num_rows(), part.cols.len());
                let codes = RandomCodes { format, outputs, inputs, seed };
                self.report(codes.num_bytes())?;
                Ok(Some(Codes::Random(codes)))
            }
            _ => Ok(None),
        }
    }
}

/// Gate and up are used together.
fn mixed(name: &str) -> Error {
    let reason = format!("`{name}` is not quantised, but the matrix beside it is");
    Error::Argument { argument: "checkpoint", reason }
}

/// Bytes of all weights of a model of this shape, its linears quantised without zeros and biases.
pub fn quantised_bytes(config: &ModelConfig, format: &QuantConfig, element_bytes: u64) -> u64 {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let heads = config.num_heads * config.head_dim;
    let qkv = heads + 2 * config.num_kv_heads * config.head_dim;
    let linears =
        [(qkv, hidden), (hidden, heads), (width, hidden), (width, hidden), (hidden, width)];
    let layer = |of: &dyn Fn(u64, usize) -> u64| -> u64 {
        let sizes = linears.iter().map(|(outputs, inputs)| of(*outputs as u64, *inputs));
        sizes.sum::<u64>() * config.num_layers as u64
    };
    let plain = layer(&|outputs, inputs| outputs * inputs as u64);
    let packed = layer(&|outputs, inputs| {
        outputs * (inputs * format.bits.count() / 8 + 2 * format.num_groups(inputs)) as u64
    });
    (config.num_parameters() - plain) * element_bytes + packed
}
