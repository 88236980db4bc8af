//! Prefill attention: sequences of many new rows, whose keys and values are in the cache already.
//!
//! Two kernels: one for any GPU, and one for Hopper's matrix units and copy engine.

use std::ffi::c_void;

use super::buffer::{DeviceBuffer, DeviceKv};
use super::driver::Stream;
use super::kernels::{Kernel, Kernels};
use super::launch::{Config, Launcher, int};
use super::memory::DeviceMemory;
use super::step::StepInputs;
use super::tensor_map::MatrixMap;
use crate::backend::HeadShape;
use crate::batch::PAGE_TOKENS;
use crate::error::Result;
use crate::tensor::Dtype;

/// Rows of one tile.
const ROW_TILE: usize = 128;
/// Threads of a block, and bytes of shared memory for an element of a head, of the kernel for any
/// GPU; and of the one for Hopper.
const ANY: (u32, usize) = (128, 512);
const HOPPER: (u32, usize) = (384, 1552);
/// Two counters, by which the blocks of the Hopper kernel share the work.
const COUNTER_BYTES: usize = 8;
/// Sequences of one new row are the decode kernel's.
const NO_FLAGS: u64 = 0;

/// The prefill kernel for one dtype and head size.
pub(super) struct PrefillAttention {
    kernel: Kernel,
    dtype: Dtype,
    threads: u32,
    shared_bytes: usize,
    /// `Some`: the kernel is Hopper's.
    counter: Option<DeviceMemory>,
}

impl PrefillAttention {
    pub(super) fn new(
        stream: &Stream,
        kernels: &Kernels,
        dtype: Dtype,
        head_dim: usize,
    ) -> Result<PrefillAttention> {
        let is_hopper = kernels.is_hopper();
        let (middle, (threads, bytes)) = if is_hopper { ("sm90_", HOPPER) } else { ("", ANY) };
        let shared_bytes = bytes * head_dim;
        let name = format!("prefill_attention_{middle}{}_{head_dim}", dtype.name());
        let counter = || DeviceMemory::zeroed(stream, COUNTER_BYTES, "attention workspace");
        Ok(PrefillAttention {
            kernel: kernels.get(&name, shared_bytes)?,
            dtype,
            threads,
            shared_bytes,
            counter: is_hopper.then(counter).transpose()?,
        })
    }

    /// Writes the attention of all rows that are not alone in their sequence to `out`.
    pub(super) fn run(
        &self,
        launcher: &Launcher,
        step: &StepInputs,
        heads: HeadShape,
        qkv: &DeviceBuffer,
        (kv, layer): (&DeviceKv, usize),
        out: &DeviceBuffer,
    ) -> Result<()> {
        let at = step.addresses();
        let inputs = [at.cu_seqlens, at.context_lens, at.block_table];
        let sizes = [
            int(step.limits().max_pages),
            int(step.extents.sequences),
            int(heads.num_heads),
            int(heads.num_kv_heads),
            NO_FLAGS,
        ];
        let mut config = Config {
            grid: (1, 1, 1),
            threads: self.threads,
            shared_bytes: self.shared_bytes as u32,
            cooperative: false,
            cluster: 1,
        };
        let Some(counter) = &self.counter else {
            // Each sequence may end in a tile of its own.
            let tiles = qkv.rows().div_ceil(ROW_TILE) + step.extents.sequences;
            config.grid = (tiles as u32, heads.num_heads as u32, 1);
            let buffers = [out.address(), qkv.address(), kv.layer(layer)];
            let words = [&buffers[..], &inputs, &sizes].concat();
            return launcher.launch(self.kernel, config, &words);
        };
        config.grid = (launcher.num_sms(), 1, 1);
        let queries = (qkv.max_rows, qkv.cols());
        let lines = kv.spec.num_pages * 2 * heads.num_kv_heads * PAGE_TOKENS;
        let query_map = MatrixMap::new(qkv.address(), self.dtype, queries, ROW_TILE)?;
        let cache = (lines, heads.head_dim);
        let cache_map = MatrixMap::new(kv.layer(layer), self.dtype, cache, PAGE_TOKENS)?;
        let words = [&[out.address()][..], &inputs, &[counter.address()], &sizes].concat();
        let mut pointers = vec![query_map.argument(), cache_map.argument()];
        pointers
            .extend(words.iter().map(|word| std::ptr::from_ref(word).cast_mut().cast::<c_void>()));
        launcher.launch_pointers(self.kernel, config, &mut pointers)
    }
}
