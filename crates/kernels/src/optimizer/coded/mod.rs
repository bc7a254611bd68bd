//! Adam with 8-bit moments.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use super::{Step, check};
use crate::dynamic::{BLOCK, CODES};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};

/// Step of Adam on vectors with 8-bit moments; returns the new parameter, codes and absmax.
///
/// # Shapes
/// - param, grad: `[len]`
/// - factor: `[1]`, the factor of the gradient
/// - codes: `[2 · words]`, of `m` and then of `v`, [`CODES`] per word
/// - absmax: `[2 · blocks]`, of `m` and then of `v`, one per [`BLOCK`] values
/// - maps: `[512]`, the [maps](crate::dynamic::maps) of both
///
/// # Panics
/// If the lengths do not fit, or a vector is not in float32.
pub fn adamw_coded(
    param: Tensor<1>,
    grad: Tensor<1>,
    factor: Tensor<1>,
    (codes, absmax): (Tensor<1, Int>, Tensor<1>),
    maps: Tensor<1>,
    step: Step,
) -> (Tensor<1>, (Tensor<1, Int>, Tensor<1>)) {
    let len = param.dims()[0];
    let blocks = 2 * len.div_ceil(BLOCK);
    check(&[(&param, len), (&grad, len), (&factor, 1), (&absmax, blocks), (&maps, 512)]);
    assert_eq!(codes.dims()[0], 2 * len.div_ceil(CODES), "optimizer: the codes of {len} values");
    let [param, grad, factor, absmax, maps] =
        [param, grad, factor, absmax, maps].map(Tensor::into_dispatch);
    let codes = codes.into_dispatch();
    let (param, codes, absmax) =
        Dispatch::adamw_coded(param, grad, factor, codes, absmax, maps, step);
    (Tensor::from_dispatch(param), (Tensor::from_dispatch(codes), Tensor::from_dispatch(absmax)))
}

/// [`adamw_coded`] on primitives, whose lengths it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait AdamWCodedOps: Backend {
    /// Step of Adam with 8-bit moments: `codes` and `absmax` hold those of `m`, then those of `v`;
    /// `maps` are the [maps](crate::dynamic::maps) of both.
    #[fusion(meta = |param, _grad, _factor, codes, absmax, _maps, _step| (
        param.clone(),
        codes.clone(),
        absmax.clone(),
    ))]
    fn adamw_coded(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        maps: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>);
}
