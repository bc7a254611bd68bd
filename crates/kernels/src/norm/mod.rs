//! RMSNorm.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// Settings of an RMSNorm; an epsilon alone converts to them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Epsilon, added to the mean square.
    pub eps: f64,
    /// Offset of the weight: 0, or 1 for weights that are stored as the difference from 1 (Gemma).
    pub offset: f64,
}

impl From<f64> for NormSpec {
    fn from(eps: f64) -> Self {
        Self { eps, offset: 0.0 }
    }
}

/// RMSNorm (arXiv:1910.07467): `x / sqrt(mean(x²) + eps) · (weight + offset)` over the last
/// dimension, computed in float32 for every dtype.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::rms_norm;
///
/// let device = Device::default();
/// let x = Tensor::<2>::from_floats([[3.0, -3.0]], &device);
/// let weight = Tensor::from_floats([1.0, 2.0], &device);
/// rms_norm(x, weight, 0.0).into_data().assert_eq(&[[1.0f32, -2.0]].into(), true);
/// ```
///
/// # Shapes
/// - x: `[..., width]`
/// - weight: `[width]`
/// - output: as `x`
///
/// # Panics
/// If the widths differ.
pub fn rms_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    spec: impl Into<NormSpec>,
) -> Tensor<D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "rms_norm: the widths of x and its weight");
    let weight = weight.cast(x.dtype()).into_dispatch();
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight, spec.into()))
}

/// [`rms_norm`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait NormOps: Backend {
    /// `x / sqrt(mean(x²) + eps) · (weight + offset)` over the last dimension, computed in float32.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self>;

    /// Gradient of `x`.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self>;
}
