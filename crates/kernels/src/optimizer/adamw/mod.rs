//! Adam with moments in float32.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use super::{Step, check};
use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// Step of Adam on vectors; returns the new parameter, `m` and `v`.
///
/// # Shapes
/// - param, grad, m, v: `[len]`
/// - factor: `[1]`, the factor of the gradient
///
/// # Panics
/// If the lengths do not fit, or a vector is not in float32.
pub fn adamw(
    param: Tensor<1>,
    grad: Tensor<1>,
    factor: Tensor<1>,
    [m, v]: [Tensor<1>; 2],
    step: Step,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let len = param.dims()[0];
    check(&[(&param, len), (&grad, len), (&factor, 1), (&m, len), (&v, len)]);
    let [param, grad, factor, m, v] = [param, grad, factor, m, v].map(Tensor::into_dispatch);
    let (param, m, v) = Dispatch::adamw(param, grad, factor, m, v, step);
    (Tensor::from_dispatch(param), [m, v].map(Tensor::from_dispatch))
}

/// [`adamw`] on primitives, whose lengths it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait AdamWOps: Backend {
    /// Step of Adam; returns the new parameter, `m` and `v`. The gradient is multiplied by
    /// `factor`.
    #[fusion(meta = |param, _grad, _factor, m, v, _step| (param.clone(), m.clone(), v.clone()))]
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
