//! Adam with moments in float32.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use super::{Batch, Step, check};
use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// A parameter, its gradient, `m` and `v`, to be updated.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Value, `[len]`.
    pub param: Tensor<1>,
    /// Gradient, `[len]`.
    pub grad: Tensor<1>,
    /// `m` and `v`, each `[len]`.
    pub moments: [Tensor<1>; 2],
}

/// Step of Adam on vectors; returns the new parameter, `m` and `v` of each. CUDA takes many in a launch.
///
/// # Shapes
/// - factor: `[1]`, the factor of the gradients
///
/// # Panics
/// If the lengths of a parameter do not fit, or a vector is not in float32.
pub fn adamw(
    vectors: Vec<AdamW>,
    factor: &Tensor<1>,
    step: Step,
) -> Vec<(Tensor<1>, [Tensor<1>; 2])> {
    let batch = Batch::new(vectors.iter().filter(|of| of.param.dims()[0] > 0).count());
    let update = |AdamW { param, grad, moments: [m, v] }: AdamW| {
        let len = param.dims()[0];
        check(&[(&param, len), (&grad, len), (factor, 1), (&m, len), (&v, len)]);
        if len == 0 {
            return (param, [m, v]);
        }
        let [param, grad, factor, m, v] =
            [param, grad, factor.clone(), m, v].map(Tensor::into_dispatch);
        let (param, m, v) = Dispatch::adamw(param, grad, factor, m, v, step, batch.clone());
        (Tensor::from_dispatch(param), [m, v].map(Tensor::from_dispatch))
    };
    vectors.into_iter().map(update).collect()
}

/// [`adamw`] on primitives, whose lengths it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait AdamWOps: Backend {
    /// Step of Adam on vectors that are not empty; returns the new parameter, `m` and `v`. The gradient is
    /// multiplied by `factor`. Nothing is to be read before the last vector of the batch was given.
    #[fusion(meta = |param, _grad, _factor, m, v, _step, _batch| (param.clone(), m.clone(), v.clone()))]
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
        batch: Batch,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
