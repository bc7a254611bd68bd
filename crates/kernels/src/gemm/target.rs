//! Where a product goes.

use super::matrix::Matrix;
use burn_cubecl::tensor::CubeTensor;

/// Destination of a product.
pub(super) enum Target {
    /// A new tensor.
    New,
    /// This tensor, to which the product is added, or a new one if its memory is shared.
    Sum(CubeTensor),
    /// This tensor, to which the product is added in place even if its memory is shared: see
    /// [`fits`].
    Place(CubeTensor),
}

/// Returns `true` if a product can be added to a tensor in place: each of its matrices has its own
/// matrix of `rhs`, and no element is there twice, as in an expanded tensor.
pub(super) fn fits(rhs: &CubeTensor, part: &CubeTensor) -> bool {
    let leading = |tensor: &CubeTensor| {
        let shape = tensor.meta.shape();
        shape[..shape.num_dims() - 2].to_vec()
    };
    let batch: usize = leading(part).iter().product();
    Matrix::of(part, false).is_some_and(|Matrix { rows, cols, stride, batch_stride, op }| {
        let extent = (cols as i64 - 1) * stride + rows as i64;
        op == 0 && (batch == 1 || batch_stride >= extent && leading(rhs) == leading(part))
    })
}
