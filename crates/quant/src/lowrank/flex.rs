//! The low-rank product on the CPU, as a sum of products.

use super::{LowRankOps, flat, grads};
use crate::{
    layout::Layout,
    ops::{PackedOps, PackedTensors},
};
use burn::backend::{Flex, TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor};
use burn_lora_kernels::{Gemm, GemmOps};

impl LowRankOps for Flex {
    fn packed_low_rank(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let h = Self::gemm(flat::<Self>(x.clone()), a, Gemm::new().trans_rhs());
        (Self::packed_update(x, h.clone(), packed, layout, b, scale), h)
    }

    fn packed_update(
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let y = Self::packed_matmul(x, packed, layout, false);
        let shape = y.shape();
        let product = Gemm::new().trans_rhs().alpha(scale);
        let sum = Self::gemm_add(h, b, flat::<Self>(y), product);
        Self::float_reshape(sum, shape)
    }

    fn low_rank_grads(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        grads::<Self>(grad, x, h, b, scale)
    }

    fn packed_low_rank_input_grad(
        grad: FloatTensor<Self>,
        h_grad: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let x = Self::packed_matmul(grad, packed, layout, true);
        let shape = x.shape();
        let sum = Self::gemm_add(h_grad, a, flat::<Self>(x), Gemm::new());
        Self::float_reshape(sum, shape)
    }

    fn packed_add_input_grad(
        grad: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(sum, Self::packed_matmul(grad, packed, layout, true))
    }
}
