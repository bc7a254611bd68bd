//! Backward pass from a given gradient.

use super::PullBackOps;
use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind, unary},
    },
    tensor::FloatTensor,
};

impl<B: PullBackOps, C: CheckpointStrategy> PullBackOps for Autodiff<B, C> {
    fn pull_back(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PullBack;

        impl<B: PullBackOps> Backward<B, 1> for PullBack {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let grad = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |_one| grad);
            }
        }

        let grad = grad.into_primitive();
        let (y, node) = y.into_parts();
        match PullBack.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(grad.clone(), B::pull_back(y, grad)),
            OpsKind::UnTracked(prep) => prep.finish(B::pull_back(y, grad)),
        }
    }
}
