//! The gradient of a permutation: the inverse permutation.

use super::PermuteOps;
use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind, unary},
    },
    tensor::{FloatTensor, IntTensor},
};

impl<B: PermuteOps, C: CheckpointStrategy> PermuteOps for Autodiff<B, C> {
    fn permute_rows(
        x: FloatTensor<Self>,
        order: IntTensor<Self>,
        inverse: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Permute;

        impl<B: PermuteOps> Backward<B, 1> for Permute {
            type State = [IntTensor<B>; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [order, inverse] = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::permute_rows(grad, inverse, order)
                });
            }
        }

        let (x, node) = x.into_parts();
        match Permute.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::permute_rows(x, order.clone(), inverse.clone());
                prep.finish([order, inverse], out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::permute_rows(x, order, inverse)),
        }
    }
}
