//! SwiGLU.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// SwiGLU (arXiv:2002.05202): `silu(gate) · up`, with `silu(z) = z / (1 + exp(-z))`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::swiglu;
///
/// let device = Device::default();
/// let y = swiglu(Tensor::<1>::from_floats([0.0, 50.0], &device), Tensor::ones([2], &device));
/// y.into_data().assert_eq(&[0.0f32, 50.0].into(), true);
/// ```
///
/// # Shapes
/// - gate, up, output: the same
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: the shapes of gate and up");
    assert_eq!(gate.dtype(), up.dtype(), "swiglu: the dtypes of gate and up");
    Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// [`swiglu`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GatedOps: Backend {
    /// `silu(gate) · up`, with `silu(z) = z / (1 + exp(-z))`, computed in float32.
    #[fusion(dtype = gate, shape = gate)]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Gradients of `gate` and `up`.
    #[fusion(meta = |_grad, gate, up| (gate.clone(), up.clone()))]
    fn swiglu_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
