//! A copy is a leaf: it has no gradient to hand on.

use super::PersistOps;
use burn::backend::{
    Autodiff,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};

impl<B: PersistOps, C: CheckpointStrategy> PersistOps for Autodiff<B, C> {
    fn persistent(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::persistent(tensor.into_primitive()))
    }

    fn persistent_int(tensor: IntTensor<Self>) -> IntTensor<Self> {
        B::persistent_int(tensor)
    }
}
