//! Backward pass from given gradients.

use super::PullBackOps;
use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

impl<B: PullBackOps, C: CheckpointStrategy> PullBackOps for Autodiff<B, C> {
    fn pull_back(
        zero: FloatTensor<Self>,
        y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PullBack;

        impl<B: PullBackOps> Backward<B, 2> for PullBack {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let seed = grads.consume::<B>(&ops.node);
                for (node, grad) in ops.parents.into_iter().zip([seed, ops.state]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        let prepared = PullBack.prepare::<C>([zero.node(), y.node()]).compute_bound().stateful();
        let [zero, y, grad] = [zero, y, grad].map(|tensor| tensor.into_primitive());
        match prepared {
            OpsKind::Tracked(prep) => prep.finish(grad.clone(), B::pull_back(zero, y, grad)),
            OpsKind::UnTracked(prep) => prep.finish(B::pull_back(zero, y, grad)),
        }
    }
}
