//! Cross-entropy under autodiff.

use super::CrossEntropyOps;
use burn::backend::{
    Autodiff,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // The gradient is one of the results: nothing is left to differentiate.
        let (of_rows, grad) = B::cross_entropy(logits.into_primitive(), targets, smoothing);
        (FloatTensor::<Self>::new(of_rows), FloatTensor::<Self>::new(grad))
    }
}
