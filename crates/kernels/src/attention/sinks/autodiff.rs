//! The gradients of attention with sinks.

use super::{super::autodiff::Attended, AttentionSpec, SinkOps, by_row};
use burn::{
    backend::{
        Autodiff, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::{FloatTensor, IntTensor},
    },
    tensor::FloatDType,
};

impl<B: SinkOps, C: CheckpointStrategy> SinkOps for Autodiff<B, C> {
    fn attention_with_sinks(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;

        impl<B: SinkOps> Backward<B, 4> for Attention {
            type State = Attended<B, 4>;

            fn backward(
                self,
                ops: Ops<Self::State, 4>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let Attended { saved, out, lse, spans, spec } = ops.state;
                let [q, k, v, sinks] = saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let [q_node, k_node, v_node, sinks_node] = ops.parents;
                if let Some(node) = sinks_node {
                    let sinks = sinks_grad::<B>(grad.clone(), out.clone(), lse.clone(), sinks);
                    grads.register::<B>(node.id, sinks);
                }
                let (q, k, v) = B::causal_attention_grad(grad, q, k, v, out, lse, spans, spec);
                for (node, grad) in [(q_node, q), (k_node, k), (v_node, v)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        let nodes = [q.node(), k.node(), v.node(), sinks.node()];
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [&q, &k, &v, &sinks].map(|tensor| prep.checkpoint(tensor));
                let [q, k, v, sinks] = [q, k, v, sinks].map(|tensor| tensor.into_primitive());
                let (out, lse) = B::attention_with_sinks(q, k, v, sinks, spans.clone(), spec);
                let state = Attended { saved, out: out.clone(), lse: lse.clone(), spans, spec };
                (prep.finish(state, out), FloatTensor::<Self>::new(lse))
            }
            OpsKind::UnTracked(prep) => {
                let [q, k, v, sinks] = [q, k, v, sinks].map(|tensor| tensor.into_primitive());
                let (out, lse) = B::attention_with_sinks(q, k, v, sinks, spans, spec);
                (prep.finish(out), FloatTensor::<Self>::new(lse))
            }
        }
    }
}

/// Gradient of the sinks, whose value is 0: with the weight `p = exp(sink - lse)` of a sink in a row,
/// `-sum p · sum(grad · out)` over all rows of its head.
fn sinks_grad<B: SinkOps>(
    grad: FloatTensor<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    sinks: FloatTensor<B>,
) -> FloatTensor<B> {
    let (shape, dtype, rows) = (sinks.shape(), FloatDType::from(sinks.dtype()), lse.shape());
    let [grad, out] = [grad, out].map(|tensor| B::float_cast(tensor, FloatDType::F32));
    let delta = B::float_sum_dim(B::float_mul(grad, out), 3);
    let p = B::float_exp(B::float_sub(by_row::<B>(sinks, &rows), lse));
    let product = B::float_mul(B::float_reshape(delta, rows), p);
    let sums = B::float_sum_dim(B::float_sum_dim(product, 2), 0);
    B::float_cast(B::float_neg(B::float_reshape(sums, shape)), dtype)
}
