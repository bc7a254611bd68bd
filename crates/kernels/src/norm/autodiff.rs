//! Gradients of RMSNorm.

use super::{NormOps, NormSpec};
use burn::{
    backend::{
        Autodiff, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{FloatDType, Shape},
};

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RmsNorm;

        impl<B: NormOps> Backward<B, 2> for RmsNorm {
            type State = ([NodeId; 2], NormSpec);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let (saved, spec) = ops.state;
                let [x, weight]: [FloatTensor<B>; 2] =
                    saved.map(|id| checkpointer.retrieve_node_output(id));
                let grad = grads.consume::<B>(&ops.node);
                let [x_node, weight_node] = ops.parents;
                if let Some(node) = weight_node {
                    let weight_grad = weight_grad::<B>(grad.clone(), x.clone(), &weight, spec);
                    grads.register::<B>(node.id, weight_grad);
                }
                if let Some(node) = x_node {
                    grads.register::<B>(node.id, B::rms_norm_grad(grad, x, weight, spec));
                }
            }
        }

        match RmsNorm.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&x), prep.checkpoint(&weight)];
                let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
                prep.finish((saved, spec), B::rms_norm(x, weight, spec))
            }
            OpsKind::UnTracked(prep) => {
                let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
                prep.finish(B::rms_norm(x, weight, spec))
            }
        }
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        // Part of a backward pass: it is not differentiated again.
        let [grad, x, weight] = [grad, x, weight].map(|tensor| tensor.into_primitive());
        FloatTensor::<Self>::new(B::rms_norm_grad(grad, x, weight, spec))
    }
}

/// Gradient of a norm's weight, which few adapters train: the sum of `grad · x / rms(x)` over the
/// rows, in float32.
fn weight_grad<B: NormOps>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: &FloatTensor<B>,
    spec: NormSpec,
) -> FloatTensor<B> {
    let (width, dtype) = (weight.shape()[0], weight.dtype());
    let rows = Shape::new([x.shape().num_elements() / width.max(1), width]);
    let [grad, x] = [grad, x].map(|tensor| {
        let tensor = B::float_reshape(tensor, rows.clone());
        B::float_cast(tensor, FloatDType::F32)
    });
    let ones = B::float_ones([width].into(), &x.device(), FloatDType::F32);
    let product = B::float_mul(grad, B::rms_norm(x, ones, spec.eps.into()));
    let sum = B::float_reshape(B::float_sum_dim(product, 0), weight.shape());
    B::float_cast(sum, dtype.into())
}
