//! Memory of what lives long: weights, adapters, the state of an optimizer.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

#[cfg(feature = "cubecl")]
pub(crate) use cube::persistent_like;

use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Int, Tensor},
};
use std::collections::HashMap;

/// Copies the parameters of a module to memory of their own ([`persistent`]).
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
/// use burn_lora_kernels::persist;
///
/// let linear = LinearConfig::new(4, 2).init(&Device::default());
/// let weight = linear.weight.val().into_data();
/// assert_eq!(persist(linear).weight.val().into_data(), weight);
/// ```
pub fn persist<M: Module>(module: M) -> M {
    module.map(&mut Persist::default())
}

/// Copies a tensor to memory of its own, which is not a part of the pages that temporary tensors
/// share. CubeCL goes through all parts of those pages at each allocation: a model with an optimizer
/// has thousands, and each step allocates thousands of times. A CPU returns the tensor. The copy has
/// no graph.
///
/// # Shapes
/// - tensor, output: the same
pub fn persistent<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::persistent(tensor.into_dispatch()))
}

/// [`persistent`] for integers.
pub fn persistent_int<const D: usize>(tensor: Tensor<D, Int>) -> Tensor<D, Int> {
    Tensor::from_dispatch(Dispatch::persistent_int(tensor.into_dispatch()))
}

/// Mapper that copies parameters to memory of their own ([`persistent`]); one that several modules share,
/// mapped by the same mapper, stays shared.
#[derive(Default)]
pub struct Persist {
    done: HashMap<ParamId, Tensor<1>>,
}

impl ModuleMapper for Persist {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let (shape, trained) = (value.dims(), value.is_require_grad());
        let flat = || persistent(value.flatten(0, D - 1));
        let value = self.done.entry(id).or_insert_with(flat).clone().reshape(shape);
        let value = if trained { value.require_grad() } else { value };
        Param::from_mapped_value(id, value, mapper)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (id, value, mapper) = param.consume();
        Param::from_mapped_value(id, persistent_int(value), mapper)
    }
}

/// [`persistent`] on primitives.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait PersistOps: Backend {
    /// Copies a tensor to memory of its own.
    #[fusion(dtype = tensor, shape = tensor)]
    fn persistent(tensor: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Copies a tensor of integers to memory of its own.
    #[fusion(dtype = tensor, shape = tensor)]
    fn persistent_int(tensor: IntTensor<Self>) -> IntTensor<Self>;
}
