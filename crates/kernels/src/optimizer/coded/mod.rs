//! Adam with 8-bit moments.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use super::{Batch, Step, check};
use crate::dynamic::{BLOCK, CODES};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};

/// A parameter, its gradient and its 8-bit moments, to be updated.
#[derive(Clone, Debug)]
pub struct AdamWCoded {
    /// Value, `[len]`.
    pub param: Tensor<1>,
    /// Gradient, `[len]`.
    pub grad: Tensor<1>,
    /// Codes of `m` and then of `v`, [`CODES`] per word, `[2 · words]`.
    pub codes: Tensor<1, Int>,
    /// Absmax of the blocks of `m` and then of `v`, one per [`BLOCK`] values, `[2 · blocks]`.
    pub absmax: Tensor<1>,
}

/// Step of Adam on vectors with 8-bit moments; returns the new parameter, codes and absmax of each. CUDA
/// takes many in a launch.
///
/// # Shapes
/// - factor: `[1]`, the factor of the gradients
/// - maps: `[512]`, the [maps](crate::dynamic::maps) of both
///
/// # Panics
/// If the lengths of a parameter do not fit, or a vector is not in float32.
pub fn adamw_coded(
    vectors: Vec<AdamWCoded>,
    factor: &Tensor<1>,
    maps: &Tensor<1>,
    step: Step,
) -> Vec<(Tensor<1>, (Tensor<1, Int>, Tensor<1>))> {
    let batch = Batch::new(vectors.iter().filter(|of| of.param.dims()[0] > 0).count());
    let update = |AdamWCoded { param, grad, codes, absmax }: AdamWCoded| {
        let len = param.dims()[0];
        let blocks = 2 * len.div_ceil(BLOCK);
        check(&[(&param, len), (&grad, len), (factor, 1), (&absmax, blocks), (maps, 512)]);
        let words = 2 * len.div_ceil(CODES);
        assert_eq!(codes.dims()[0], words, "optimizer: the codes of {len} values");
        if len == 0 {
            return (param, (codes, absmax));
        }
        let [param, grad, factor, absmax, maps] =
            [param, grad, factor.clone(), absmax, maps.clone()].map(Tensor::into_dispatch);
        let (codes, batch) = (codes.into_dispatch(), batch.clone());
        let (param, codes, absmax) =
            Dispatch::adamw_coded(param, grad, factor, codes, absmax, maps, step, batch);
        let (codes, absmax) = (Tensor::from_dispatch(codes), Tensor::from_dispatch(absmax));
        (Tensor::from_dispatch(param), (codes, absmax))
    };
    vectors.into_iter().map(update).collect()
}

/// [`adamw_coded`] on primitives, whose lengths it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait AdamWCodedOps: Backend {
    /// Step of Adam with 8-bit moments on vectors that are not empty: `codes` and `absmax` hold those of
    /// `m`, then those of `v`; `maps` are the [maps](crate::dynamic::maps) of both. Nothing is to be read
    /// before the last vector of the batch was given.
    #[allow(clippy::too_many_arguments, reason = "what a step reads")]
    #[fusion(meta = |param, _grad, _factor, codes, absmax, _maps, _step, _batch| (
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
        batch: Batch,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>);
}
