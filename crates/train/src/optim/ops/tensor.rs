//! The operations on tensors: shapes are checked here.

use super::{OptimOps, PARTIALS, Step};
use crate::optim::dynamic::{BLOCK, CODES};
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Int, Tensor},
};

/// Adam on vectors: the new parameter, `m` and `v`.
pub(crate) fn adamw(
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

/// Adam on vectors with moments in 8 bits: the new parameter, codes and absmax.
pub(crate) fn adamw_coded(
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

/// Panics unless these vectors are of these lengths, and in float32.
pub(crate) fn check(tensors: &[(&Tensor<1>, usize)]) {
    for (tensor, len) in tensors {
        assert_eq!(tensor.dims()[0], *len, "optimizer: the length of a vector");
        assert_eq!(tensor.dtype(), DType::F32, "optimizer: the dtype of a vector");
    }
}

/// The sum of the squares of all values of some vectors, `[1]` in float32: of gradients, the square of
/// their global norm. The same vectors give the same bits, on any number of threads.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_train::optim::sum_of_squares;
///
/// let device = Device::default();
/// let vectors = [Tensor::from_floats([1.0, 2.0], &device), Tensor::from_floats([3.0], &device)];
/// assert_eq!(sum_of_squares(vectors, &device).into_scalar::<f32>(), 14.0);
/// ```
///
/// # Panics
/// If a vector is not in float32.
pub fn sum_of_squares(vectors: impl IntoIterator<Item = Tensor<1>>, device: &Device) -> Tensor<1> {
    let partials = Tensor::<1>::zeros([PARTIALS], (device, DType::F32));
    let partials = vectors.into_iter().fold(partials, |partials, vector| {
        check(&[(&vector, vector.dims()[0])]);
        let (vector, partials) = (vector.into_dispatch(), partials.into_dispatch());
        Tensor::from_dispatch(Dispatch::add_squares(vector, partials))
    });
    Tensor::from_dispatch(Dispatch::sum_partials(partials.into_dispatch()))
}
