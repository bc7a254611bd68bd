//! Gated activations: SwiGLU, GeGLU.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// Factor of GELU's approximation, as `gelu(x) = x · sigmoid(GELU · (x + CUBIC · x³))`:
/// `2 sqrt(2 / π)`.
const GELU: f32 = 2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// Factor of the cube in it.
const CUBIC: f32 = 0.044_715;

/// Factor in the other approximation of GELU, `x · sigmoid(QUICK · x)`.
const QUICK: f32 = 1.702;

/// Activation of the gate in a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `z / (1 + exp(-z))`: SiLU, for SwiGLU.
    Silu,
    /// `z / 2 · (1 + tanh(sqrt(2 / π) · (z + 0.044715 z³)))`: the approximation of GELU by tanh
    /// (PyTorch's `gelu_pytorch_tanh`), for GeGLU.
    GeluTanh,
    /// `z / (1 + exp(-1.702 z))`: the approximation of GELU by a sigmoid (transformers'
    /// `quick_gelu`; the activation of gpt-oss).
    QuickGelu,
}

/// Gated activation (arXiv:2002.05202): `activation(gate) · up`, computed in float32 for every
/// dtype.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::{Activation, gated};
///
/// let device = Device::default();
/// let gate = Tensor::<1>::from_floats([0.0, 50.0], &device);
/// for activation in [Activation::Silu, Activation::GeluTanh] {
///     let y = gated(gate.clone(), Tensor::ones([2], &device), activation);
///     y.into_data().assert_eq(&[0.0f32, 50.0].into(), true);
/// }
/// ```
///
/// # Shapes
/// - gate, up, output: the same
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gated: the shapes of gate and up");
    assert_eq!(gate.dtype(), up.dtype(), "gated: the dtypes of gate and up");
    Tensor::from_dispatch(Dispatch::gated(gate.into_dispatch(), up.into_dispatch(), activation))
}

/// Gradients of gate and up, from that of [`gated`], without a graph; in their memory if nobody else holds
/// it.
///
/// # Shapes
/// - grad, gate, up, outputs: the same
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn gated_grad<const D: usize>(
    grad: Tensor<D>,
    [gate, up]: [Tensor<D>; 2],
    activation: Activation,
) -> [Tensor<D>; 2] {
    let same = [grad.dims(), up.dims()] == [gate.dims(); 2];
    assert!(same, "gated: the shapes of gate, up and the gradient");
    let same = [grad.dtype(), up.dtype()] == [gate.dtype(); 2];
    assert!(same, "gated: the dtypes of gate, up and the gradient");
    let [grad, gate, up] = [grad, gate, up].map(|tensor| tensor.inner().into_dispatch());
    let (gate, up) = Dispatch::gated_grad(grad, gate, up, activation);
    [gate, up].map(Tensor::from_dispatch)
}

/// [`gated`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GatedOps: Backend {
    /// `activation(gate) · up`, computed in float32.
    #[fusion(dtype = gate, shape = gate)]
    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// Gradients of `gate` and `up`.
    #[fusion(meta = |_grad, gate, up, _activation| (gate.clone(), up.clone()))]
    fn gated_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
