//! Which kernels multiply by a matrix: our own where rows are few, cuBLAS elsewhere; those of plain
//! weights (`skinny`, `gemm`) and those of quantised ones (`quant`).

use super::Cuda;
use super::buffer::{DeviceBuffer, DeviceVector, PackedMatrix, Weight};
use super::launch::Launcher;
use super::load::late_weights;
use super::quant::Quant;
use super::upload::Uploader;
use crate::backend::no_quantised_kernels;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

impl Cuda {
    /// `out = x W^T (+ bias)`.
    pub(super) fn product(
        &mut self,
        x: &DeviceBuffer,
        weight: &Weight,
        bias: Option<&DeviceVector>,
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(x.rows());
        let Cuda { launcher, gemm, quant, .. } = self;
        match weight {
            Weight::Plain(weight) if launcher.skinny.fits(x.rows(), weight) => {
                launcher.skinny.linear(launcher, x, weight, bias, out)
            }
            Weight::Plain(weight) => {
                launcher.flush()?;
                gemm.linear(&launcher.stream, x, weight, bias, out)
            }
            Weight::Packed(weight) => {
                of_quantised(quant)?.linear((launcher, gemm), (x, weight, bias), out)
            }
        }
    }

    /// `out = up * silu(gate)` of interleaved matrices.
    pub(super) fn gate_up_product(
        &mut self,
        x: &DeviceBuffer,
        weight: &Weight,
        out: &mut DeviceBuffer,
    ) -> Result<()> {
        out.set_rows(x.rows());
        let Cuda { launcher, gemm, quant, gate_up, .. } = self;
        gate_up.set_rows(x.rows());
        match weight {
            Weight::Plain(weight) if launcher.skinny.fits(x.rows(), weight) => {
                return launcher.skinny.gate_up(launcher, x, weight, out);
            }
            Weight::Plain(weight) => {
                launcher.flush()?;
                gate_up.cols = weight.rows;
                gemm.linear(&launcher.stream, x, weight, None, gate_up)?;
            }
            Weight::Packed(weight) => {
                let quant = of_quantised(quant)?;
                if quant.gate_up(launcher, (x, weight), out)? {
                    return Ok(());
                }
                gate_up.cols = weight.form.rows;
                quant.linear((launcher, gemm), (x, weight, None), gate_up)?;
            }
        }
        launcher.silu_mul(gate_up, out)
    }

    /// A matrix that `pack` makes, where quantised ones can be.
    pub(super) fn packed(
        &mut self,
        pack: impl FnOnce(&mut Quant, (&Launcher, &mut Uploader)) -> Result<PackedMatrix>,
    ) -> Result<Weight> {
        let Cuda { settings, launcher, uploader, quant, .. } = self;
        let quant = quant.as_mut().filter(|_| settings.dtype == Dtype::F16);
        let quant = quant.ok_or_else(no_quantised_kernels)?;
        let uploader = uploader.as_mut().ok_or_else(late_weights)?;
        pack(quant, (launcher, uploader)).map(Weight::Packed)
    }
}

/// A packed matrix is made by what multiplies by it.
fn of_quantised(quant: &mut Option<Quant>) -> Result<&mut Quant> {
    quant.as_mut().ok_or_else(|| Error::EngineFailed {
        reason: "a bug in the library: a quantised matrix in a model that is not".to_string(),
    })
}
