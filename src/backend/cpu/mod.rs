//! The CPU backends: `reference` (plain loops: the specification) and `fast` (blocked, SIMD,
//! threaded), and the host activation buffer that both use.

pub mod fast;
pub mod reference;

use super::comm::Comm;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// Activations in host memory, `[rows, cols]` f32, row-major.
pub struct HostBuffer {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl HostBuffer {
    /// Room for `max_rows` rows, zeroed; holds no row yet.
    pub fn new(max_rows: usize, cols: usize) -> Result<HostBuffer> {
        let data = zeroed(max_rows * cols, "activations")?;
        Ok(HostBuffer { data, rows: 0, cols })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Sets the rows in use; their contents are whatever was there.
    pub fn set_rows(&mut self, rows: usize) {
        assert!(rows * self.cols <= self.data.len(), "more rows than the buffer holds");
        self.rows = rows;
    }

    /// The rows in use.
    pub fn data(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    /// The rows in use.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }

    /// Becomes the rows `rows` of `from`, in that order.
    pub fn gather(&mut self, from: &HostBuffer, rows: &[u32]) {
        self.set_rows(rows.len());
        for (to, &row) in rows.iter().enumerate() {
            self.row_mut(to).copy_from_slice(from.row(row as usize));
        }
    }

    /// Appends the rows `rows`, in that order, to `out`.
    fn append_rows(&self, rows: &[u32], out: &mut Vec<f32>) {
        rows.iter().for_each(|&row| out.extend_from_slice(self.row(row as usize)));
    }

    /// Adds `other`, which has as many rows and columns.
    pub fn add(&mut self, other: &HostBuffer) {
        let terms = other.data();
        let data = self.data_mut();
        assert!(data.len() == terms.len(), "buffers of two shapes");
        data.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
    }

    /// What `Backend::hand_over` does on rank `rank`, of which this is the buffer: `rows` rows of it.
    fn hand_over(
        &mut self,
        (comm, rank): (&dyn Comm, usize),
        (from, to): (usize, usize),
        rows: usize,
        delta: &HostBuffer,
    ) -> Result<()> {
        if rank == from {
            self.add(delta);
        }
        self.set_rows(rows);
        comm.hand_over(rank, (from, to), self.data_mut())
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data()[index * self.cols..(index + 1) * self.cols]
    }

    /// Row `index`.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.data_mut()[index * cols..(index + 1) * cols]
    }
}

/// `len` zero elements, or a typed error where the host cannot give them. The operating system
/// hands out zero pages as they are first used: a large cache costs nothing until it fills.
pub(crate) fn zeroed<T: Clone + Default>(len: usize, purpose: &'static str) -> Result<Vec<T>> {
    // The trial tells what `vec!` would abort on.
    Vec::<T>::new().try_reserve_exact(len).map_err(|_| Error::OutOfHostMemory {
        purpose,
        needed_bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
        available_bytes: None,
    })?;
    Ok(vec![T::default(); len])
}

/// `x` rounded to `dtype` (to nearest, ties to even) and back.
pub(crate) fn round_to(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::F32 => x,
    }
}

/// What a linear's input is rounded to for weights of `dtype`.
pub(crate) fn input_dtype(weight: Dtype) -> Dtype {
    match weight {
        Dtype::Bf16 => Dtype::Bf16,
        Dtype::F16 | Dtype::F32 => Dtype::F32,
    }
}
