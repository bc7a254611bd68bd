//! Backward pass from a given gradient.

mod autodiff;

#[cfg(feature = "fusion")]
use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};
use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
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
    assert_eq!(y.dims(), grad.dims(), "pull_back: the shapes of y and its gradient");
    assert_eq!(y.dtype(), grad.dtype(), "pull_back: the dtypes of y and its gradient");
    Tensor::from_dispatch(Dispatch::pull_back(y.into_dispatch(), grad.autodiff().into_dispatch()))
}

/// [`pull_back`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait PullBackOps: Backend {
    /// Returns a zero whose backward pass starts from `grad` as the gradient of `y`.
    #[fusion(meta = |_y, _grad| TensorSpec::new(Shape::new([1]), DType::F32))]
    fn pull_back(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The zero of a backend without a graph.
#[cfg(any(feature = "cpu", feature = "cubecl"))]
fn zero<B: Backend>(y: &FloatTensor<B>) -> FloatTensor<B> {
    use burn::backend::TensorMetadata;
    B::float_zeros([1].into(), &y.device(), burn::tensor::FloatDType::F32)
}

#[cfg(feature = "cpu")]
impl PullBackOps for burn::backend::Flex {
    fn pull_back(y: FloatTensor<Self>, _grad: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&y)
    }
}

#[cfg(feature = "cubecl")]
impl PullBackOps for burn_cubecl::CubeBackend {
    fn pull_back(y: FloatTensor<Self>, _grad: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&y)
    }
}
