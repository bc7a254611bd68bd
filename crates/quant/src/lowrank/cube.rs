//! The low-rank product on CubeCL's runtimes.

use super::{LowRankOps, flat, grads};
use crate::{
    layout::Layout,
    ops::{PackedOps, PackedTensors, product, product_shape, rows, runs_from_codes},
};
use burn::backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, ops::reshape};
use burn_lora_kernels::{Gemm, GemmOps};

impl LowRankOps for CubeBackend {
    fn packed_low_rank(
        x: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = product_shape(&x.shape(), layout.shape, false);
        let few = runs_from_codes(rows(&x.shape()), &layout, false);
        let x = flat::<Self>(x);
        let h = Self::gemm(x.clone(), a, Gemm::new().trans_rhs());
        let update = Gemm::new().trans_rhs().alpha(scale);
        let y = if few || shape.num_elements() == 0 {
            let y = Self::packed_matmul(x, packed, layout, false);
            Self::gemm_add(h.clone(), b, y, update)
        } else {
            product(x, packed, layout, false, Some(Self::gemm(h.clone(), b, update)))
        };
        (reshape(y, shape), h)
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
        let shape = product_shape(&grad.shape(), layout.shape, true);
        let sum = Self::gemm(h_grad, a, Gemm::new());
        if shape.num_elements() == 0 {
            return Self::float_reshape(sum, shape);
        }
        reshape(product(flat::<Self>(grad), packed, layout, true, Some(sum)), shape)
    }
}
