//! A backend that times the ops of another.

use std::time::Instant;

use qwen::backend::{Backend, BufferKind, HeadShape, KvSpec, RopeStep, StepOutputs, StepStart};
use qwen::batch::{Batch, Output};
use qwen::error::Result;
use qwen::quant::QuantTensor;
use qwen::tensor::HostTensor;

/// Names of the ops that are timed, in the order of a layer.
pub(crate) const OPS: [&str; 6] =
    ["add_norm", "linear", "rope_kv_write", "attention", "swiglu", "rest"];

/// Seconds spent in each op so far.
pub(crate) type Times = std::sync::Arc<parking_lot::Mutex<[f64; OPS.len()]>>;

/// `B`, timed.
pub(crate) struct Timed<B> {
    inner: B,
    times: Times,
}

impl<B: Backend> Timed<B> {
    pub(crate) fn new(inner: B) -> (Timed<B>, Times) {
        let times = Times::default();
        (Timed { inner, times: times.clone() }, times)
    }

    fn time<T>(&mut self, op: usize, work: impl FnOnce(&mut B) -> T) -> T {
        let start = Instant::now();
        let result = work(&mut self.inner);
        self.times.lock()[op] += start.elapsed().as_secs_f64();
        result
    }
}

impl<B: Backend> Backend for Timed<B> {
    type Matrix = B::Matrix;
    type GateUp = B::GateUp;
    type Vector = B::Vector;
    type Buffer = B::Buffer;
    type KvCache = B::KvCache;

    fn matrix(&mut self, source: &HostTensor) -> Result<B::Matrix> {
        self.inner.matrix(source)
    }
    fn gate_up(&mut self, gate: &HostTensor, up: &HostTensor) -> Result<B::GateUp> {
        self.inner.gate_up(gate, up)
    }
    fn quantised_matrix(&mut self, source: &QuantTensor) -> Result<B::Matrix> {
        self.inner.quantised_matrix(source)
    }
    fn quantised_gate_up(&mut self, gate: &QuantTensor, up: &QuantTensor) -> Result<B::GateUp> {
        self.inner.quantised_gate_up(gate, up)
    }
    fn vector(&mut self, source: &HostTensor) -> Result<B::Vector> {
        self.inner.vector(source)
    }
    fn buffer(&mut self, kind: BufferKind, max_rows: usize, cols: usize) -> Result<B::Buffer> {
        self.inner.buffer(kind, max_rows, cols)
    }
    fn kv_cache(&mut self, spec: KvSpec) -> Result<B::KvCache> {
        self.inner.kv_cache(spec)
    }
    fn soon(&mut self, weight: &B::Matrix) {
        self.inner.soon(weight)
    }
    fn soon_gate_up(&mut self, weights: &B::GateUp) {
        self.inner.soon_gate_up(weights)
    }
    fn begin_step(&mut self, batch: &Batch, rope: &RopeStep) -> Result<StepStart> {
        self.inner.begin_step(batch, rope)
    }
    fn embed(&mut self, table: &B::Matrix, token_ids: &[u32], out: &mut B::Buffer) {
        self.time(5, |inner| inner.embed(table, token_ids, out))
    }
    fn add_norm(
        &mut self,
        delta: Option<&B::Buffer>,
        residual: &mut B::Buffer,
        weight: &B::Vector,
        epsilon: f32,
        out: &mut B::Buffer,
    ) {
        self.time(0, |inner| inner.add_norm(delta, residual, weight, epsilon, out))
    }
    fn linear(
        &mut self,
        x: &B::Buffer,
        weight: &B::Matrix,
        bias: Option<&B::Vector>,
        out: &mut B::Buffer,
    ) {
        self.time(1, |inner| inner.linear(x, weight, bias, out))
    }
    fn swiglu(&mut self, x: &B::Buffer, gate_up: &B::GateUp, out: &mut B::Buffer) {
        self.time(4, |inner| inner.swiglu(x, gate_up, out))
    }
    fn rope_kv_write(
        &mut self,
        batch: &Batch,
        rope: &RopeStep,
        heads: HeadShape,
        qkv: &mut B::Buffer,
        kv: (&mut B::KvCache, usize),
    ) {
        self.time(2, |inner| inner.rope_kv_write(batch, rope, heads, qkv, kv))
    }
    fn attention(
        &mut self,
        batch: &Batch,
        heads: HeadShape,
        qkv: &B::Buffer,
        kv: (&B::KvCache, usize),
        out: &mut B::Buffer,
    ) {
        self.time(3, |inner| inner.attention(batch, heads, qkv, kv, out))
    }
    fn gather_rows(&mut self, x: &B::Buffer, rows: &[u32], out: &mut B::Buffer) {
        self.time(5, |inner| inner.gather_rows(x, rows, out))
    }
    fn all_reduce(&mut self, x: &mut B::Buffer) -> Result<()> {
        self.time(5, |inner| inner.all_reduce(x))
    }
    fn hand_over(
        &mut self,
        batch: &Batch,
        from_to: (usize, usize),
        x: &mut B::Buffer,
        delta: &B::Buffer,
    ) -> Result<()> {
        self.time(5, |inner| inner.hand_over(batch, from_to, x, delta))
    }
    fn finish_step(&mut self, outputs: StepOutputs<'_, B::Buffer>) -> Result<()> {
        self.time(5, |inner| inner.finish_step(outputs))
    }
    fn collect_step(&mut self, logits: Option<&B::Buffer>, output: &mut Output) -> Result<()> {
        self.time(5, |inner| inner.collect_step(logits, output))
    }
    fn abandon(&mut self) {
        self.inner.abandon()
    }
}
