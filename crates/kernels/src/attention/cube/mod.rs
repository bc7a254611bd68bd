//! Attention on CubeCL's runtimes.

#[cfg(feature = "cuda")]
pub(super) mod fused;
mod softmax;

use super::{
    AttentionOps, AttentionSpec,
    blocks::{self, Block, BlockOps},
    ranges,
};
use crate::Gemm;
use burn::{
    backend::tensor::{FloatTensor, IntTensor},
    tensor::{FloatDType, Shape, Slice},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};

impl AttentionOps for CubeBackend {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        ranges::forward::<Self>(spans, |spans| {
            let [q, k, v] = [&q, &k, &v].map(Clone::clone);
            #[cfg(feature = "cuda")]
            if fused::takes(&q) {
                return fused::forward(q, k, v, spans, spec);
            }
            blocks::forward::<Self>(q, k, v, into_contiguous(spans), spec)
        })
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
        ranges::backward::<Self>(spans, |spans| {
            let [grad, q, k, v, out, lse] = [&grad, &q, &k, &v, &out, &lse].map(Clone::clone);
            #[cfg(feature = "cuda")]
            if fused::takes(&q) {
                return fused::backward(grad, q, k, v, out, lse, spans, spec).into();
            }
            blocks::backward::<Self>(grad, q, k, v, out, lse, into_contiguous(spans), spec).into()
        })
    }
}

impl BlockOps for CubeBackend {
    fn block_softmax(
        scores: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        softmax::forward(scores, lse, spans, block, dtype.into())
    }

    fn block_softmax_grad(
        scores: FloatTensor<Self>,
        p_grad: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        softmax::backward(scores, p_grad, lse, delta, spans, block, dtype.into())
    }

    fn add_product(
        all: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        product: Gemm,
        part: [Slice; 4],
    ) -> FloatTensor<Self> {
        // In place where cuBLASLt can: the sum then passes over memory twice instead of five times.
        // SAFETY: `all` is not shared, and `part` is a part of it.
        if unsafe { product.add_in_place(&lhs, &rhs, &view(&all, &part)) } {
            return all;
        }
        blocks::add_product::<Self>(all, lhs, rhs, product, part)
    }

    fn row_dot(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        crate::cube::row_dot(a, b)
    }

    fn batched(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let rows = strides[3] == 1 && strides[2] == shape[3] && !tensor.meta.is_tiled();
        let batch = shape[0] == 1 || strides[0] == strides[1] * shape[1];
        if rows && batch { tensor } else { into_contiguous(tensor) }
    }

    fn contiguous(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        into_contiguous(tensor)
    }
}

/// Returns a view of a part of a tensor, in the same memory.
fn view(tensor: &CubeTensor, part: &[Slice; 4]) -> CubeTensor {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let ranges: Vec<_> = part.iter().zip(shape.iter()).map(|(s, dim)| s.to_range(*dim)).collect();
    let sum = |cut: &dyn Fn(usize) -> usize| {
        let elements: usize = (0..4).map(|i| strides[i] * cut(i)).sum();
        (elements * tensor.dtype.size()) as u64
    };
    let (before, after) = (sum(&|i| ranges[i].start), sum(&|i| shape[i] - ranges[i].end));
    let handle = tensor.handle.clone().offset_start(before).offset_end(after);
    let shape = Shape::from(ranges.iter().map(|range| range.len()).collect::<Vec<_>>());
    let meta = cubecl::zspace::metadata::Metadata::new(shape, strides.clone());
    CubeTensor::new(tensor.client.clone(), handle, meta, tensor.device.clone(), tensor.dtype)
}
