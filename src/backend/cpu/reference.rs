//! THE REFERENCE: every op of the backend trait in plain loops, no threads, no unsafe, no tricks.
//!
//! What an op means is what these loops do; every other backend is tested against them. Slow on
//! purpose where speed would cost clarity.

use std::sync::Arc;

use super::{HostBuffer, input_dtype, round_to, zeroed};
use crate::backend::comm::Comm;
use crate::backend::{Backend, BufferKind, HeadShape, KvSpec, RopeStep, StepOutputs, StepStart};
use crate::batch::{Batch, Output, PAGE_TOKENS};
use crate::error::Result;
use crate::quant::QuantTensor;
use crate::tensor::{Dtype, HostTensor};

/// The plain-loop CPU backend.
pub struct Reference {
    comm: Arc<dyn Comm>,
    rank: usize,
    /// Of the step.
    logits_rows: usize,
    /// Of the step, those wanted.
    hidden: Vec<f32>,
}

impl Reference {
    /// Rank `rank` of the world of `comm`.
    pub fn new(comm: Arc<dyn Comm>, rank: usize) -> Reference {
        Reference { comm, rank, logits_rows: 0, hidden: Vec::new() }
    }
}

/// A weight matrix `[out, in]` as f32, with the dtype it was stored in.
pub struct ReferenceMatrix {
    dtype: Dtype,
    cols: usize,
    data: Vec<f32>,
    /// A quantised matrix may have a bias of its own.
    bias: Option<Vec<f32>>,
}

impl ReferenceMatrix {
    /// Output `index` of `input`.
    fn output(&self, input: &[f32], index: usize) -> f32 {
        let weights = &self.data[index * self.cols..(index + 1) * self.cols];
        dot(input, weights) + self.bias.as_ref().map_or(0.0, |bias| bias[index])
    }
}

/// Keys and values as f32 (already rounded): `[layer][slot, kv_head, head_dim]`.
pub struct ReferenceKv {
    spec: KvSpec,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl ReferenceKv {
    /// Where head `head` of `slot` begins.
    fn offset(&self, slot: usize, head: usize) -> usize {
        (slot * self.spec.num_kv_heads + head) * self.spec.head_dim
    }
}

impl Backend for Reference {
    type Matrix = ReferenceMatrix;
    type GateUp = [ReferenceMatrix; 2];
    type Vector = Vec<f32>;
    type Buffer = HostBuffer;
    type KvCache = ReferenceKv;

    const BATCH_INVARIANT: bool = true;

    fn matrix(&mut self, source: &HostTensor) -> Result<ReferenceMatrix> {
        let (dtype, cols) = (source.dtype(), source.cols());
        Ok(ReferenceMatrix { dtype, cols, data: source.to_f32(), bias: None })
    }

    fn gate_up(&mut self, gate: &HostTensor, up: &HostTensor) -> Result<[ReferenceMatrix; 2]> {
        Ok([self.matrix(gate)?, self.matrix(up)?])
    }

    fn quantised_matrix(&mut self, source: &QuantTensor) -> Result<ReferenceMatrix> {
        Ok(ReferenceMatrix {
            dtype: Dtype::F32,
            cols: source.inputs(),
            data: source.dequantise(),
            bias: source.bias().map(HostTensor::to_f32),
        })
    }

    fn quantised_gate_up(
        &mut self,
        gate: &QuantTensor,
        up: &QuantTensor,
    ) -> Result<[ReferenceMatrix; 2]> {
        Ok([self.quantised_matrix(gate)?, self.quantised_matrix(up)?])
    }

    fn vector(&mut self, source: &HostTensor) -> Result<Vec<f32>> {
        Ok(source.to_f32())
    }

    fn buffer(&mut self, _: BufferKind, max_rows: usize, cols: usize) -> Result<HostBuffer> {
        HostBuffer::new(max_rows, cols)
    }

    fn kv_cache(&mut self, spec: KvSpec) -> Result<ReferenceKv> {
        let len = spec.num_pages * PAGE_TOKENS * spec.num_kv_heads * spec.head_dim;
        let layers = || (0..spec.num_layers).map(|_| zeroed(len, "KV cache")).collect();
        let (keys, values): (Result<_>, Result<_>) = (layers(), layers());
        Ok(ReferenceKv { spec, keys: keys?, values: values? })
    }

    fn begin_step(&mut self, batch: &Batch, _rope: &RopeStep) -> Result<StepStart> {
        self.logits_rows = batch.logits_rows.len();
        Ok(StepStart::Run)
    }

    fn embed(&mut self, table: &ReferenceMatrix, token_ids: &[u32], out: &mut HostBuffer) {
        out.set_rows(token_ids.len());
        for (row, &id) in token_ids.iter().enumerate() {
            let start = id as usize * table.cols;
            out.row_mut(row).copy_from_slice(&table.data[start..start + table.cols]);
        }
    }

    fn add_norm(
        &mut self,
        delta: Option<&HostBuffer>,
        residual: &mut HostBuffer,
        weight: &Vec<f32>,
        epsilon: f32,
        out: &mut HostBuffer,
    ) {
        out.set_rows(residual.rows());
        for row in 0..residual.rows() {
            if let Some(delta) = delta {
                for (sum, term) in residual.row_mut(row).iter_mut().zip(delta.row(row)) {
                    *sum += term;
                }
            }
            norm_row(residual.row(row), weight, epsilon, out.row_mut(row));
        }
    }

    fn linear(
        &mut self,
        x: &HostBuffer,
        weight: &ReferenceMatrix,
        bias: Option<&Vec<f32>>,
        out: &mut HostBuffer,
    ) {
        out.set_rows(x.rows());
        for row in 0..x.rows() {
            let input = rounded(x.row(row), input_dtype(weight.dtype));
            for (index, y) in out.row_mut(row).iter_mut().enumerate() {
                *y = weight.output(&input, index) + bias.map_or(0.0, |bias| bias[index]);
            }
        }
    }

    fn swiglu(&mut self, x: &HostBuffer, [gate, up]: &[ReferenceMatrix; 2], out: &mut HostBuffer) {
        out.set_rows(x.rows());
        for row in 0..x.rows() {
            let input = rounded(x.row(row), input_dtype(gate.dtype));
            for (index, y) in out.row_mut(row).iter_mut().enumerate() {
                *y = up.output(&input, index) * silu(gate.output(&input, index));
            }
        }
    }

    fn rope_kv_write(
        &mut self,
        batch: &Batch,
        rope: &RopeStep,
        heads: HeadShape,
        qkv: &mut HostBuffer,
        (kv, layer): (&mut ReferenceKv, usize),
    ) {
        let (dim, half) = (heads.head_dim, heads.head_dim / 2);
        let num_rotated = heads.num_heads + heads.num_kv_heads;
        for token in 0..batch.num_tokens() {
            let angles = token * half..(token + 1) * half;
            let (cos, sin) = (&rope.cos[angles.clone()], &rope.sin[angles]);
            let slot = batch.slot_mapping[token] as usize;
            let row = qkv.row_mut(token);
            for (head, part) in row.chunks_exact_mut(dim).enumerate() {
                if head < num_rotated {
                    rotate(part, cos, sin);
                }
                let scale = if head < heads.num_heads { rope.query_scale[token] } else { 1.0 };
                for x in part.iter_mut() {
                    *x = round_to(kv.spec.dtype, *x * scale);
                }
                if let Some(kv_head) = head.checked_sub(heads.num_heads) {
                    let is_key = kv_head < heads.num_kv_heads;
                    let at = kv.offset(slot, kv_head % heads.num_kv_heads);
                    let store = if is_key { &mut kv.keys } else { &mut kv.values };
                    store[layer][at..at + dim].copy_from_slice(part);
                }
            }
        }
    }

    fn attention(
        &mut self,
        batch: &Batch,
        heads: HeadShape,
        qkv: &HostBuffer,
        (kv, layer): (&ReferenceKv, usize),
        out: &mut HostBuffer,
    ) {
        out.set_rows(batch.num_tokens());
        let dim = heads.head_dim;
        for sequence in 0..batch.num_sequences() {
            let pages = batch.pages(sequence);
            for row in batch.rows(sequence) {
                let context = batch.positions[row] as usize + 1;
                for head in 0..heads.num_heads {
                    let kv_head = head * heads.num_kv_heads / heads.num_heads;
                    let places: Vec<usize> = (0..context)
                        .map(|position| {
                            let page = pages[position / PAGE_TOKENS] as usize;
                            kv.offset(page * PAGE_TOKENS + position % PAGE_TOKENS, kv_head)
                        })
                        .collect();
                    let query = &qkv.row(row)[head * dim..(head + 1) * dim];
                    let result = &mut out.row_mut(row)[head * dim..(head + 1) * dim];
                    attend(query, &kv.keys[layer], &kv.values[layer], &places, result);
                }
            }
        }
    }

    fn gather_rows(&mut self, x: &HostBuffer, rows: &[u32], out: &mut HostBuffer) {
        out.gather(x, rows);
    }

    fn all_reduce(&mut self, x: &mut HostBuffer) -> Result<()> {
        self.comm.all_reduce(self.rank, x.data_mut())
    }

    fn hand_over(
        &mut self,
        batch: &Batch,
        from_to: (usize, usize),
        x: &mut HostBuffer,
        delta: &HostBuffer,
    ) -> Result<()> {
        x.hand_over((&*self.comm, self.rank), from_to, batch.num_tokens(), delta)
    }

    fn finish_step(&mut self, outputs: StepOutputs<'_, HostBuffer>) -> Result<()> {
        if let Some((states, rows)) = outputs.hidden {
            states.append_rows(rows, &mut self.hidden);
        }
        Ok(())
    }

    fn collect_step(&mut self, logits: Option<&HostBuffer>, output: &mut Output) -> Result<()> {
        output.hidden.append(&mut self.hidden);
        let Some(local) = logits else { return Ok(()) };
        let parts = self.comm.gather(self.rank, local.data())?;
        join_columns(&parts, self.logits_rows, &mut output.logits);
        Ok(())
    }

    fn abandon(&mut self) {
        self.comm.abandon();
    }
}

/// Writes the parts `[rows, share]` side by side into `out [rows, sum of shares]`.
pub(super) fn join_columns(parts: &[Vec<f32>], rows: usize, out: &mut Vec<f32>) {
    out.clear();
    for row in 0..rows {
        for part in parts {
            let share = part.len() / rows;
            out.extend_from_slice(&part[row * share..(row + 1) * share]);
        }
    }
}

/// RMSNorm: `x * rsqrt(mean(x^2) + eps) * w`.
pub(super) fn norm_row(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean_square = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean_square + epsilon).sqrt();
    for ((y, x), w) in out.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

/// Rotates the pairs (d, d + half) of one head by its angles (the half-split convention).
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Softmax attention of one query over the keys and values at `places`.
fn attend(query: &[f32], keys: &[f32], values: &[f32], places: &[usize], out: &mut [f32]) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let scores: Vec<f32> =
        places.iter().map(|&at| dot(query, &keys[at..at + query.len()]) * scale).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f32 = weights.iter().sum();
    out.fill(0.0);
    for (weight, &at) in weights.iter().zip(places) {
        for (y, v) in out.iter_mut().zip(&values[at..at + query.len()]) {
            *y += weight * v;
        }
    }
    out.iter_mut().for_each(|y| *y /= total);
}

fn rounded(x: &[f32], dtype: Dtype) -> Vec<f32> {
    x.iter().map(|&x| round_to(dtype, x)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x * sigmoid(x)`.
fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
