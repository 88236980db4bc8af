//! One safe, typed wrapper per kernel: it checks shapes, then launches once. What a kernel computes
//! stands at the head of its file in `cuda/`.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUlaunchAttributeID_enum as AttributeId};

use super::buffer::{DeviceBuffer, DeviceKv, DeviceVector, Kind, Weight};
use super::driver::{Stream, check};
use super::faults::{self, LAUNCH};
use super::kernels::{Kernel, Kernels};
use super::memory::DeviceMemory;
use super::owners::Owners;
use super::pending::PendingLinear;
use super::skinny::SkinnyLinear;
use super::step::{Extents, StepInputs};
use crate::backend::HeadShape;
use crate::backend::random::Normal;
use crate::error::Result;
use crate::tensor::Dtype;

/// A number as the argument of a kernel: CUDA reads as many bytes as the parameter has, so an
/// argument of any size is the low end of a word.
pub(super) fn int(value: usize) -> u64 {
    value as u64
}

/// The same for a float.
fn float(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// Most arguments of a kernel.
const MAX_ARGUMENTS: usize = 16;

/// Grid, block and memory of a launch.
#[derive(Clone, Copy)]
pub(super) struct Config {
    pub(super) grid: (u32, u32, u32),
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// The blocks wait for each other: launch all at once or not at all.
    pub(super) cooperative: bool,
    /// Blocks that run side by side and see each other's shared memory; 1 before Hopper.
    pub(super) cluster: u32,
}

impl Config {
    /// A one-dimensional grid without dynamic shared memory.
    fn line(blocks: usize, threads: u32) -> Config {
        let grid = (blocks as u32, 1, 1);
        Config { grid, threads, shared_bytes: 0, cooperative: false, cluster: 1 }
    }

    /// What the driver is told besides. On Hopper kernels may start while the one before still runs.
    fn attributes(&self, is_hopper: bool) -> Vec<sys::CUlaunchAttribute> {
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::with_capacity(2);
        if self.cooperative {
            let value = sys::CUlaunchAttributeValue { cooperative: 1 };
            attributes.push(attribute(AttributeId::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value));
        } else if is_hopper {
            let id = AttributeId::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
            attributes.push(attribute(id, value));
        }
        if self.cluster > 1 {
            let size =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: self.cluster, y: 1, z: 1 };
            let value = sys::CUlaunchAttributeValue { clusterDim: size };
            attributes.push(attribute(AttributeId::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value));
        }
        attributes
    }
}

/// A norm `out = norm(residual += delta) * weight` of `rows` rows of `cols`, by addresses; no delta
/// is 0.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) out: u64,
    pub(super) residual: u64,
    pub(super) delta: u64,
    pub(super) weight: u64,
    pub(super) epsilon: f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Every kernel of one dtype, and the stream they go to.
pub(super) struct Launcher {
    pub(super) stream: Stream,
    pub(super) kernels: Kernels,
    pub(super) skinny: SkinnyLinear,
    /// A linear of a few rows, which waits for the op after it.
    pub(super) pending: PendingLinear,
    dtype: Dtype,
    embed: Kernel,
    add_norm: Kernel,
    silu_mul: Kernel,
    gather_rows: Kernel,
    rope_angles: Kernel,
    rope_kv_write: Kernel,
    random_normal: Kernel,
}

impl Launcher {
    /// The kernels for weights of `dtype` (bf16 or f16).
    pub(super) fn new(stream: Stream, kernels: Kernels, dtype: Dtype) -> Result<Launcher> {
        let typed = |name: &str| kernels.get(&format!("{name}_{}", dtype.name()), 0);
        Ok(Launcher {
            embed: typed("embed")?,
            add_norm: typed("add_norm")?,
            silu_mul: typed("silu_mul")?,
            gather_rows: kernels.get("gather_rows", 0)?,
            rope_angles: kernels.get("rope_angles", 0)?,
            rope_kv_write: typed("rope_kv_write")?,
            random_normal: typed("random_normal")?,
            skinny: SkinnyLinear::new(&kernels, dtype)?,
            pending: PendingLinear::default(),
            stream,
            kernels,
            dtype,
        })
    }

    /// `out[row] = table[token_ids[row]]`, where an id may be fed from `drawn`, the tokens of the step
    /// before. `out [rows, hidden]` f32.
    pub(super) fn embed(
        &self,
        step: &StepInputs,
        table: &Weight,
        drawn: u64,
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(step.extents.rows);
        let table = table.plain();
        assert!(table.cols == out.cols && out.kind == Kind::Stream);
        let ids = step.addresses().token_ids;
        let arguments = [out.address(), table.address(), ids, drawn, int(out.cols)];
        self.launch(self.embed, Config::line(out.rows, 256), &arguments)
    }

    /// `residual += delta`; `out = norm(residual) * weight`.
    pub(super) fn add_norm(
        &self,
        delta: Option<&DeviceBuffer>,
        residual: &DeviceBuffer,
        weight: &DeviceVector,
        epsilon: f32,
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(residual.rows);
        assert!(residual.kind == Kind::Stream && out.kind == Kind::Activation);
        assert!(residual.cols == out.cols && weight.len == out.cols && out.cols.is_multiple_of(4));
        assert!(delta.is_none_or(|d| {
            d.kind == Kind::Stream && d.cols == residual.cols && d.rows == residual.rows
        }));
        let norm = Norm {
            out: out.address(),
            residual: residual.address(),
            delta: delta.map_or(0, DeviceBuffer::address),
            weight: weight.address(),
            epsilon,
            rows: out.rows,
            cols: out.cols,
        };
        if self.pending.take_norm(&norm) { Ok(()) } else { self.launch_norm(&norm) }
    }

    /// A norm by itself.
    pub(super) fn launch_norm(&self, norm: &Norm) -> Result<()> {
        let Norm { out, residual, delta, weight, epsilon, rows, cols } = *norm;
        let arguments = [out, residual, delta, weight, float(epsilon), int(cols)];
        self.launch(self.add_norm, Config::line(rows, 512), &arguments)
    }

    /// `out = up * silu(gate)`; `gate_up [rows, 2 * width]` interleaved in eights.
    pub(super) fn silu_mul(&self, gate_up: &DeviceBuffer, out: &mut DeviceBuffer) -> Result<()> {
        out.set_rows(gate_up.rows);
        assert!(gate_up.kind == Kind::Activation && out.kind == Kind::Activation);
        assert!(gate_up.cols == 2 * out.cols && out.cols.is_multiple_of(8));
        let groups = (out.rows * out.cols / 8) as u64;
        let blocks = groups.div_ceil(256).min(16 * u64::from(self.num_sms()));
        let arguments = [out.address(), gate_up.address(), groups];
        self.launch(self.silu_mul, Config::line(blocks as usize, 256), &arguments)
    }

    /// `out[i] = x[logits_rows[i]]`; the rows are with their owners, if it is said whose they are.
    pub(super) fn gather_rows(
        &self,
        step: &StepInputs,
        (x, owners): (&DeviceBuffer, Option<&Owners>),
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(step.extents.logits_rows);
        assert!(x.kind == out.kind && x.cols == out.cols);
        // Rows are copied as words of 32 bits, whatever they hold.
        let words = if x.kind == Kind::Stream { x.cols } else { x.cols / 2 };
        assert!(words.is_multiple_of(4) && x.cols.is_multiple_of(2));
        let rows = step.addresses().logits_rows;
        if let Some(owners) = owners {
            let wanted = (out.address(), rows, out.rows);
            return owners.gather(self, wanted, (x.rows, x.cols));
        }
        let arguments = [out.address(), x.address(), rows, int(words)];
        self.launch(self.gather_rows, Config::line(out.rows, 256), &arguments)
    }

    /// Cosines and sines `[rows, head_dim / 2]` of a step's rows.
    pub(super) fn rope_angles(&self, step: &StepInputs, angles: &RopeTables) -> Result<()> {
        let (rows, half) = (step.extents.rows, step.limits().head_dim / 2);
        let at = step.addresses();
        let arguments = [
            angles.cos.address(),
            angles.sin.address(),
            at.inv_freq,
            at.positions,
            at.row_sequence,
            int(rows),
            int(half),
        ];
        self.launch(self.rope_angles, Config::line((rows * half).div_ceil(256), 256), &arguments)
    }

    /// Rotates queries and keys in `qkv` and writes keys and values of rows with a slot in `slots`.
    pub(super) fn rope_kv_write(
        &self,
        step: &StepInputs,
        angles: &RopeTables,
        heads: HeadShape,
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        slots: u64,
    ) -> Result<()> {
        self.check_heads(&step.extents, heads, qkv, kv);
        let arguments = [
            qkv.address(),
            kv.layer(layer),
            angles.cos.address(),
            angles.sin.address(),
            step.addresses().query_scale,
            slots,
            int(heads.num_heads),
            int(heads.num_kv_heads),
            int(heads.head_dim),
        ];
        self.launch(self.rope_kv_write, Config::line(qkv.rows, 256), &arguments)
    }

    /// Random numbers from `address` on, `gap` elements of other things after every `gap` of them
    /// (0: none). Elements and gap are multiples of 8; the memory behind `address` holds all.
    pub(super) fn random_normal(&self, address: u64, normal: &Normal, gap: usize) -> Result<()> {
        let elements = normal.rows * normal.cols;
        assert!(normal.dtype == self.dtype, "random numbers of another dtype");
        assert!(elements.is_multiple_of(8) && gap.is_multiple_of(8) && address.is_multiple_of(16));
        let groups = (elements / 8) as u64;
        let blocks = groups.div_ceil(256).min(16 * u64::from(self.num_sms()));
        let arguments = [
            address,
            groups,
            int(gap / 8),
            normal.seed,
            float(normal.mean),
            float(normal.deviation),
        ];
        self.launch(self.random_normal, Config::line(blocks as usize, 256), &arguments)
    }

    /// Rows, heads and cache of an attention op belong together.
    pub(super) fn check_heads(
        &self,
        extents: &Extents,
        heads: HeadShape,
        qkv: &DeviceBuffer,
        kv: &DeviceKv,
    ) {
        assert!(heads.num_heads.is_multiple_of(heads.num_kv_heads));
        assert!(qkv.kind == Kind::Activation && qkv.cols == heads.qkv_cols());
        assert!(qkv.rows == extents.rows && kv.spec.num_kv_heads == heads.num_kv_heads);
        assert!(kv.spec.head_dim == heads.head_dim && kv.spec.dtype == self.dtype);
    }

    pub(super) fn num_sms(&self) -> u32 {
        self.stream.context().device.num_sms
    }

    /// Launches `kernel` with words for arguments: addresses, and what `int` and `float` make.
    pub(super) fn launch(&self, kernel: Kernel, config: Config, words: &[u64]) -> Result<()> {
        let mut pointers: [*mut c_void; MAX_ARGUMENTS] = [null_mut(); MAX_ARGUMENTS];
        assert!(words.len() <= MAX_ARGUMENTS);
        for (pointer, word) in pointers.iter_mut().zip(words) {
            *pointer = std::ptr::from_ref(word).cast_mut().cast();
        }
        self.launch_pointers(kernel, config, &mut pointers)
    }

    /// Launches `kernel` with one struct for its argument.
    pub(super) fn launch_struct<T>(
        &self,
        kernel: Kernel,
        config: Config,
        argument: &T,
    ) -> Result<()> {
        let pointer = std::ptr::from_ref(argument).cast_mut().cast();
        self.launch_pointers(kernel, config, &mut [pointer])
    }

    /// Launches a linear that waits for the op after it: whatever else is queued comes after.
    pub(super) fn flush(&self) -> Result<()> {
        self.pending.flush(self)
    }

    /// Nothing for an empty grid. Kernels may start while the one before still runs: each waits for
    /// it where it must.
    pub(super) fn launch_pointers(
        &self,
        kernel: Kernel,
        config: Config,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        self.flush()?;
        let (x, y, z) = config.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut attributes = config.attributes(self.kernels.is_hopper());
        let launch = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: config.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: config.shared_bytes,
            hStream: self.stream.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let arguments = arguments.as_mut_ptr();
        let result = faults::attempt(LAUNCH, || {
            // SAFETY: the wrappers above pass what the kernel's signature says, and have checked
            // that its accesses stay inside the buffers; all memory outlives the stream's work.
            unsafe { sys::cuLaunchKernelEx(&launch, kernel.0, arguments, null_mut()) }
        });
        check(result, LAUNCH)
    }
}

/// Cosines and sines of a step, `[max_tokens, head_dim / 2]` f32 each.
pub(super) struct RopeTables {
    pub(super) cos: DeviceMemory,
    pub(super) sin: DeviceMemory,
}
