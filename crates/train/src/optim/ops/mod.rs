//! The operations of the optimizers, as a Burn backend extension: a parameter is updated by one
//! launch, in place where nothing else holds the buffers.
//!
//! [`OptimOps`] is implemented for the CPU (`flex`), for every CubeCL runtime (`cube`) and lazily for
//! fusion (generated). Tensors are contiguous vectors of float32 without a graph.

#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
mod tensor;

use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
#[cfg(feature = "fusion")]
use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};
#[cfg(feature = "cubecl")]
use cubecl::prelude::*;

pub use tensor::sum_of_squares;
pub(crate) use tensor::{adamw, adamw_coded, check};

/// Partial sums of a [`sum_of_squares`].
const PARTIALS: usize = 256;

/// The numbers of one step of Adam: `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
/// `p ← keep · p - size · m / (root · sqrt(v) + eps)`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "cubecl", derive(cubecl::CubeType, cubecl::CubeLaunch))]
pub struct Step {
    /// β₁.
    pub beta1: f32,
    /// `1 - β₁`, which float32 would not give from β₁.
    pub rest1: f32,
    /// β₂.
    pub beta2: f32,
    /// `1 - β₂`.
    pub rest2: f32,
    /// What is left of the parameter by its decay.
    pub keep: f32,
    /// The rate, with the correction of `m`.
    pub size: f32,
    /// The correction of the root of `v`.
    pub root: f32,
    /// Added to the root.
    pub eps: f32,
}

/// The new parameter, `m` and `v`: the arithmetic of every backend.
#[cfg_attr(feature = "cubecl", cubecl::cube)]
fn advance(step: &Step, param: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let m = step.beta1 * m + step.rest1 * grad;
    let v = step.beta2 * v + step.rest2 * grad * grad;
    let param = step.keep * param - step.size * m / (step.root * v.sqrt() + step.eps);
    (param, m, v)
}

/// What a backend does for an optimizer.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion")
)]
pub trait OptimOps: Backend {
    /// Adam on a parameter, its gradient times `factor`, and `m` and `v`: their new values.
    #[fusion(meta = |param, _grad, _factor, m, v, _step| (param.clone(), m.clone(), v.clone()))]
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The same with moments in 8 bits: the codes of `m` and of `v`, and the absmax of the blocks of
    /// each. `maps` are the [maps](crate::optim::dynamic::maps) of both.
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

    /// Adds the squares of `x` to `PARTIALS` partial sums: to which, and in which order, depends on
    /// nothing but its length.
    #[fusion(dtype = partials, shape = partials)]
    fn add_squares(x: FloatTensor<Self>, partials: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The sum of the partial sums, `[1]`.
    #[fusion(meta = |_partials| TensorSpec::new(Shape::new([1]), DType::F32))]
    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self>;
}
