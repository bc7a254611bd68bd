//! Permutation of rows.

mod autodiff;

use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};

/// Permutation of rows: `output[i] = x[order[i]]`.
///
/// The gradient is the permutation by `inverse`; that of Burn's `select`, which has to add up rows
/// that are selected twice, is a loop over all rows.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_kernels::permute_rows;
///
/// let device = Device::default();
/// let x = Tensor::<2>::from_floats([[1.0], [2.0], [3.0]], &device);
/// let order = Tensor::<1, Int>::from_ints([2, 0, 1], &device);
/// let inverse = Tensor::<1, Int>::from_ints([1, 2, 0], &device);
/// permute_rows(x, order, inverse).into_data().assert_eq(&[[3.0f32], [1.0], [2.0]].into(), true);
/// ```
///
/// # Shapes
/// - x, output: `[rows, width]`
/// - order, inverse: `[rows]`, permutations of `0..rows` that undo each other
///
/// # Panics
/// If the shapes do not fit. That they are permutations is not checked.
pub fn permute_rows(x: Tensor<2>, order: Tensor<1, Int>, inverse: Tensor<1, Int>) -> Tensor<2> {
    let rows = x.dims()[0];
    assert_eq!((order.dims(), inverse.dims()), ([rows], [rows]), "permute_rows: {rows} rows");
    let (order, inverse) = (order.into_dispatch(), inverse.into_dispatch());
    Tensor::from_dispatch(Dispatch::permute_rows(x.into_dispatch(), order, inverse))
}

/// [`permute_rows`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait PermuteOps: Backend {
    /// `output[i] = x[order[i]]`.
    #[fusion(dtype = x, shape = x)]
    fn permute_rows(
        x: FloatTensor<Self>,
        order: IntTensor<Self>,
        inverse: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let _ = inverse;
        Self::float_select(x, 0, order)
    }
}

#[cfg(feature = "cpu")]
impl PermuteOps for burn::backend::Flex {}

#[cfg(feature = "cubecl")]
impl PermuteOps for burn_cubecl::CubeBackend {}
