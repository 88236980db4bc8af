//! What the tests of ops share: backends, random weights and buffers, comparison within bounds.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]
#![allow(clippy::expect_used)]

use std::sync::Arc;

use half::{bf16, f16};
use qwen::backend::comm::Solo;
use qwen::backend::cpu::HostBuffer;
use qwen::backend::cpu::fast::{Fast, Isa};
use qwen::backend::cpu::reference::Reference;
use qwen::backend::{Backend, BufferKind};
use qwen::tensor::{Dtype, HostTensor};

use super::Random;

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / 16_777_216.0;
pub const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

pub fn fast(isa: Isa, threads: usize) -> Fast {
    Fast::with_isa(Arc::new(Solo), 0, threads, isa).expect("instruction set is available")
}

pub fn reference() -> Reference {
    Reference::new(Arc::new(Solo), 0)
}

pub fn round(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::F32 => x,
    }
}

/// N(0, 1/cols) weights.
pub fn weights(random: &mut Random, dtype: Dtype, rows: usize, cols: usize) -> HostTensor {
    let scale = 1.0 / (cols as f32).sqrt();
    let bytes = (0..rows * cols)
        .flat_map(|_| {
            let x = random.normal() * scale;
            match dtype {
                Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                Dtype::F32 => x.to_le_bytes().to_vec(),
            }
        })
        .collect();
    HostTensor::from_vec(dtype, rows, cols, bytes)
}

pub fn normals(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.normal()).collect()
}

/// A buffer of `backend` holding `data`.
pub fn buffer<B: Backend<Buffer = HostBuffer>>(
    backend: &mut B,
    data: &[f32],
    cols: usize,
) -> HostBuffer {
    let rows = data.len() / cols;
    let mut buffer = backend.buffer(BufferKind::Activation, rows, cols).expect("memory");
    buffer.set_rows(rows);
    buffer.data_mut().copy_from_slice(data);
    buffer
}

/// A buffer full of NaN, so that an element that is not written shows.
pub fn poisoned<B: Backend<Buffer = HostBuffer>>(
    backend: &mut B,
    rows: usize,
    cols: usize,
) -> HostBuffer {
    buffer(backend, &vec![f32::NAN; rows * cols], cols)
}

/// Every element within its bound; the mean error well below (rounding errors are random walks). Of
/// few elements the mean itself scatters: by 0.3 of a uniform error, over the root of their number;
/// five times that is let through.
pub fn compare(got: &[f32], want: &[f64], bound: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut sum = 0.0;
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let ratio = (f64::from(got) - want).abs() / bound[index];
        assert!(ratio <= 1.0, "{what}: element {index} is {got}, not {want}: {ratio} of the bound");
        sum += ratio;
    }
    let len = got.len() as f64;
    assert!(sum <= 0.4 * len + 1.5 * len.sqrt(), "{what}: the mean error is near the bound");
}
