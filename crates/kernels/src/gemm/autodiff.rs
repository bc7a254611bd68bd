//! Gradients of the matrix product, themselves products.

use super::{Dims, Gemm, GemmOps};
use burn::backend::{
    Autodiff, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

/// State of the backward pass: the saved factors (each only if the other's gradient is required),
/// `true` if `rhs` is one matrix for all leading dimensions, and the product.
type State = (Option<NodeId>, Option<NodeId>, bool, Gemm);

impl Gemm {
    /// Gradient of `lhs`: `alpha · grad · op(rhs)^T`, transposed back.
    fn lhs_grad<B: GemmOps>(self, grad: FloatTensor<B>, rhs: FloatTensor<B>) -> FloatTensor<B> {
        if self.trans_lhs {
            // As the left factor, one matrix for all leading dimensions has to be expanded to them.
            let (mut shape, rank) = (grad.shape(), rhs.rank());
            (shape[rank - 2], shape[rank - 1]) = (rhs.shape()[rank - 2], rhs.shape()[rank - 1]);
            let rhs = if shape == rhs.shape() { rhs } else { B::float_expand(rhs, shape) };
            B::gemm(rhs, grad, Self { trans_lhs: self.trans_rhs, trans_rhs: true, ..self })
        } else {
            B::gemm(grad, rhs, Self { trans_lhs: false, trans_rhs: !self.trans_rhs, ..self })
        }
    }

    /// Gradient of `rhs`: `alpha · op(lhs)^T · grad`, transposed back. For one matrix for all
    /// leading dimensions it is the sum over them.
    fn rhs_grad<B: GemmOps>(self, lhs: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
        if self.trans_rhs {
            B::gemm(grad, lhs, Self { trans_lhs: true, trans_rhs: self.trans_lhs, ..self })
        } else {
            B::gemm(lhs, grad, Self { trans_lhs: !self.trans_lhs, trans_rhs: false, ..self })
        }
    }

    /// Merges the leading dimensions of `lhs` and of the output's gradient into rows.
    fn flatten<B: GemmOps>(self, lhs: FloatTensor<B>, grad: FloatTensor<B>) -> [FloatTensor<B>; 2] {
        let rank = lhs.rank();
        let lhs = if self.trans_lhs { B::float_swap_dims(lhs, rank - 2, rank - 1) } else { lhs };
        let flat = [lhs, grad].map(|tensor| {
            let (dims, mut shape) = (tensor.shape(), vec![1; rank]);
            shape[rank - 2] = dims[..rank - 1].iter().product();
            shape[rank - 1] = dims[rank - 1];
            B::float_reshape(tensor, shape.into())
        });
        let [lhs, grad] = flat;
        let lhs = if self.trans_lhs { B::float_swap_dims(lhs, rank - 2, rank - 1) } else { lhs };
        [lhs, grad]
    }

    /// Registers the required gradients of both factors, in the factors' dtype.
    fn register<B: GemmOps>(
        (lhs, rhs, shared, gemm): State,
        parents: [Option<NodeId>; 2],
        grad: FloatTensor<B>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let mut factor = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let (lhs, rhs) = (lhs.map(&mut factor), rhs.map(&mut factor));
        let (dtype, gemm) = (lhs.as_ref().or(rhs.as_ref()), Self { f32_output: false, ..gemm });
        let grad = match dtype.map(|factor| factor.dtype()) {
            Some(dtype) if dtype != grad.dtype() => B::float_cast(grad, dtype.into()),
            _ => grad,
        };
        if let (Some(id), Some(rhs)) = (parents[0], rhs) {
            grads.register::<B>(id, gemm.lhs_grad::<B>(grad.clone(), rhs));
        }
        if let (Some(id), Some(lhs)) = (parents[1], lhs) {
            let [lhs, grad] = if shared { gemm.flatten::<B>(lhs, grad) } else { [lhs, grad] };
            grads.register::<B>(id, gemm.rhs_grad::<B>(lhs, grad));
        }
    }
}

impl<B: GemmOps, C: CheckpointStrategy> GemmOps for Autodiff<B, C> {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Product;

        impl<B: GemmOps> Backward<B, 2> for Product {
            type State = State;

            fn backward(
                self,
                ops: Ops<State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|node| node.id));
                Gemm::register::<B>(ops.state, parents, grad, grads, checkpointer);
            }
        }

        let tracked = [lhs.is_tracked(), rhs.is_tracked()];
        let shared = Dims::of(&lhs.shape(), &rhs.shape(), gemm).shared;
        match Product.prepare::<C>([lhs.node(), rhs.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved_lhs = tracked[1].then(|| prep.checkpoint(&lhs));
                let saved_rhs = tracked[0].then(|| prep.checkpoint(&rhs));
                let out = B::gemm(lhs.into_primitive(), rhs.into_primitive(), gemm);
                prep.finish((saved_lhs, saved_rhs, shared, gemm), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::gemm(lhs.into_primitive(), rhs.into_primitive(), gemm))
            }
        }
    }

    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ProductAdd;

        impl<B: GemmOps> Backward<B, 3> for ProductAdd {
            type State = State;

            fn backward(
                self,
                ops: Ops<State, 3>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let [lhs, rhs, out] = ops.parents.map(|parent| parent.map(|node| node.id));
                let grad = grads.consume::<B>(&ops.node);
                if let Some(out) = out {
                    grads.register::<B>(out, grad.clone());
                }
                Gemm::register::<B>(ops.state, [lhs, rhs], grad, grads, checkpointer);
            }
        }

        let tracked = [lhs.is_tracked(), rhs.is_tracked()];
        let shared = Dims::of(&lhs.shape(), &rhs.shape(), gemm).shared;
        let nodes = [lhs.node(), rhs.node(), out.node()];
        match ProductAdd.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved_lhs = tracked[1].then(|| prep.checkpoint(&lhs));
                let saved_rhs = tracked[0].then(|| prep.checkpoint(&rhs));
                let [lhs, rhs, out] = [lhs, rhs, out].map(|tensor| tensor.into_primitive());
                prep.finish((saved_lhs, saved_rhs, shared, gemm), B::gemm_add(lhs, rhs, out, gemm))
            }
            OpsKind::UnTracked(prep) => {
                let [lhs, rhs, out] = [lhs, rhs, out].map(|tensor| tensor.into_primitive());
                prep.finish(B::gemm_add(lhs, rhs, out, gemm))
            }
        }
    }
}
