//! The low-rank product on CubeCL's runtimes.

use super::{LowRankOps, flat, grads, joins_update};
use crate::{
    layout::Layout,
    ops::{
        PackedOps, PackedTensors, in_fp8, product, product_shape, rows, runs_from_codes, with_room,
    },
};
use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::Shape,
};
use burn_cubecl::{CubeBackend, ops::reshape, tensor::CubeTensor};
use burn_lora_kernels::{
    Gemm, GemmOps,
    cube::{copy_into, empty},
};

impl LowRankOps for CubeBackend {
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
        let shape = product_shape(&x.shape(), layout.shape, false);
        let few = runs_from_codes(rows(&x.shape()), &layout, false);
        let x = flat::<Self>(x);
        let [rows, rank] = h.shape().dims();
        if joins(rows, rank, &layout, false) {
            // [x | h] · [W | scale · B]ᵀ
            let weight = with_room(packed, layout, x.dtype, [0, rank]);
            // SAFETY: the memory is new.
            unsafe { copy_into(b, scale, &weight, [0, layout.shape[1]]) };
            let y = Self::gemm(beside(x, h), weight, Gemm::new().trans_rhs());
            return reshape(y, shape);
        }
        let update = Gemm::new().trans_rhs().alpha(scale);
        let y = if few || shape.num_elements() == 0 {
            let y = Self::packed_matmul(x, packed, layout, false);
            Self::gemm_add(h, b, y, update)
        } else {
            product(x, packed, layout, false, Some(Self::gemm(h, b, update)))
        };
        reshape(y, shape)
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
        let grad = flat::<Self>(grad);
        let [rows, rank] = h_grad.shape().dims();
        if joins(rows, rank, &layout, true) {
            // [grad | h_grad] · [W; A]
            let weight = with_room(packed, layout, grad.dtype, [rank, 0]);
            // SAFETY: the memory is new.
            unsafe { copy_into(a, 1.0, &weight, [layout.shape[0], 0]) };
            return reshape(Self::gemm(beside(grad, h_grad), weight, Gemm::new()), shape);
        }
        let sum = Self::gemm(h_grad, a, Gemm::new());
        if shape.num_elements() == 0 {
            return Self::float_reshape(sum, shape);
        }
        reshape(product(grad, packed, layout, true, Some(sum)), shape)
    }

    fn packed_add_input_grad(
        grad: FloatTensor<Self>,
        packed: PackedTensors<Self>,
        layout: Layout,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let shape = sum.shape();
        if shape.num_elements() == 0 || layout.is_empty() {
            return sum;
        }
        let (grad, sum) = (flat::<Self>(grad), flat::<Self>(sum));
        reshape(product(grad, packed, layout, true, Some(sum)), shape)
    }
}

/// Returns `true` if a product and its update are one product of longer rows.
fn joins(rows: usize, rank: usize, layout: &Layout, transposed: bool) -> bool {
    let [out, input] = layout.shape;
    let [from, to] = if transposed { [out, input] } else { [input, out] };
    // The codes of a row are whole words.
    joins_update(rows, rank, from, to) && input.is_multiple_of(8) && !in_fp8(rows, layout)
}

/// Returns two matrices side by side.
fn beside(x: CubeTensor, h: CubeTensor) -> CubeTensor {
    let ([rows, width], [_, rank]) = (x.shape().dims(), h.shape().dims());
    let both = empty(&x, Shape::new([rows, width + rank]), x.dtype);
    // SAFETY: the memory is new.
    unsafe {
        copy_into(x, 1.0, &both, [0, 0]);
        copy_into(h, 1.0, &both, [0, width]);
    }
    both
}
