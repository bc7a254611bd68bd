//! The gradients, on any backend.

use super::{AttentionSpec, DecoderOps};
use burn::backend::{
    Autodiff, Backend, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind, unary},
    },
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{FloatDType, Shape};

/// What the backward pass of an attention needs, beside `q`, `k` and `v` by id.
#[derive(Debug)]
struct Attended<B: Backend> {
    saved: [NodeId; 3],
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    spans: IntTensor<B>,
    spec: AttentionSpec,
}

impl<B: Backend> Clone for Attended<B> {
    fn clone(&self) -> Self {
        let Self { saved, out, lse, spans, spec } = self;
        let (out, lse, spans) = (out.clone(), lse.clone(), spans.clone());
        Self { saved: *saved, out, lse, spans, spec: *spec }
    }
}

impl<B: DecoderOps, C: CheckpointStrategy> DecoderOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNorm;

        impl<B: DecoderOps> Backward<B, 2> for RmsNorm {
            type State = ([NodeId; 2], f32);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let (saved, eps) = ops.state;
                let [x, weight]: [FloatTensor<B>; 2] =
                    saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let [x_node, weight_node] = ops.parents;
                if let Some(node) = weight_node {
                    let weight_grad = weight_grad::<B>(grad.clone(), x.clone(), &weight, eps);
                    grads.register::<B>(node.id, weight_grad);
                }
                if let Some(node) = x_node {
                    grads.register::<B>(node.id, B::rms_norm_grad(grad, x, weight, eps));
                }
            }
        }

        match RmsNorm.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
                prep.finish((saved, eps), B::rms_norm(x, weight, eps))
            }
            OpsKind::UnTracked(prep) => {
                let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
                prep.finish(B::rms_norm(x, weight, eps))
            }
        }
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        // This one and the other `_grad`s are parts of a backward pass, which is not
        // differentiated again.
        let [grad, x, weight] = [grad, x, weight].map(|tensor| tensor.into_primitive());
        FloatTensor::<Self>::new(B::rms_norm_grad(grad, x, weight, eps))
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwiGlu;

        impl<B: DecoderOps> Backward<B, 2> for SwiGlu {
            type State = [NodeId; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let [gate, up] = ops.state.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let (gate, up) = B::swiglu_grad(grad, gate, up);
                for (node, grad) in ops.parents.into_iter().zip([gate, up]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        match SwiGlu.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&gate), prep.checkpoint(&up)];
                prep.finish(saved, B::swiglu(gate.into_primitive(), up.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::swiglu(gate.into_primitive(), up.into_primitive()))
            }
        }
    }

    fn swiglu_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [grad, gate, up] = [grad, gate, up].map(|tensor| tensor.into_primitive());
        let (gate, up) = B::swiglu_grad(grad, gate, up);
        (FloatTensor::<Self>::new(gate), FloatTensor::<Self>::new(up))
    }

    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Rotate;

        impl<B: DecoderOps> Backward<B, 1> for Rotate {
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

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct Attention;

        impl<B: DecoderOps> Backward<B, 3> for Attention {
            type State = Attended<B>;

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
        let [grad, q, k, v, out, lse] =
            [grad, q, k, v, out, lse].map(|tensor| tensor.into_primitive());
        let (q, k, v) = B::causal_attention_grad(grad, q, k, v, out, lse, spans, spec);
        (FloatTensor::<Self>::new(q), FloatTensor::<Self>::new(k), FloatTensor::<Self>::new(v))
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        // The gradient is among what it gives: nothing is left to differentiate.
        let (loss, hits, grad) = B::cross_entropy(logits.into_primitive(), targets, smoothing);
        let new = FloatTensor::<Self>::new;
        (new(loss), new(hits), new(grad))
    }

    fn pull_back(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PullBack;

        impl<B: DecoderOps> Backward<B, 1> for PullBack {
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

/// The gradient of the weight of a norm, which few adapters train: the sum of `grad · x / rms(x)`
/// over the rows, in float32.
fn weight_grad<B: DecoderOps>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: &FloatTensor<B>,
    eps: f32,
) -> FloatTensor<B> {
    let (width, dtype) = (weight.shape()[0], weight.dtype());
    let rows = Shape::new([x.shape().num_elements() / width.max(1), width]);
    let [grad, x] = [grad, x].map(|tensor| {
        let tensor = B::float_reshape(tensor, rows.clone());
        B::float_cast(tensor, FloatDType::F32)
    });
    let ones = B::float_ones([width].into(), &x.device(), FloatDType::F32);
    let product = B::float_mul(grad, B::rms_norm(x, ones, eps));
    let sum = B::float_reshape(B::float_sum_dim(product, 0), weight.shape());
    B::float_cast(sum, dtype.into())
}
