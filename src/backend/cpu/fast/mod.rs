//! The fast CPU backend: blocked, SIMD by run-time dispatch, threaded. Same ops and same meaning as
//! `cpu::reference`; the tests hold it to that.
//!
//! One binary runs on any x86-64: each kernel is compiled for the baseline, AVX2, AVX-512 and
//! AVX-512 BF16, and the best one present is taken when the backend is made. Weights are read
//! where the checkpoint left them (a memory map or a copy), never repacked.

mod attention;
mod element;
#[cfg(target_arch = "x86_64")]
mod fixed;
#[cfg(target_arch = "x86_64")]
mod fixed_avx2;
mod huge;
mod linear;
mod matrix;
mod parts;
mod pool;
mod quantised;
mod rows;
mod simd;
mod staging;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use attention::MAX_HEAD_DIM;
use attention::{AttendTile, PagedKv, QUERY_TILE};
use element::{Bf16, Element, F16, F32};
pub use matrix::FastMatrix;
use pool::Pool;
use quantised::FastQuant;
use rows::{AddNorm, Angles, RotateHead};
pub use simd::Isa;
use staging::{Rows, Staging};

use super::HostBuffer;
use super::reference::join_columns;
use crate::backend::comm::Comm;
use crate::backend::{Backend, BufferKind, HeadShape, KvSpec, RopeStep, StepOutputs, StepStart};
use crate::batch::{Batch, Output};
use crate::error::{Error, Result};
use crate::quant::QuantTensor;
use crate::tensor::{Dtype, HostTensor, decode_f32};

/// Fewer rows than this a thread: row-wise work stays on the calling thread.
const ROWS_PER_THREAD: usize = 8;

/// The fast CPU backend of one rank.
pub struct Fast {
    comm: Arc<dyn Comm>,
    rank: usize,
    /// Of the step.
    logits_rows: usize,
    /// Of the step, those wanted.
    hidden: Vec<f32>,
    isa: Isa,
    pool: Pool,
    staging: Staging,
}

impl Fast {
    /// Rank `rank` of the world of `comm`, on `num_threads` threads and the best instruction set.
    pub fn new(comm: Arc<dyn Comm>, rank: usize, num_threads: usize) -> Result<Fast> {
        Fast::with_isa(comm, rank, num_threads, Isa::best())
    }

    /// The same on a given instruction set. `Error::NoDevice` when this machine lacks it.
    pub fn with_isa(
        comm: Arc<dyn Comm>,
        rank: usize,
        num_threads: usize,
        isa: Isa,
    ) -> Result<Fast> {
        if !Isa::available().contains(&isa) {
            return Err(Error::NoDevice {
                device: format!("cpu/{}", isa.name()),
                reason: "this machine does not have the instruction set".to_string(),
            });
        }
        let pool = Pool::new(num_threads)?;
        let (hidden, staging) = (Vec::new(), Staging::default());
        Ok(Fast { comm, rank, logits_rows: 0, hidden, isa, pool, staging })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Is `source` multiplied in whole numbers here?
    fn is_fixed(&self, source: &QuantTensor) -> bool {
        #[cfg(target_arch = "x86_64")]
        return fixed::serves(source, self.isa);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs `work` over ranges of `rows`, on all threads where there are enough rows.
    fn for_rows(&self, rows: usize, work: impl Fn(Range<usize>) + Sync) {
        for_rows(&self.pool, rows, &work);
    }
}

/// Runs `work` over ranges of `rows`, on all threads of `pool` where there are enough rows.
fn for_rows(pool: &Pool, rows: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    if rows < ROWS_PER_THREAD * pool.num_threads() {
        return work(0..rows);
    }
    let share = rows.div_ceil(pool.num_threads());
    pool.run(&|worker| {
        let start = (worker * share).min(rows);
        work(start..rows.min(start + share));
    });
}

/// Keys and values in the model's dtype.
pub struct FastKv(KvStore);

enum KvStore {
    Bf16(PagedKv<Bf16>),
    F16(PagedKv<F16>),
    F32(PagedKv<F32>),
}

impl Backend for Fast {
    type Matrix = FastMatrix;
    type GateUp = [FastMatrix; 2];
    type Vector = Vec<f32>;
    type Buffer = HostBuffer;
    type KvCache = FastKv;

    const BATCH_INVARIANT: bool = true;

    fn matrix(&mut self, source: &HostTensor) -> Result<FastMatrix> {
        Ok(FastMatrix::Plain(source.clone()))
    }

    fn gate_up(&mut self, gate: &HostTensor, up: &HostTensor) -> Result<[FastMatrix; 2]> {
        Ok([self.matrix(gate)?, self.matrix(up)?])
    }

    fn quantised_matrix(&mut self, source: &QuantTensor) -> Result<FastMatrix> {
        let is_fixed = self.is_fixed(source);
        Ok(FastMatrix::Quantised(Box::new(FastQuant::new(source, is_fixed))))
    }

    fn quantised_gate_up(
        &mut self,
        gate: &QuantTensor,
        up: &QuantTensor,
    ) -> Result<[FastMatrix; 2]> {
        let is_fixed = self.is_fixed(gate) && self.is_fixed(up);
        let matrix = |source| FastMatrix::Quantised(Box::new(FastQuant::new(source, is_fixed)));
        Ok([matrix(gate), matrix(up)])
    }

    fn vector(&mut self, source: &HostTensor) -> Result<Vec<f32>> {
        Ok(source.to_f32())
    }

    fn buffer(&mut self, _: BufferKind, max_rows: usize, cols: usize) -> Result<HostBuffer> {
        self.staging.reserve(max_rows, cols)?;
        HostBuffer::new(max_rows, cols)
    }

    fn kv_cache(&mut self, spec: KvSpec) -> Result<FastKv> {
        if spec.head_dim > MAX_HEAD_DIM || !spec.head_dim.is_multiple_of(2) {
            let reason = format!("{} is odd or over {MAX_HEAD_DIM}", spec.head_dim);
            return Err(Error::Argument { argument: "head_dim", reason });
        }
        Ok(FastKv(match spec.dtype {
            Dtype::Bf16 => KvStore::Bf16(PagedKv::new(spec)?),
            Dtype::F16 => KvStore::F16(PagedKv::new(spec)?),
            Dtype::F32 => KvStore::F32(PagedKv::new(spec)?),
        }))
    }

    fn soon(&mut self, weight: &FastMatrix) {
        let (base, part) = weight.first_bytes(self.pool.num_threads());
        self.pool.foresee(base, part);
    }

    fn soon_gate_up(&mut self, [gate, _]: &[FastMatrix; 2]) {
        self.soon(gate);
    }

    fn begin_step(&mut self, batch: &Batch, _rope: &RopeStep) -> Result<StepStart> {
        self.logits_rows = batch.logits_rows.len();
        Ok(StepStart::Run)
    }

    fn embed(&mut self, table: &FastMatrix, token_ids: &[u32], out: &mut HostBuffer) {
        let FastMatrix::Plain(table) = table else { unreachable!("embeddings are not quantised") };
        out.set_rows(token_ids.len());
        let row_bytes = table.cols() * table.dtype().size_bytes();
        for (row, &id) in token_ids.iter().enumerate() {
            let bytes = &table.bytes()[id as usize * row_bytes..][..row_bytes];
            out.row_mut(row).copy_from_slice(&decode_f32(table.dtype(), bytes));
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
        let rows = residual.rows();
        let (residual, out) = (Rows::of(residual), Rows::of(out));
        self.for_rows(rows, |range| {
            for row in range {
                // SAFETY: each row is visited by one thread; the instruction set is present.
                unsafe {
                    let kernel = AddNorm {
                        delta: delta.map(|delta| delta.row(row)),
                        residual: residual.row(row),
                        weight,
                        epsilon,
                        out: out.row(row),
                    };
                    simd::run(self.isa, kernel);
                }
            }
        });
    }

    fn linear(
        &mut self,
        x: &HostBuffer,
        weight: &FastMatrix,
        bias: Option<&Vec<f32>>,
        out: &mut HostBuffer,
    ) {
        out.set_rows(x.rows());
        self.staging.stage(&self.pool, self.isa, x, weight);
        self.staging.linear(&self.pool, weight, bias.map(Vec::as_slice), out);
    }

    fn swiglu(&mut self, x: &HostBuffer, [gate, up]: &[FastMatrix; 2], out: &mut HostBuffer) {
        out.set_rows(x.rows());
        self.staging.stage(&self.pool, self.isa, x, gate);
        self.staging.swiglu(&self.pool, gate, up, out);
    }

    fn rope_kv_write(
        &mut self,
        batch: &Batch,
        rope: &RopeStep,
        heads: HeadShape,
        qkv: &mut HostBuffer,
        (kv, layer): (&mut FastKv, usize),
    ) {
        let step = RopeWrite { batch, rope, heads, layer };
        match &mut kv.0 {
            KvStore::Bf16(kv) => self.rope_write(step, qkv, kv),
            KvStore::F16(kv) => self.rope_write(step, qkv, kv),
            KvStore::F32(kv) => self.rope_write(step, qkv, kv),
        }
    }

    fn attention(
        &mut self,
        batch: &Batch,
        heads: HeadShape,
        qkv: &HostBuffer,
        (kv, layer): (&FastKv, usize),
        out: &mut HostBuffer,
    ) {
        out.set_rows(batch.num_tokens());
        match &kv.0 {
            KvStore::Bf16(kv) => self.attend(batch, heads, qkv, (kv, layer), out),
            KvStore::F16(kv) => self.attend(batch, heads, qkv, (kv, layer), out),
            KvStore::F32(kv) => self.attend(batch, heads, qkv, (kv, layer), out),
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
        if self.comm.world() == 1 {
            output.logits.extend_from_slice(local.data());
            return Ok(());
        }
        let parts = self.comm.gather(self.rank, local.data())?;
        join_columns(&parts, self.logits_rows, &mut output.logits);
        Ok(())
    }

    fn abandon(&mut self) {
        self.comm.abandon();
    }
}

/// What one `rope_kv_write` works on, besides the buffers.
#[derive(Clone, Copy)]
struct RopeWrite<'a> {
    batch: &'a Batch,
    rope: &'a RopeStep,
    heads: HeadShape,
    layer: usize,
}

impl RopeWrite<'_> {
    /// Angles and scale of head `head` of row `token`; values (the last heads) have neither.
    fn turn(&self, token: usize, head: usize) -> (Option<Angles<'_>>, f32) {
        let half = self.heads.head_dim / 2;
        let range = token * half..(token + 1) * half;
        let angles = (&self.rope.cos[range.clone()], &self.rope.sin[range]);
        let is_rotated = head < self.heads.num_heads + self.heads.num_kv_heads;
        let is_query = head < self.heads.num_heads;
        let scale = if is_query { self.rope.query_scale[token] } else { 1.0 };
        (is_rotated.then_some(angles), scale)
    }
}

impl Fast {
    fn rope_write<E: Element>(
        &self,
        step: RopeWrite<'_>,
        qkv: &mut HostBuffer,
        kv: &mut PagedKv<E>,
    ) {
        let dim = step.heads.head_dim;
        let (first_key, num_kv) = (step.heads.num_heads, step.heads.num_kv_heads);
        let qkv = Rows::of(qkv);
        let writer = kv.writer(step.layer);
        self.for_rows(step.batch.num_tokens(), |range| {
            for token in range {
                // SAFETY: each row, and with it each slot, is visited by one thread; the
                // instruction set is present.
                unsafe {
                    let row = qkv.row(token);
                    for (index, head) in row.chunks_exact_mut(dim).enumerate() {
                        let (angles, scale) = step.turn(token, index);
                        let element = PhantomData::<E>;
                        simd::run(self.isa, RotateHead { head, angles, scale, element });
                    }
                    let slot = step.batch.slot_mapping[token] as usize;
                    let (keys, values) = row[first_key * dim..].split_at(num_kv * dim);
                    for head in 0..num_kv {
                        let part = head * dim..(head + 1) * dim;
                        writer.write(slot, head, &keys[part.clone()], &values[part]);
                    }
                }
            }
        });
    }

    fn attend<E: Element>(
        &self,
        batch: &Batch,
        heads: HeadShape,
        qkv: &HostBuffer,
        (kv, layer): (&PagedKv<E>, usize),
        out: &mut HostBuffer,
    ) {
        let tiles: Vec<(usize, usize)> = (0..batch.num_sequences())
            .flat_map(|s| batch.rows(s).step_by(QUERY_TILE).map(move |row| (s, row)))
            .collect();
        let num_items = tiles.len() * heads.num_heads;
        let next = AtomicUsize::new(0);
        let (stride, dim) = (qkv.cols(), heads.head_dim);
        assert!(qkv.rows() >= batch.num_tokens() && stride == heads.qkv_cols(), "attention: rows");
        assert_eq!(out.cols(), heads.num_heads * dim, "attention: output columns");
        let out = Rows::of(out);
        self.pool.run(&|_worker| {
            loop {
                // Long contexts last in a prompt: handed out first, so that threads end together.
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= num_items {
                    return;
                }
                let (sequence, row) = tiles[tiles.len() - 1 - item / heads.num_heads];
                let head = item % heads.num_heads;
                // SAFETY: each (row, head) is visited by one thread; rows are consecutive in
                // both buffers; the instruction set is present.
                unsafe {
                    let tile = AttendTile {
                        kv,
                        layer,
                        kv_head: head * heads.num_kv_heads / heads.num_heads,
                        pages: batch.pages(sequence),
                        position: batch.positions[row] as usize,
                        queries: (qkv.data().as_ptr().add(row * stride + head * dim), stride),
                        num_queries: QUERY_TILE.min(batch.rows(sequence).end - row),
                        out: (out.start().add(row * out.stride() + head * dim), out.stride()),
                    };
                    simd::run(self.isa, tile);
                }
            }
        });
    }
}
