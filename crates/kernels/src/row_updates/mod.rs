//! Low-rank updates of which each row of a batch has its own.

use crate::gemm::{Gemm, GemmOps};
use burn::{
    backend::{
        Autodiff, Dispatch, TensorMetadata,
        autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension,
        tensor::{BoolTensor, FloatTensor},
    },
    tensor::{Bool, Shape, Tensor},
};

/// Adds to each row of a batch its own low-rank update: `y + scale · mask(x · Aᵀ) · Bᵀ`, where A and B are
/// those of all updates, one under the other, and `mask` sets to zero what belongs to the `others`.
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_lora_kernels::add_row_updates;
///
/// let device = Device::default();
/// let (y, x) = (Tensor::<2>::zeros([2, 1], &device), Tensor::ones([2, 1], &device));
/// let a = Tensor::from_floats([[1.0], [10.0]], &device); // two updates of rank 1
/// let b = Tensor::from_floats([[1.0, 1.0]], &device);
/// let others = Tensor::<2, Bool>::from_bool([[false, true], [true, false]], &device);
/// let y = add_row_updates(y, x, a, b, others, 2.0);
/// y.into_data().assert_eq(&[[2.0f32], [20.0]].into(), true);
/// ```
///
/// # Shapes
/// - y, output: `[rows, .., out]`
/// - x: `[rows, .., in]`, in the dtype of `y`
/// - a: `[ranks, in]`, in the dtype of `y`
/// - b: `[out, ranks]`, in the dtype of `y`
/// - others: `[rows, ranks]`
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn add_row_updates<const D: usize>(
    y: Tensor<D>,
    x: Tensor<D>,
    a: Tensor<2>,
    b: Tensor<2>,
    others: Tensor<2, Bool>,
    scale: f32,
) -> Tensor<D> {
    let ([ranks, width], [out, b_ranks]) = (a.dims(), b.dims());
    let (x_dims, mut dims) = (x.dims(), y.dims());
    assert_eq!((dims[D - 1], ranks), (out, b_ranks), "row updates: B of {dims:?}");
    assert_eq!(others.dims(), [dims[0], ranks], "row updates: the mask");
    dims[D - 1] = width;
    assert_eq!(x_dims, dims, "row updates: the input");
    let dtype = y.dtype();
    assert!([x.dtype(), a.dtype(), b.dtype()] == [dtype; 3], "row updates: the dtypes");
    let [y, x] = [y, x].map(Tensor::into_dispatch);
    let [a, b] = [a, b].map(Tensor::into_dispatch);
    let y = Dispatch::add_row_updates(y, x, a, b, others.into_dispatch(), scale);
    Tensor::from_dispatch(y)
}

/// [`add_row_updates`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait RowUpdateOps: GemmOps {
    /// `y + scale · mask(x · Aᵀ) · Bᵀ`.
    #[fusion(dtype = y, shape = y)]
    fn add_row_updates(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        others: BoolTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        let rank = x.rank();
        let wide = |matrix: FloatTensor<Self>| {
            let mut shape = vec![1; rank - 2];
            shape.extend_from_slice(&matrix.shape());
            Self::float_reshape(matrix, Shape::from(shape))
        };
        let h = Self::gemm(x, wide(a), Gemm::new().trans_rhs());
        let mut shape = vec![1; rank];
        (shape[0], shape[rank - 1]) = (others.shape()[0], others.shape()[1]);
        let others = Self::bool_reshape(others, Shape::from(shape));
        let others = Self::bool_expand(others, h.shape());
        // Masked, not multiplied by 0: an infinite item of another update would become NaN.
        let h = Self::float_mask_fill(h, others, 0.0.into());
        Self::gemm_add(h, wide(b), y, Gemm::new().trans_rhs().alpha(scale))
    }
}

#[cfg(feature = "cpu")]
impl RowUpdateOps for burn::backend::Flex {}

#[cfg(feature = "cubecl")]
impl RowUpdateOps for burn_cubecl::CubeBackend {}

/// Differentiable as its parts are.
impl<B: RowUpdateOps, C: CheckpointStrategy> RowUpdateOps for Autodiff<B, C> {}
