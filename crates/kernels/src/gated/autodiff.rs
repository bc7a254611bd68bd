//! Gradients of gated activations.

use super::{Activation, GatedOps};
use burn::backend::{
    Autodiff,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

impl<B: GatedOps, C: CheckpointStrategy> GatedOps for Autodiff<B, C> {
    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gated;

        impl<B: GatedOps> Backward<B, 2> for Gated {
            type State = ([NodeId; 2], Activation);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let (saved, activation) = ops.state;
                let [gate, up] = saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let (gate, up) = B::gated_grad(grad, gate, up, activation);
                for (node, grad) in ops.parents.into_iter().zip([gate, up]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        match Gated.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&gate), prep.checkpoint(&up)];
                let [gate, up] = [gate, up].map(|tensor| tensor.into_primitive());
                prep.finish((saved, activation), B::gated(gate, up, activation))
            }
            OpsKind::UnTracked(prep) => {
                let [gate, up] = [gate, up].map(|tensor| tensor.into_primitive());
                prep.finish(B::gated(gate, up, activation))
            }
        }
    }

    fn gated_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // Part of a backward pass: it is not differentiated again.
        let [grad, gate, up] = [grad, gate, up].map(|tensor| tensor.into_primitive());
        let (gate, up) = B::gated_grad(grad, gate, up, activation);
        (FloatTensor::<Self>::new(gate), FloatTensor::<Self>::new(up))
    }
}
