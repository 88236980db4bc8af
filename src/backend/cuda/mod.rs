//! The CUDA backend of one rank: queues the ops of a step on a stream, or launches the whole step
//! from a recorded graph.
//!
//! Nothing waits inside a step: an op that cannot be queued is remembered, and `finish_step` reports
//! it; what went wrong on the device is reported when the step is collected. Two steps may be on their
//! way: the second is fed with the tokens of the first where the sampler leaves them.
//!
//! Rounding, beyond what `backend` says: linears' inputs (`BufferKind::Activation`) are kept in the
//! weights' dtype, so the rows of Q, K, V and the gate and up products are rounded once more than on
//! the CPU. The residual stream, all sums, scores and logits are f32.

mod blas;
pub mod buffer;
mod comm;
mod decode;
mod driver;
#[doc(hidden)]
pub mod faults;
mod finish;
mod footprint;
mod gemm;
mod graph;
mod group;
mod kernels;
mod launch;
mod linear;
mod load;
mod memory;
mod owners;
mod pack;
mod packed;
mod peek;
mod pending;
mod prefill;
mod quant;
mod ring;
mod sample;
mod settings;
mod skinny;
mod staging;
mod step;
mod tensor_map;
mod tuning;
mod upload;
mod weights;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

pub use buffer::{DeviceBuffer, DeviceKv, DeviceMatrix, DeviceVector, GateUp, Weight};
use comm::Communicator;
use decode::DecodeAttention;
pub use driver::{CallerContext, Context, Device};
use driver::{Mark, Stream};
use finish::Pending;
pub use footprint::Footprint;
use gemm::Gemm;
use graph::{Graph, bucket};
pub use group::{Group, GroupShape, MAX_WORLD};
use kernels::Kernels;
use launch::{Launcher, RopeTables};
use memory::DeviceMemory;
pub use packed::{PackedMatrix, QuantLimits, packed_bytes};
use prefill::PrefillAttention;
use quant::Quant;
use sample::TokenSampler;
pub use settings::{CudaSettings, HEAD_DIMS};
use step::StepInputs;
pub use step::StepLimits;
use upload::Uploader;
pub use weights::WeightBytes;

use super::random::{Normal, RandomCodes};
use super::{Backend, BufferKind, HeadShape, KvSpec, RopeStep, StepOutputs, StepStart};
use crate::batch::{Batch, Output};
use crate::error::{Error, Result};
use crate::quant::QuantTensor;
use crate::tensor::HostTensor;

/// The CUDA backend of one rank.
pub struct Cuda {
    settings: CudaSettings,
    // Dropped in this order: what runs first, what it runs on last.
    graphs: HashMap<usize, Graph>,
    launcher: Launcher,
    decode: DecodeAttention,
    prefill: PrefillAttention,
    gemm: Gemm,
    quant: Option<Quant>,
    /// None where this rank is the only one.
    comm: Option<Communicator>,
    step: StepInputs,
    sampler: TokenSampler,
    angles: RopeTables,
    gate_up: DeviceBuffer,
    uploader: Option<Uploader>,
    /// What it waited for.
    load_report: String,
    /// Rows of decode steps that have run unrecorded, as each does once: products are timed then.
    rehearsed: HashSet<usize>,
    /// Rows of the graph that is being recorded.
    recording: Option<usize>,
    /// Steps that are finished and not collected, oldest first.
    pending: VecDeque<Pending>,
    /// Where a step begins, its inputs in place, and where it ends: for each turn.
    marks: [(Mark, Mark); 2],
    /// This step came from a recording.
    replayed: bool,
    /// The first op of this step that could not be queued.
    failed: Option<Error>,
}

impl Cuda {
    /// A backend on `device`, alone, in a context of its own.
    pub fn new(device: Device, settings: CudaSettings) -> Result<Cuda> {
        Cuda::in_context(&Context::new(device)?, settings)
    }

    /// A backend in `context`, alone. Takes its workspaces at once, so that what is free afterwards can
    /// be counted on.
    pub fn in_context(context: &Arc<Context>, settings: CudaSettings) -> Result<Cuda> {
        Cuda::start(context, settings, None)
    }

    /// Rank `rank` of `group`, which is of several.
    pub fn in_group(group: &Arc<Group>, rank: usize, settings: CudaSettings) -> Result<Cuda> {
        Cuda::start(group.context(rank), settings, Some((group, rank)))
    }

    fn start(
        context: &Arc<Context>,
        settings: CudaSettings,
        place: Option<(&Arc<Group>, usize)>,
    ) -> Result<Cuda> {
        let stream = Stream::new(context)?;
        let kernels = Kernels::load(context)?;
        let limits = settings.limits;
        let angle_bytes = limits.max_tokens * limits.head_dim / 2 * 4;
        let mark = || Mark::new(context);
        let table = || DeviceMemory::new(context, angle_bytes, "rotary tables");
        let gate_up_bytes = limits.max_tokens * 2 * settings.mlp_width * 2;
        let gate_up = DeviceBuffer {
            memory: DeviceMemory::zeroed(&stream, gate_up_bytes, "activations")?,
            kind: BufferKind::Activation,
            max_rows: limits.max_tokens,
            cols: 2 * settings.mlp_width,
            rows: 0,
        };
        let (dtype, dim) = (settings.dtype, limits.head_dim);
        let decode = DecodeAttention::new(&stream, &kernels, dtype, dim)?;
        let prefill = PrefillAttention::new(&stream, &kernels, dtype, dim)?;
        let sampler = TokenSampler::new(&stream, &kernels, &limits)?;
        let quant = settings
            .quantised
            .map(|quantised| Quant::new(&stream, &kernels, &quantised, limits.max_tokens))
            .transpose()?;
        let mut uploader = Uploader::new(context, settings.weight_bytes)?;
        quant.iter().for_each(|quant| uploader.lend(quant.dense_memory()));
        let join = |place| Communicator::new(place, (&stream, &kernels), dtype, &limits);
        Ok(Cuda {
            settings,
            comm: place.map(join).transpose()?,
            graphs: HashMap::new(),
            decode,
            prefill,
            launcher: Launcher::new(stream, kernels, settings.dtype)?,
            gemm: Gemm::new(context, settings.dtype, settings.autotune)?,
            step: StepInputs::new(context, limits)?,
            sampler,
            angles: RopeTables { cos: table()?, sin: table()? },
            gate_up,
            quant,
            uploader: Some(uploader),
            load_report: String::new(),
            rehearsed: HashSet::new(),
            recording: None,
            pending: VecDeque::with_capacity(2),
            marks: [(mark()?, mark()?), (mark()?, mark()?)],
            replayed: false,
            failed: None,
        })
    }

    fn context(&self) -> &Arc<Context> {
        self.launcher.stream.context()
    }

    /// Remembers the first op of a step that failed.
    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }
}

impl Backend for Cuda {
    type Matrix = Weight;
    type GateUp = GateUp;
    type Vector = DeviceVector;
    type Buffer = DeviceBuffer;
    type KvCache = DeviceKv;

    const HOST_ANGLES: bool = false;
    const DRAWS: bool = true;
    const STREAMS: bool = true;

    fn begin_load(&mut self) {
        self.uploader.iter_mut().for_each(Uploader::begin_load);
    }

    fn advance(&mut self, ahead_bytes: u64) -> Result<Option<u64>> {
        let (uploader, launcher, _) = self.uploader()?;
        uploader.advance(launcher, ahead_bytes)
    }

    fn load_report(&self) -> &str {
        &self.load_report
    }

    fn matrix(&mut self, source: &HostTensor) -> Result<Weight> {
        let (uploader, launcher, dtype) = self.uploader()?;
        uploader.matrix(launcher, source, dtype).map(Weight::Plain)
    }

    fn embedding(&mut self, source: &HostTensor) -> Result<Weight> {
        if !self.settings.host_embedding {
            return self.matrix(source);
        }
        let (uploader, launcher, dtype) = self.uploader()?;
        uploader.host_matrix(launcher, source, dtype).map(Weight::Plain)
    }

    fn gate_up(&mut self, gate: &HostTensor, up: &HostTensor) -> Result<GateUp> {
        let (uploader, launcher, dtype) = self.uploader()?;
        Ok(GateUp(Weight::Plain(uploader.interleaved(launcher, (gate, up), dtype)?)))
    }

    fn quantised_matrix(&mut self, source: &QuantTensor) -> Result<Weight> {
        self.packed(|quant, (launcher, uploader)| quant.stored(launcher, uploader, &[source]))
    }

    fn quantised_gate_up(&mut self, gate: &QuantTensor, up: &QuantTensor) -> Result<GateUp> {
        self.packed(|quant, (launcher, uploader)| quant.stored(launcher, uploader, &[gate, up]))
            .map(GateUp)
    }

    fn random_matrix(&mut self, normal: &Normal) -> Result<Weight> {
        let (uploader, launcher, _) = self.uploader()?;
        uploader.random_matrix(launcher, normal).map(Weight::Plain)
    }

    fn random_gate_up(&mut self, gate: &Normal, up: &Normal) -> Result<GateUp> {
        let (uploader, launcher, _) = self.uploader()?;
        uploader.random_interleaved(launcher, (gate, up)).map(Weight::Plain).map(GateUp)
    }

    fn random_quantised_matrix(&mut self, codes: &RandomCodes) -> Result<Weight> {
        self.packed(|quant, (launcher, uploader)| quant.random(launcher, uploader, &[codes]))
    }

    fn random_quantised_gate_up(&mut self, gate: &RandomCodes, up: &RandomCodes) -> Result<GateUp> {
        self.packed(|quant, (launcher, uploader)| quant.random(launcher, uploader, &[gate, up]))
            .map(GateUp)
    }

    fn vector(&mut self, source: &HostTensor) -> Result<DeviceVector> {
        let (uploader, launcher, dtype) = self.uploader()?;
        uploader.vector(launcher, source, dtype)
    }

    fn buffer(&mut self, kind: BufferKind, max_rows: usize, cols: usize) -> Result<DeviceBuffer> {
        self.uploader.iter_mut().for_each(Uploader::free_staging);
        let element_bytes = if kind == BufferKind::Stream { 4 } else { 2 };
        let bytes = max_rows * cols * element_bytes;
        // Rows of padding are multiplied before anything has written them.
        let memory = DeviceMemory::zeroed(&self.launcher.stream, bytes, "activations")?;
        self.comm.iter_mut().for_each(|comm| comm.add_buffer(&memory));
        Ok(DeviceBuffer { memory, kind, max_rows, cols, rows: 0 })
    }

    fn kv_cache(&mut self, spec: KvSpec) -> Result<DeviceKv> {
        self.end_load()?;
        let bytes = spec.num_layers * buffer::kv_layer_bytes(&spec);
        let memory = DeviceMemory::zeroed(&self.launcher.stream, bytes, "KV cache")?;
        self.launcher.stream.wait()?;
        // No rank begins before all have their weights: devices wait for each other then.
        let Cuda { comm, launcher, settings, .. } = self;
        comm.as_mut().map_or(Ok(()), |comm| comm.meet(&launcher.kernels, settings.dtype))?;
        Ok(DeviceKv { memory, spec })
    }

    fn warm_up_rows(&self) -> Vec<usize> {
        let most = self.settings.limits.max_sequences;
        let mut sizes: Vec<usize> = (1..=most).map(|rows| bucket(rows).min(most)).collect();
        sizes.dedup();
        // Once to time products, once to be recorded.
        sizes.into_iter().flat_map(|rows| [rows, rows]).collect()
    }

    fn begin_step(&mut self, batch: &Batch, rope: &RopeStep) -> Result<StepStart> {
        self.context().enter()?;
        assert!(self.pending.len() < 2, "two steps are on their way");
        self.failed = None;
        self.replayed = false;
        self.comm.iter().for_each(Communicator::begin_step);
        let padded = self.graph_rows(batch);
        self.step.upload(&self.launcher.stream, batch, rope, padded)?;
        self.marks[self.step.turn].0.set(&self.launcher.stream)?;
        if let Some(rows) = padded {
            if let Some(graph) = self.graphs.get(&rows) {
                graph.launch(&self.launcher.stream)?;
                self.replayed = true;
                return Ok(StepStart::Replayed);
            }
            if !self.rehearsed.insert(rows) {
                Graph::begin(&self.launcher.stream)?;
                self.recording = Some(rows);
            }
        }
        let result = self.launcher.rope_angles(&self.step, &self.angles);
        self.note(result);
        Ok(StepStart::Run)
    }

    fn embed(&mut self, table: &Weight, _token_ids: &[u32], out: &mut DeviceBuffer) {
        let result = self.launcher.embed(&self.step, table, self.sampler.drawn(), out);
        self.note(result);
    }

    fn add_norm(
        &mut self,
        delta: Option<&DeviceBuffer>,
        residual: &mut DeviceBuffer,
        weight: &DeviceVector,
        epsilon: f32,
        out: &mut DeviceBuffer,
    ) {
        let result = self.launcher.add_norm(delta, residual, weight, epsilon, out);
        self.note(result);
    }

    fn linear(
        &mut self,
        x: &DeviceBuffer,
        weight: &Weight,
        bias: Option<&DeviceVector>,
        out: &mut DeviceBuffer,
    ) {
        let result = self.product(x, weight, bias, out);
        self.note(result);
    }

    fn swiglu(&mut self, x: &DeviceBuffer, gate_up: &GateUp, out: &mut DeviceBuffer) {
        let result = self.gate_up_product(x, &gate_up.0, out);
        self.note(result);
    }

    fn rope_kv_write(
        &mut self,
        _batch: &Batch,
        _rope: &RopeStep,
        heads: HeadShape,
        qkv: &mut DeviceBuffer,
        (kv, layer): (&mut DeviceKv, usize),
    ) {
        // Rows alone in their sequence are rotated and written by the decode kernel itself.
        if self.step.extents.longest > 1 {
            let slots = self.step.addresses().many_slots;
            let target = (&*kv, layer);
            let result =
                self.launcher.rope_kv_write(&self.step, &self.angles, heads, qkv, target, slots);
            self.note(result);
        }
    }

    fn attention(
        &mut self,
        _batch: &Batch,
        heads: HeadShape,
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        out: &mut DeviceBuffer,
    ) {
        out.set_rows(qkv.rows());
        assert!(out.cols() == heads.num_heads * heads.head_dim && out.kind() == qkv.kind());
        self.launcher.check_heads(&self.step.extents, heads, qkv, kv);
        let target = (kv, layer);
        if self.step.extents.has_single {
            let shape = (heads, &self.angles);
            let result = self.decode.run(&self.launcher, &self.step, shape, qkv, target, out);
            self.note(result);
        }
        if self.step.extents.longest > 1 {
            let result = self.prefill.run(&self.launcher, &self.step, heads, qkv, target, out);
            self.note(result);
        }
    }

    fn gather_rows(&mut self, x: &DeviceBuffer, _rows: &[u32], out: &mut DeviceBuffer) {
        let owners = self.comm.as_ref().and_then(|comm| comm.owners_of(x));
        let result = self.launcher.gather_rows(&self.step, (x, owners), out);
        self.note(result);
    }

    fn all_reduce(&mut self, x: &mut DeviceBuffer) -> Result<()> {
        if let Some(comm) = &self.comm {
            let result = comm.all_reduce(&self.launcher, x);
            self.note(result);
        }
        Ok(())
    }

    fn hand_over(
        &mut self,
        _batch: &Batch,
        from_to: (usize, usize),
        x: &mut DeviceBuffer,
        delta: &DeviceBuffer,
    ) -> Result<()> {
        x.set_rows(self.step.extents.rows);
        if let Some(comm) = &self.comm {
            let result = comm.hand_over(&self.launcher, from_to, (x, delta));
            self.note(result);
        }
        Ok(())
    }

    fn finish_step(&mut self, outputs: StepOutputs<'_, DeviceBuffer>) -> Result<()> {
        self.finish(outputs)
    }

    fn collect_step(&mut self, _: Option<&DeviceBuffer>, output: &mut Output) -> Result<()> {
        self.collect(output)
    }

    fn abandon(&mut self) {
        self.comm.iter().for_each(|comm| comm.group.abandon());
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let _ = self.context().enter();
        if self.recording.take().is_some() {
            // A panic came between the ops: nothing can be freed while they are being recorded.
            let _ = Graph::end(&self.launcher.stream);
        }
        let _ = self.launcher.stream.wait();
    }
}
