//! Decode attention: rows alone in their sequence, rotated, stored and attended in one launch.

use super::buffer::{DeviceBuffer, DeviceKv};
use super::driver::Stream;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, RopeTables};
use super::memory::DeviceMemory;
use super::step::StepInputs;
use crate::backend::HeadShape;
use crate::batch::PAGE_TOKENS;
use crate::error::Result;
use crate::tensor::Dtype;

/// As `decode_attention.cuh` has them.
const WARPS: usize = 8;
const STAGES: usize = 2;
const BLOCKS_PER_SM: u32 = 1;

/// The one argument of the decode kernel; field by field as in `decode_attention.cuh`.
#[repr(C)]
struct DecodeArguments {
    attended: u64,
    qkv: u64,
    cache: u64,
    cosines: u64,
    sines: u64,
    query_scale: u64,
    cu_seqlens: u64,
    context_lens: u64,
    block_table: u64,
    slots: u64,
    workspace: u64,
    num_seqs: u32,
    max_pages: u32,
    num_heads: u32,
    num_kv_heads: u32,
}

/// The decode kernel for one dtype and head size, with what it works in.
pub(super) struct DecodeAttention {
    kernel: Kernel,
    config: Config,
    workspace: DeviceMemory,
}

impl DecodeAttention {
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        dtype: Dtype,
        head_dim: usize,
    ) -> Result<DecodeAttention> {
        let num_sms = stream.context().device.num_sms;
        let shared_bytes = DecodeAttention::shared_bytes(head_dim);
        let name = format!("decode_attention_{}_{head_dim}", dtype.name());
        let workspace_bytes = DecodeAttention::workspace_bytes(num_sms, head_dim);
        Ok(DecodeAttention {
            kernel: kernels.get(&name, shared_bytes)?,
            config: Config {
                grid: (BLOCKS_PER_SM * num_sms, 1, 1),
                threads: 32 * WARPS as u32,
                shared_bytes: shared_bytes as u32,
                cooperative: false,
                cluster: 1,
            },
            workspace: DeviceMemory::zeroed(stream, workspace_bytes, "attention workspace")?,
        })
    }

    /// Bytes of shared memory that a block of any kernel of the backend needs at most.
    pub(super) fn shared_bytes(head_dim: usize) -> usize {
        WARPS * STAGES * 2 * PAGE_TOKENS * head_dim * 2
            + WARPS * (head_dim + 4) * 4
            + WARPS * (STAGES + 1) * (6 * head_dim + 32)
    }

    /// Bytes of device memory that `new` takes: a counter, and two partial results, for each warp.
    pub(super) fn workspace_bytes(num_sms: u32, head_dim: usize) -> usize {
        let warps = BLOCKS_PER_SM as usize * num_sms as usize * WARPS;
        (4 * warps).next_multiple_of(128) + warps * 8 * (head_dim + 4)
    }

    /// Rotates the rows of `qkv` that are alone in their sequence, stores their keys and values, and
    /// writes their attention to `out`.
    pub(super) fn run(
        &self,
        launcher: &Launcher,
        step: &StepInputs,
        (heads, angles): (HeadShape, &RopeTables),
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        out: &DeviceBuffer,
    ) -> Result<()> {
        let at = step.addresses();
        let arguments = DecodeArguments {
            attended: out.address(),
            qkv: qkv.address(),
            cache: kv.layer(layer),
            cosines: angles.cos.address(),
            sines: angles.sin.address(),
            query_scale: at.query_scale,
            cu_seqlens: at.cu_seqlens,
            context_lens: at.context_lens,
            block_table: at.block_table,
            slots: at.slots,
            workspace: self.workspace.address(),
            num_seqs: step.extents.sequences as u32,
            max_pages: step.limits().max_pages as u32,
            num_heads: heads.num_heads as u32,
            num_kv_heads: heads.num_kv_heads as u32,
        };
        launcher.launch_struct(self.kernel, self.config, &arguments)
    }
}
