//! Gradients of the low-rank product: of the input, A and B. The packed weight has none.

use super::LowRankOps;
use crate::{
    layout::Layout,
    ops::{PackedTensors, inner},
};
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

/// State of the backward pass: the input, A and B by id, `h`, and the codes.
#[derive(Debug)]
struct State<B: LowRankOps> {
    saved: [NodeId; 3],
    h: FloatTensor<B>,
    packed: PackedTensors<B>,
    layout: Layout,
    scale: f32,
}

impl<B: LowRankOps> Clone for State<B> {
    fn clone(&self) -> Self {
        let Self { saved, h, packed, layout, scale } = self;
        let (h, packed) = (h.clone(), packed.clone());
        Self { saved: *saved, h, packed, layout: *layout, scale: *scale }
    }
}

impl<B: LowRankOps, C: CheckpointStrategy> LowRankOps for Autodiff<B, C> {
    fn packed_low_rank(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct LowRank;

        impl<B: LowRankOps> Backward<B, 3> for LowRank {
            type State = State<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let State { saved, h, packed, layout, scale } = ops.state;
                let [x, a, b] = saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let (h_grad, a_grad, b_grad) = B::low_rank_grads(grad.clone(), x, h, b, scale);
                let [x_node, a_node, b_node] = ops.parents;
                if let Some(node) = b_node {
                    grads.register::<B>(node.id, b_grad);
                }
                if let Some(node) = a_node {
                    grads.register::<B>(node.id, a_grad);
                }
                if let Some(node) = x_node {
                    let x_grad = B::packed_low_rank_input_grad(grad, h_grad, packed, layout, a);
                    grads.register::<B>(node.id, x_grad);
                }
            }
        }

        let packed = inner(packed);
        match LowRank.prepare::<C>([x.node(), a.node(), b.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&x), prep.checkpoint(&a), prep.checkpoint(&b)];
                let [x, a, b] = [x, a, b].map(|tensor| tensor.into_primitive());
                let (y, h) = B::packed_low_rank(x, packed.clone(), layout, a, b, scale);
                let state = State { saved, h: h.clone(), packed, layout, scale };
                (prep.finish(state, y), FloatTensor::<Self>::new(h))
            }
            OpsKind::UnTracked(prep) => {
                let [x, a, b] = [x, a, b].map(|tensor| tensor.into_primitive());
                let (y, h) = B::packed_low_rank(x, packed, layout, a, b, scale);
                (prep.finish(y), FloatTensor::<Self>::new(h))
            }
        }
    }

    fn packed_update(
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let [x, h, b] = [x, h, b].map(|tensor| tensor.into_primitive());
        FloatTensor::<Self>::new(B::packed_update(x, h, inner(packed), layout, b, scale))
    }

    fn low_rank_grads(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        super::grads::<Self>(grad, x, h, b, scale)
    }

    fn packed_low_rank_input_grad(
        grad: FloatTensor<Self>,
        h_grad: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        // Part of a backward pass: it is not differentiated again.
        let [grad, h_grad, a] = [grad, h_grad, a].map(|tensor| tensor.into_primitive());
        let grad = B::packed_low_rank_input_grad(grad, h_grad, inner(packed), layout, a);
        FloatTensor::<Self>::new(grad)
    }

    fn packed_add_input_grad(
        grad: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [grad, sum] = [grad, sum].map(|tensor| tensor.into_primitive());
        FloatTensor::<Self>::new(B::packed_add_input_grad(grad, inner(packed), layout, sum))
    }
}
