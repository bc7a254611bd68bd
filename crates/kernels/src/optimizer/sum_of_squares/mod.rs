//! The square of a global norm.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use super::{Batch, check};
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::{DType, Device, Tensor},
};

/// Number of partial sums of [`sum_of_squares`].
const PARTIALS: usize = 256;

/// Sum of the squares of all values of some vectors, `[1]` in float32: for gradients, the square of
/// their global norm. Deterministic: the same vectors give the same bits, on any number of threads.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::optimizer::sum_of_squares;
///
/// let device = Device::default();
/// let vectors = [Tensor::from_floats([1.0, 2.0], &device), Tensor::from_floats([3.0], &device)];
/// assert_eq!(sum_of_squares(vectors, &device).into_scalar::<f32>(), 14.0);
/// ```
///
/// # Panics
/// If a vector is not in float32.
pub fn sum_of_squares(vectors: impl IntoIterator<Item = Tensor<1>>, device: &Device) -> Tensor<1> {
    let vectors: Vec<_> = vectors.into_iter().filter(|vector| vector.dims()[0] > 0).collect();
    let batch = Batch::new(vectors.len());
    let partials = Tensor::<1>::zeros([PARTIALS], (device, DType::F32));
    let partials = vectors.into_iter().fold(partials, |partials, vector| {
        check(&[(&vector, vector.dims()[0])]);
        let (vector, partials) = (vector.into_dispatch(), partials.into_dispatch());
        Tensor::from_dispatch(Dispatch::add_squares(vector, partials, batch.clone()))
    });
    Tensor::from_dispatch(Dispatch::sum_partials(partials.into_dispatch()))
}

/// [`sum_of_squares`] on primitives.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait SumOfSquaresOps: Backend {
    /// Adds the squares of `x`, which is not empty, to `PARTIALS` partial sums. The assignment to partial sums
    /// and the order depend only on the lengths of the vectors of the batch.
    #[fusion(dtype = partials, shape = partials)]
    fn add_squares(
        x: FloatTensor<Self>,
        partials: FloatTensor<Self>,
        batch: Batch,
    ) -> FloatTensor<Self>;

    /// Sum of the partial sums, `[1]`.
    #[fusion(meta = |_partials| TensorSpec::new(Shape::new([1]), DType::F32))]
    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self>;
}
