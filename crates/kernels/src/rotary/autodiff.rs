//! The gradient of a rotation: the inverse rotation.

use super::RotaryOps;
use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind, unary},
    },
    tensor::{FloatTensor, IntTensor},
};

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rotate;

        impl<B: RotaryOps> Backward<B, 1> for Rotate {
            type State = (IntTensor<B>, FloatTensor<B>, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (positions, table, inverse) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::rotate(grad, positions, table, !inverse)
                });
            }
        }

        let table = table.into_primitive();
        let (x, node) = x.into_parts();
        match Rotate.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::rotate(x, positions.clone(), table.clone(), inverse);
                prep.finish((positions, table, inverse), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rotate(x, positions, table, inverse)),
        }
    }
}
