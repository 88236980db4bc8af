//! Checkpoints of more bytes than the ring of pinned blocks holds, read from files on their way to the
//! device: warm and cold, given up, refused by CUDA, and all of their bytes reported.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen::backend::Backend;
use qwen::backend::comm::Solo;
use qwen::backend::cpu::fast::Fast;
use qwen::backend::cuda::Device;
use qwen::checkpoint::Checkpoint;
use qwen::checkpoint::shard::{Split, slice};
use qwen::error::{Error, Result};
use qwen::model::config::ModelConfig;
use qwen::model::{Model, Placement, Rank};
use qwen::tensor::{Dtype, HostTensor};

use crate::checkpoint::{Shape, write};
use crate::common::Random;
use crate::device::{backend, gpu, limits};
use crate::model::{LIMITS, Script, allowed, compare_steps, folder, try_load};

/// 189 MiB; an embedding of 32 MiB, and matrices of an MLP in two pieces each.
const SHAPE: Shape = Shape {
    layers: 2,
    hidden: 1024,
    heads: 8,
    width: 8000,
    vocab: 16_384,
    dtype: Dtype::Bf16,
    stretched: false,
};
/// Bytes by which free memory may move on its own.
const QUIET_BYTES: u64 = 64 << 20;

/// A checkpoint of `SHAPE`; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = folder(name);
        write(&path, &mut Random::from_env(), &SHAPE);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn load(
    device: &Device,
    folder: &Path,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Box<dyn Rank>> {
    let config = ModelConfig::open(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let mut sizes = limits(config.head_dim);
    (sizes.max_tokens, sizes.max_sequences) = (LIMITS.max_tokens, LIMITS.max_logits_rows);
    let backend = backend(device, SHAPE.dtype, sizes, (SHAPE.width, SHAPE.vocab));
    let placement = Placement::ALONE;
    Ok(Box::new(Model::load(backend, &checkpoint, &config, placement, LIMITS, progress)?))
}

/// Writes the file to the disk and has the system forget what it knows of it.
fn forget(path: &Path) {
    let file = std::fs::File::open(path).expect("it opens");
    file.sync_all().expect("written");
    // SAFETY: an open file; a hint that changes no data.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0, "posix_fadvise");
}

fn logits(rank: &mut dyn Rank) -> Vec<u32> {
    let mut script = Script { sequences: vec![((0..200).map(|i| i * 80).collect(), 0)] };
    let mut logits = Vec::new();
    rank.forward(&script.step(&[200]), &mut logits).expect("a step");
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The whole of matrix `name`.
fn tensor(checkpoint: &Checkpoint, name: &str) -> HostTensor {
    let (_, rows, cols) = checkpoint.shape(name).expect("it is there");
    let whole = slice(Split::Replicated, rows, cols, 0, 1).expect("a slice");
    checkpoint.tensor(name, rows, cols, &whole).expect("it is there")
}

/// Weights that are given out before they are in place, whatever the readers are ahead.
#[test]
fn what_is_read_ahead_arrives_whole() {
    let Some(device) = gpu() else { return };
    let folder = Folder::new("ahead");
    let checkpoint = Checkpoint::open(&folder.0).expect("a checkpoint");
    for (ahead_bytes, is_cold) in [(0, false), (20 << 20, true), (u64::MAX, false), (1, true)] {
        if is_cold {
            forget(&folder.0.join("model.safetensors"));
        }
        let sizes = limits(SHAPE.hidden / SHAPE.heads);
        let mut cuda = backend(&device, SHAPE.dtype, sizes, (SHAPE.width, SHAPE.vocab));
        cuda.begin_load();
        let mut given = Vec::new();
        let mut told = 0;
        let names = ["wte", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"];
        for layer in 0..SHAPE.layers {
            for name in
                names.map(|name| format!("transformer.{}", name.replace('0', &layer.to_string())))
            {
                let source = tensor(&checkpoint, &format!("{name}.weight"));
                let weight = cuda.matrix(&source).expect("memory");
                given.push((weight, source.bytes().to_vec(), name));
                while let Some(bytes) = cuda.advance(ahead_bytes).expect("it arrives") {
                    told += bytes;
                }
            }
            let [gate, up] = ["w2", "w1"].map(|name| {
                tensor(&checkpoint, &format!("transformer.h.{layer}.mlp.{name}.weight"))
            });
            let pair = cuda.gate_up(&gate, &up).expect("memory");
            let eight = 8 * SHAPE.hidden * 2;
            let eights = gate.bytes().chunks(eight).zip(up.bytes().chunks(eight));
            let want = eights.flat_map(|(gate, up)| [gate, up].concat()).collect();
            given.push((pair.into_matrix(), want, format!("gate and up of {layer}")));
        }
        while let Some(bytes) = cuda.advance(0).expect("it arrives") {
            told += bytes;
        }
        assert_eq!(told, given.iter().map(|(_, want, _)| want.len() as u64).sum::<u64>());
        for (weight, want, name) in &given {
            let got = cuda.plain_bytes(weight).expect("read");
            assert!(got == *want, "{name}, {ahead_bytes} bytes ahead");
        }
    }
}

#[test]
fn a_checkpoint_streams_warm_and_cold() {
    let Some(device) = gpu() else { return };
    let folder = Folder::new("streamed");
    let total = Checkpoint::open(&folder.0).expect("a checkpoint").total_bytes();
    let (mut told, mut calls) = (0, 0);
    let mut warm = load(&device, &folder.0, &mut |bytes| {
        (told, calls) = (told + bytes, calls + 1);
        true
    })
    .expect("it loads");
    assert_eq!(told, total, "bytes reported");
    assert!(calls > total / (8 << 20), "{calls} reports");
    let want = logits(&mut *warm);
    drop(warm);
    for _ in 0..2 {
        forget(&folder.0.join("model.safetensors"));
        let mut cold = load(&device, &folder.0, &mut |_| true).expect("it loads");
        assert!(logits(&mut *cold) == want, "other bits when read from the disk");
    }
    let fast = Fast::new(Arc::new(Solo), 0, 4).expect("threads");
    let mut cpu = try_load(&folder.0, fast, LIMITS).expect("it loads");
    let mut again = load(&device, &folder.0, &mut |_| true).expect("it loads");
    let random = &mut Random::from_env();
    compare_steps(&mut *cpu, &mut *again, random, &SHAPE, allowed(&SHAPE));
}

#[test]
fn a_load_that_is_given_up_leaves_nothing() {
    let Some(device) = gpu() else { return };
    let folder = Folder::new("given-up");
    drop(load(&device, &folder.0, &mut |_| true).expect("it loads"));
    let before = device.free_bytes().expect("asked");
    for nth in [1, 2, 5, 17, 24] {
        let mut calls = 0;
        let given_up = load(&device, &folder.0, &mut |_| {
            calls += 1;
            calls < nth
        });
        assert_eq!(given_up.err(), Some(Error::Cancelled), "after {nth} reports");
        assert_eq!(calls, nth, "it went on");
    }
    let after = device.free_bytes().expect("asked");
    assert!(before.abs_diff(after) < QUIET_BYTES, "{before} bytes free before, {after} after");
}

#[cfg(feature = "test-hooks")]
mod refused {
    use super::*;
    use crate::faults::{MARK, child};
    use qwen::backend::cuda::faults::{UPLOAD, arm, disarm};

    #[test]
    #[ignore = "run in a child by the test below"]
    fn refuse_while_streaming() {
        let device = gpu().expect("a GPU");
        let folder = Folder::new("refused");
        let want = logits(&mut *load(&device, &folder.0, &mut |_| true).expect("it loads"));
        let before = device.free_bytes().expect("asked");
        for nth in [1, 2, 6, 15, 30] {
            arm(UPLOAD, nth);
            let error = load(&device, &folder.0, &mut |_| true).err();
            assert!(disarm(), "copy {nth} never came");
            let is_named = matches!(&error, Some(Error::Device { operation: UPLOAD, .. }));
            assert!(is_named, "copy {nth}: {error:?}");
        }
        let after = device.free_bytes().expect("asked");
        assert!(before.abs_diff(after) < QUIET_BYTES, "{before} bytes free before, {after} after");
        let again = logits(&mut *load(&device, &folder.0, &mut |_| true).expect("it loads"));
        assert!(again == want, "a load after them all");
        eprintln!("{MARK}five copies refused");
    }

    #[test]
    fn a_copy_refused_while_streaming_is_an_error() {
        let Some(_) = gpu() else { return };
        eprintln!("{}", child("streamed::refused::refuse_while_streaming", None));
    }
}
