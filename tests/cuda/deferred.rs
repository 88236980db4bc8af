//! Quantised weights of a load, given out before they are packed: packed from two staging memories in turn
//! they are what they are one by one; every stored byte is told of, and no other; what CUDA refuses
//! meanwhile is an error and loses nothing.

use std::path::Path;

use qwen::backend::Backend;
use qwen::backend::cuda::{Cuda, Device, Weight};
use qwen::checkpoint::Checkpoint;
use qwen::error::Result;
use qwen::model::config::ModelConfig;
use qwen::model::{Model, Placement};
use qwen::quant::{Bits, QuantTensor};

use crate::common::Random;
use crate::common::quant::{Codes, Order, random_tensor};
use crate::device::{gpu, limits, quantised_backend};
use crate::gptq::{Format, shape, write};
use crate::model::{LIMITS, folder};

/// Small ones, for which staging is lent, and some of which it is too short for; together more than the
/// memory that the backend has for weights.
fn tensors(random: &mut Random) -> Vec<QuantTensor> {
    let sizes =
        [(64, 128), (512, 512), (64, 256), (128, 128), (1024, 1024), (2048, 1024), (64, 64)];
    let codes = |(n, k)| Codes {
        bits: if n == 1024 { Bits::Eight } else { Bits::Four },
        n,
        k,
        size: 64,
        symmetric: k != 512,
        order: Order::Runs,
    };
    sizes.iter().chain(&sizes).map(|&size| random_tensor(random, &codes(size))).collect()
}

fn new_backend(device: &Device) -> Cuda {
    quantised_backend(device, limits(64), (64, 64))
}

/// All of them in one load, read back; and how many bytes were told of.
fn load(cuda: &mut Cuda, tensors: &[QuantTensor]) -> Result<(Vec<Vec<u8>>, u64)> {
    cuda.begin_load();
    let given: Vec<Weight> =
        tensors.iter().map(|tensor| cuda.quantised_matrix(tensor)).collect::<Result<_>>()?;
    let mut told = 0;
    while let Some(bytes) = cuda.advance(0)? {
        told += bytes;
    }
    let read = given.iter().map(|weight| cuda.packed_bytes(weight)).collect::<Result<_>>()?;
    Ok((read, told))
}

#[test]
fn packed_in_turn_is_packed_one_by_one() {
    let Some(device) = gpu() else { return };
    let tensors = tensors(&mut Random::from_env());
    let (found, told) = load(&mut new_backend(&device), &tensors).expect("it loads");
    let mut one_by_one = new_backend(&device);
    for (index, (tensor, found)) in tensors.iter().zip(&found).enumerate() {
        let weight = one_by_one.quantised_matrix(tensor).expect("memory");
        assert!(one_by_one.packed_bytes(&weight).expect("read") == *found, "matrix {index}");
    }
    let stored =
        |tensor: &QuantTensor| tensor.scales().bytes().len() + tensor.codes().bytes().len();
    assert_eq!(told, tensors.iter().map(stored).sum::<usize>() as u64, "bytes told of");
}

/// Zero points are stored in half a byte and sent in two.
#[test]
fn a_load_with_zeros_and_biases_tells_of_all_its_bytes_and_no_more() {
    let Some(device) = gpu() else { return };
    for act_order in [false, true] {
        let folder = folder(&format!("told-{act_order}"));
        let format =
            Format { bits: Bits::Four, size: 32, symmetric: false, act_order, biased: true };
        write(&folder, &mut Random::from_env(), &shape(4, 64, 512), &format);
        let (told, total) = told(&device, &folder);
        assert_eq!(told, total, "act-order: {act_order}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}

/// Bytes that a load of `folder` tells of, and its bytes.
fn told(device: &Device, folder: &Path) -> (u64, u64) {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let config = ModelConfig::open(folder).expect("config.json");
    let mut sizes = limits(config.head_dim);
    (sizes.max_tokens, sizes.max_sequences) = (LIMITS.max_tokens, LIMITS.max_logits_rows);
    let backend = quantised_backend(device, sizes, (config.intermediate_size, config.vocab_size));
    let mut told = 0;
    let mut progress = |bytes| {
        told += bytes;
        true
    };
    let placement = Placement::ALONE;
    Model::load(backend, &checkpoint, &config, placement, LIMITS, &mut progress).expect("it loads");
    (told, checkpoint.total_bytes())
}

#[cfg(feature = "test-hooks")]
mod refused {
    use super::*;
    use crate::faults::{MARK, child};
    use qwen::backend::cuda::faults::{ALLOCATE, LAUNCH, UPLOAD, arm, disarm};
    use qwen::error::Error;

    /// Bytes by which free memory may move on its own.
    const QUIET_BYTES: u64 = 64 << 20;

    /// How often `operation` is refused, the first time, the second and so on, until a load needs no more
    /// of it.
    fn refuse(device: &Device, operation: &'static str, tensors: &[QuantTensor]) -> u32 {
        for nth in 1.. {
            // What a backend itself takes is refused in `injected`.
            let mut cuda = new_backend(device);
            arm(operation, nth);
            let loaded = load(&mut cuda, tensors);
            if !disarm() {
                loaded.unwrap_or_else(|error| panic!("nothing was refused: {error}"));
                return nth - 1;
            }
            match loaded.map(|_| ()).expect_err("it loads") {
                Error::Device { operation: named, .. } => assert_eq!(named, operation, "{nth}"),
                Error::OutOfDeviceMemory { .. } => assert_eq!(operation, ALLOCATE, "{nth}"),
                error => panic!("{operation}, number {nth}: {error:?}"),
            }
        }
        0
    }

    #[test]
    #[ignore = "run in a child by the test below"]
    fn refuse_while_packing() {
        let device = gpu().expect("a GPU");
        let tensors = tensors(&mut Random::from_env());
        let (want, _) = load(&mut new_backend(&device), &tensors).expect("it loads");
        let before = device.free_bytes().expect("asked");
        let mut found = Vec::new();
        for (operation, least) in [(LAUNCH, tensors.len()), (UPLOAD, 40), (ALLOCATE, 6)] {
            let refused = refuse(&device, operation, &tensors);
            assert!(refused as usize >= least, "{operation}: {refused} in a load");
            found.push(format!("{refused} times: {operation}"));
        }
        let after = device.free_bytes().expect("asked");
        assert!(before.abs_diff(after) < QUIET_BYTES, "{before} bytes free before, {after} after");
        let (again, _) = load(&mut new_backend(&device), &tensors).expect("it loads");
        assert!(again == want, "a load after them all");
        eprintln!("{MARK}{}", found.join("; "));
    }

    #[test]
    fn what_is_refused_while_weights_are_packed_is_an_error() {
        let Some(_) = gpu() else { return };
        eprintln!("{}", child("deferred::refused::refuse_while_packing", None));
    }
}
