//! The packed product with a low-rank update, as one operation.
//!
//! The update is written first and the large product added to it: neither the output nor the
//! gradient of the input is read and written once more for a sum. Where that is much wider than the
//! input, the update is a part of the large product: [`joins_update`].

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use crate::{
    layout::Layout,
    ops::{PackedOps, PackedTensors, rows},
};
use burn::{
    backend::{Backend, TensorMetadata, backend_extension, tensor::FloatTensor},
    tensor::Shape,
};
use burn_lora_kernels::{Gemm, GemmOps};

#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;

/// The low-rank product on primitives, whose shapes
/// [`PackedWeight::matmul_low_rank`](crate::PackedWeight::matmul_low_rank) has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait LowRankOps: PackedOps + GemmOps {
    /// `x · W^T + scale · (x · A^T) · B^T`, and `h = x · A^T` with the leading dimensions merged
    /// into rows.
    #[fusion(meta = |x, _packed, layout, a, _b, _scale| (
        TensorSpec::new(crate::ops::product_shape(&x.shape, layout.shape, false), x.dtype),
        TensorSpec::new(Shape::new([rows(&x.shape), a.shape[0]]), x.dtype),
    ))]
    fn packed_low_rank(
        x: FloatTensor<Self>,
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x · W^T + scale · h · B^T` with a known `h`. It has no gradient.
    #[fusion(meta = |x, _h, _packed, layout, _b, _scale| {
        TensorSpec::new(crate::ops::product_shape(&x.shape, layout.shape, false), x.dtype)
    })]
    fn packed_update(
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Gradients of `h`, A and B from that of the output.
    #[fusion(meta = |_grad, x, h, b, _scale| (
        h.clone(),
        TensorSpec::new(Shape::new([b.shape[1], x.shape[x.shape.num_dims() - 1]]), x.dtype),
        b.clone(),
    ))]
    fn low_rank_grads(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        h: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Gradient of `x`: `grad · W + h_grad · A`.
    #[fusion(dtype = grad, shape = crate::ops::product_shape(grad, layout.shape, true))]
    fn packed_low_rank_input_grad(
        grad: FloatTensor<Self>,
        h_grad: FloatTensor<Self>,
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        a: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Gradient of `x` without an update, added to another one: `sum + grad · W`.
    #[fusion(dtype = sum, shape = sum)]
    fn packed_add_input_grad(
        grad: FloatTensor<Self>,
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Returns `true` if a product of so many rows, from `from` to `to` values each, and its update are one
/// product of longer rows on a GPU: `[x | h] · [W | B]ᵀ`. Then the input is copied, to rows of `from + rank`
/// values, but the output is not written and read once more.
pub fn joins_update(rows: usize, rank: usize, from: usize, to: usize) -> bool {
    const MANY: usize = 256;
    let aligned = [rank, from].iter().all(|size| size.is_multiple_of(8));
    rank > 0 && aligned && to >= 2 * from && rows >= MANY
}

/// Merges the leading dimensions into rows.
fn flat<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    let flat = Shape::new([rows(&shape), width]);
    B::float_reshape(tensor, flat)
}

/// [`LowRankOps::low_rank_grads`] as separate products.
fn grads<B: GemmOps>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    h: FloatTensor<B>,
    b: FloatTensor<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (grad, x) = (flat::<B>(grad), flat::<B>(x));
    let scaled = Gemm::new().alpha(scale);
    let h_grad = B::gemm(grad.clone(), b, scaled);
    let b = B::gemm(grad, h, scaled.trans_lhs());
    let a = B::gemm(h_grad.clone(), x, Gemm::new().trans_lhs());
    (h_grad, a, b)
}
