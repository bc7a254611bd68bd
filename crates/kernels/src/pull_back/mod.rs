//! Backward pass from given gradients.

mod autodiff;

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::{DType, Tensor},
};

/// Returns a zero, `[1]`, whose `backward()` starts from `grad` as the gradient of `y`: a
/// vector-Jacobian product of everything that `y` was computed from.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::pull_back;
///
/// let device = Device::default();
/// let x = Tensor::<1>::from_floats([1.0, 2.0], &device).autodiff().require_grad();
/// let y = x.clone() * 3.0;
/// let grads = pull_back(y, Tensor::from_floats([10.0, 20.0], &device)).backward();
/// x.grad(&grads).unwrap().into_data().assert_eq(&[30.0f32, 60.0].into(), true);
/// ```
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn pull_back<const D: usize>(y: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
    let zero = Tensor::zeros([1], (&y.device(), DType::F32));
    pull_back_with(zero, y, grad)
}

/// Returns the zero of [`pull_back`] with one more gradient, that of another `y`, to start from.
///
/// # Panics
/// If the shapes or dtypes of `y` and `grad` differ.
pub fn pull_back_with<const D: usize>(zero: Tensor<1>, y: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
    assert_eq!(y.dims(), grad.dims(), "pull_back: the shapes of y and its gradient");
    assert_eq!(y.dtype(), grad.dtype(), "pull_back: the dtypes of y and its gradient");
    let grad = grad.autodiff().into_dispatch();
    Tensor::from_dispatch(Dispatch::pull_back(zero.into_dispatch(), y.into_dispatch(), grad))
}

/// [`pull_back_with`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait PullBackOps: Backend {
    /// Returns the zero, whose backward pass starts from `grad`, too, as the gradient of `y`.
    #[fusion(meta = |zero, _y, _grad| zero.clone())]
    fn pull_back(
        zero: FloatTensor<Self>,
        y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let _ = (y, grad);
        zero
    }
}

#[cfg(feature = "cpu")]
impl PullBackOps for burn::backend::Flex {}

#[cfg(feature = "cubecl")]
impl PullBackOps for burn_cubecl::CubeBackend {}
