//! Gradient of the packed product: of `x` only, computed from the codes.

use super::{PackedOps, PackedTensors};
use crate::layout::Layout;
use burn::{
    backend::{
        Autodiff, Backend,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
        tensor::FloatTensor,
    },
    tensor::FloatDType,
};

/// Unwraps the tensors: integer tensors are the same with and without autodiff.
pub(crate) fn inner<B: Backend, C: CheckpointStrategy>(
    packed: PackedTensors<Autodiff<B, C>>,
) -> PackedTensors<B> {
    let PackedTensors { codes, scales, tables } = packed;
    PackedTensors { codes, scales, tables }
}

impl<B: Backend> Clone for PackedTensors<B> {
    fn clone(&self) -> Self {
        Self { codes: self.codes.clone(), scales: self.scales.clone(), tables: self.tables.clone() }
    }
}

impl<B: Backend> std::fmt::Debug for PackedTensors<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackedTensors")
    }
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn pack(weight: FloatTensor<Self>, layout: Layout) -> PackedTensors<Self> {
        let PackedTensors { codes, scales, tables } = B::pack(weight.into_primitive(), layout);
        PackedTensors { codes, scales, tables }
    }

    fn unpack(packed: PackedTensors<Self>, layout: Layout, dtype: FloatDType) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::unpack(inner(packed), layout, dtype))
    }

    fn packed_matmul(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PackedMatmul;

        impl<B: PackedOps> Backward<B, 1> for PackedMatmul {
            type State = (PackedTensors<B>, Layout, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (packed, layout, transposed) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::packed_matmul(grad, packed, layout, !transposed)
                });
            }
        }

        let packed = inner(packed);
        let (x, node) = x.into_parts();
        match PackedMatmul.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::packed_matmul(x, packed.clone(), layout, transposed);
                prep.finish((packed, layout, transposed), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::packed_matmul(x, packed, layout, transposed))
            }
        }
    }
}
