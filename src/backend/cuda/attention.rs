//! Launches of the two attention kernels: rows alone in their sequence (decode), and all others
//! (prefill). A step may have both.

use super::buffer::{DeviceBuffer, DeviceKv};
use super::driver::Stream;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, RopeTables, int};
use super::memory::DeviceMemory;
use super::step::StepInputs;
use crate::backend::HeadShape;
use crate::batch::PAGE_TOKENS;
use crate::error::Result;
use crate::tensor::Dtype;

/// Rows of one block of the prefill kernel, and keys of one of its tiles.
const ROW_TILE: usize = 128;
const KEY_TILE: usize = 64;
const PREFILL_THREADS: u32 = 128;

/// As `decode_attention.cu` has them.
const DECODE_THREADS: u32 = 128;
const DECODE_BLOCKS_PER_SM: u32 = 2;
const DECODE_RING_PAGES: usize = 12;
const DECODE_WARPS: usize = 4;

/// The one argument of the decode kernel; field by field as in `decode_attention.cu`.
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

/// The attention kernels for one dtype and head size, with what they work in.
pub(super) struct Attention {
    decode: Kernel,
    decode_blocks: u32,
    decode_shared_bytes: usize,
    decode_workspace: DeviceMemory,
    prefill: Kernel,
    prefill_shared_bytes: usize,
}

impl Attention {
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        dtype: Dtype,
        head_dim: usize,
    ) -> Result<Attention> {
        let named = |name: &str, shared_bytes| {
            kernels.get(&format!("{name}_{}_{head_dim}", dtype.name()), shared_bytes)
        };
        let decode_blocks = DECODE_BLOCKS_PER_SM * stream.context().device.num_sms;
        let decode_shared_bytes = DECODE_RING_PAGES * 2 * PAGE_TOKENS * head_dim * 2
            + 2 * DECODE_WARPS * (head_dim + 4) * 4
            + DECODE_RING_PAGES * 8;
        let prefill_shared_bytes = (ROW_TILE + 2 * KEY_TILE) * head_dim * 2;
        let workspace_bytes = Attention::workspace_bytes(stream.context().device.num_sms, head_dim);
        Ok(Attention {
            decode: named("decode_attention", decode_shared_bytes)?,
            decode_blocks,
            decode_shared_bytes,
            decode_workspace: DeviceMemory::zeroed(stream, workspace_bytes, "attention workspace")?,
            prefill: named("prefill_attention", prefill_shared_bytes)?,
            prefill_shared_bytes,
        })
    }

    /// Bytes of device memory that `new` takes: a counter, and two partial results, for each block.
    pub(super) fn workspace_bytes(num_sms: u32, head_dim: usize) -> usize {
        let blocks = (DECODE_BLOCKS_PER_SM * num_sms) as usize;
        (4 * blocks).next_multiple_of(128) + blocks * 8 * (head_dim + 4)
    }

    /// Rotary embedding and the write of keys and values for all rows that the decode kernel does
    /// not do itself; then attention of all rows.
    pub(super) fn run(
        &self,
        launcher: &Launcher,
        step: &StepInputs,
        (heads, angles): (HeadShape, &RopeTables),
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(qkv.rows());
        assert!(out.cols() == heads.num_heads * heads.head_dim && out.kind() == qkv.kind());
        assert!(heads.head_dim == step.limits().head_dim);
        if step.extents.has_single {
            self.decode(launcher, step, (heads, angles), qkv, (kv, layer), out)?;
        }
        if step.extents.longest > 1 {
            self.prefill(launcher, step, heads, qkv, (kv, layer), out)?;
        }
        Ok(())
    }

    fn decode(
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
            workspace: self.decode_workspace.address(),
            num_seqs: step.extents.sequences as u32,
            max_pages: step.limits().max_pages as u32,
            num_heads: heads.num_heads as u32,
            num_kv_heads: heads.num_kv_heads as u32,
        };
        let config = Config {
            grid: (self.decode_blocks, 1, 1),
            threads: DECODE_THREADS,
            shared_bytes: self.decode_shared_bytes as u32,
        };
        launcher.launch_struct(self.decode, config, &arguments)
    }

    fn prefill(
        &self,
        launcher: &Launcher,
        step: &StepInputs,
        heads: HeadShape,
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        out: &DeviceBuffer,
    ) -> Result<()> {
        let at = step.addresses();
        // Each sequence may end in a tile of its own.
        let tiles = qkv.rows().div_ceil(ROW_TILE) + step.extents.sequences;
        let config = Config {
            grid: (tiles as u32, heads.num_heads as u32, 1),
            threads: PREFILL_THREADS,
            shared_bytes: self.prefill_shared_bytes as u32,
        };
        let no_flags = 0;
        let arguments = [
            out.address(),
            qkv.address(),
            kv.layer(layer),
            at.cu_seqlens,
            at.context_lens,
            at.block_table,
            int(step.limits().max_pages),
            int(step.extents.sequences),
            int(heads.num_heads),
            int(heads.num_kv_heads),
            no_flags,
        ];
        launcher.launch(self.prefill, config, &arguments)
    }
}
