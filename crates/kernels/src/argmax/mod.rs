//! The largest element of each row.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
#[cfg(feature = "fusion")]
use burn::tensor::{DType, Shape};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch,
        autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};

/// Index of the largest element of each row, of several the first; NaN is never the largest. Burn's own `argmax` tries several
/// kernels at first, and measures the device for it, which takes seconds.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::argmax_rows;
///
/// let logits = Tensor::<2>::from_floats([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]], &Device::default());
/// argmax_rows(logits).into_data().assert_eq(&[1i32, 0].into(), true);
/// ```
///
/// # Shapes
/// - x: `[rows, width]`
/// - output: `[rows]`, in int32
///
/// # Panics
/// If a row has no elements, or more than 2^24.
pub fn argmax_rows(x: Tensor<2>) -> Tensor<1, Int> {
    let width = x.dims()[1];
    assert!((1..=1 << 24).contains(&width), "argmax: rows of {width}");
    Tensor::from_dispatch(Dispatch::argmax_rows(x.inner().into_dispatch()))
}

/// [`argmax_rows`] for a row in host memory; 0 if it has no elements.
pub fn argmax(row: &[f32]) -> usize {
    let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
    row.iter().copied().enumerate().fold((0, f32::NEG_INFINITY), better).0
}

/// [`argmax_rows`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait ArgmaxOps: Backend {
    /// Index of the largest element of each row, in int32.
    #[fusion(meta = |x| TensorSpec::new(Shape::from([x.shape[0]]), DType::I32))]
    fn argmax_rows(x: FloatTensor<Self>) -> IntTensor<Self>;
}

impl<B: ArgmaxOps, C: CheckpointStrategy> ArgmaxOps for Autodiff<B, C> {
    fn argmax_rows(x: FloatTensor<Self>) -> IntTensor<Self> {
        B::argmax_rows(x.into_primitive())
    }
}
