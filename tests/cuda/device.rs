//! The GPU of the tests, and a backend on it.

use qwen::backend::cuda::{Cuda, CudaSettings, Device, QuantLimits, StepLimits};
use qwen::tensor::Dtype;

/// Device 0; or nothing, said aloud (and a failure if a GPU is required).
pub(crate) fn gpu() -> Option<Device> {
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("QWEN_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "a GPU is required: {error}");
            eprintln!("SKIPPED, no GPU: {error}");
            None
        }
    }
}

/// Devices 0 to `count` - 1; or nothing, said aloud (and a failure if `QWEN_REQUIRE_GPUS` says that there
/// are as many).
pub(crate) fn gpus(count: usize) -> Option<Vec<Device>> {
    match (0..count).map(Device::open).collect() {
        Ok(devices) => Some(devices),
        Err(error) => {
            let required = std::env::var("QWEN_REQUIRE_GPUS").ok().and_then(|n| n.parse().ok());
            assert!(required.is_none_or(|n: usize| n < count), "{count} GPUs required: {error}");
            eprintln!("SKIPPED, fewer than {count} GPUs: {error}");
            None
        }
    }
}

/// How many devices a model is divided over: `QWEN_TEST_WORLD`, or two.
pub(crate) fn world() -> usize {
    std::env::var("QWEN_TEST_WORLD").map_or(2, |n| n.parse().expect("a number of devices"))
}

/// As many devices.
pub(crate) fn several() -> Option<Vec<Device>> {
    gpus(world())
}

/// The first `count` devices, as the option `devices` names them.
pub(crate) fn list(count: usize) -> String {
    Vec::from_iter((0..count).map(|index| index.to_string())).join(",")
}

/// Extents for small steps.
pub(crate) fn limits(head_dim: usize) -> StepLimits {
    StepLimits {
        max_tokens: 4096,
        max_sequences: 64,
        max_pages: 2048,
        cache_pages: 4096,
        head_dim,
        usable_ids: 0,
    }
}

/// A backend with room for `mlp_width` and `logits` columns.
pub(crate) fn backend(
    device: &Device,
    dtype: Dtype,
    limits: StepLimits,
    (mlp_width, vocab): (usize, usize),
) -> Cuda {
    let settings = settings(dtype, limits, (mlp_width, vocab));
    Cuda::new(device.clone(), settings).expect("a backend on the GPU")
}

/// The same for quantised weights (and f16).
pub(crate) fn quantised_backend(
    device: &Device,
    limits: StepLimits,
    sizes: (usize, usize),
) -> Cuda {
    // What they need beyond this is taken as they come; staging of the small ones is lent.
    let quantised = Some(QuantLimits { staging_bytes: 32 << 10, ..QuantLimits::default() });
    let settings = CudaSettings { quantised, ..settings(Dtype::F16, limits, sizes) };
    Cuda::new(device.clone(), settings).expect("a backend on the GPU")
}

pub(crate) fn settings(
    dtype: Dtype,
    limits: StepLimits,
    (mlp_width, vocab): (usize, usize),
) -> CudaSettings {
    CudaSettings {
        dtype,
        limits: StepLimits { usable_ids: vocab, ..limits },
        mlp_width,
        // Some weights lie in it, and some beside it.
        weight_bytes: 1 << 20,
        quantised: None,
        host_embedding: false,
        autotune: true,
    }
}
