//! The gradients of attention.

use super::{AttentionOps, AttentionSpec};
use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

/// State of the backward pass, with the inputs by id: `q`, `k`, `v`, and sinks if there are.
#[derive(Debug)]
pub(super) struct Attended<B: Backend, const N: usize> {
    pub saved: [NodeId; N],
    pub out: FloatTensor<B>,
    pub lse: FloatTensor<B>,
    pub spans: IntTensor<B>,
    pub spec: AttentionSpec,
}

impl<B: Backend, const N: usize> Clone for Attended<B, N> {
    fn clone(&self) -> Self {
        let Self { saved, out, lse, spans, spec } = self;
        let (out, lse, spans) = (out.clone(), lse.clone(), spans.clone());
        Self { saved: *saved, out, lse, spans, spec: *spec }
    }
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;

        impl<B: AttentionOps> Backward<B, 3> for Attention {
            type State = Attended<B, 3>;

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let Attended { saved, out, lse, spans, spec } = ops.state;
                let [q, k, v] = saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let (q, k, v) = B::causal_attention_grad(grad, q, k, v, out, lse, spans, spec);
                for (node, grad) in ops.parents.into_iter().zip([q, k, v]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        match Attention.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&q), prep.checkpoint(&k), prep.checkpoint(&v)];
                let [q, k, v] = [q, k, v].map(|tensor| tensor.into_primitive());
                let (out, lse) = B::causal_attention(q, k, v, spans.clone(), spec);
                let state = Attended { saved, out: out.clone(), lse: lse.clone(), spans, spec };
                (prep.finish(state, out), FloatTensor::<Self>::new(lse))
            }
            OpsKind::UnTracked(prep) => {
                let [q, k, v] = [q, k, v].map(|tensor| tensor.into_primitive());
                let (out, lse) = B::causal_attention(q, k, v, spans, spec);
                (prep.finish(out), FloatTensor::<Self>::new(lse))
            }
        }
    }

    fn causal_attention_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        // Part of a backward pass: it is not differentiated again.
        let [grad, q, k, v, out, lse] =
            [grad, q, k, v, out, lse].map(|tensor| tensor.into_primitive());
        let (q, k, v) = B::causal_attention_grad(grad, q, k, v, out, lse, spans, spec);
        (FloatTensor::<Self>::new(q), FloatTensor::<Self>::new(k), FloatTensor::<Self>::new(v))
    }
}
