//! What waits in host memory has no graph.

use super::{OffloadOps, Slot};
use burn::{
    backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor},
    tensor::DType,
};

impl<B: OffloadOps, C: CheckpointStrategy> OffloadOps for Autodiff<B, C> {
    fn offload(vector: FloatTensor<Self>, slot: Slot) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::offload(vector.into_primitive(), slot))
    }

    fn bring_back(
        receipt: FloatTensor<Self>,
        slot: Slot,
        count: usize,
        dtype: DType,
    ) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::bring_back(receipt.into_primitive(), slot, count, dtype))
    }

    fn arrived(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::arrived(tensor.into_primitive()))
    }
}
