//! The three operations on packed weights, as Burn backend extensions.
//!
//! [`PackedOps`] is implemented for the CPU (`flex`), for every CubeCL runtime (`cube`), lazily for
//! fusion (generated) and differentiably for autodiff (`autodiff`).

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use crate::{error::QuantError, layout::Layout};
use burn::{
    backend::{
        Backend, ExtensionType, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, FloatDType, Shape},
};

pub(crate) use autodiff::inner;
#[cfg(feature = "cubecl")]
pub(crate) use cube::{product, runs_from_codes, with_room};

#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::DType};

/// Tensors of a packed weight, each of rank 1 and dtype `U32`; see [`Layout`].
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct PackedTensors<B: Backend> {
    /// 4-bit codes, 8 per word.
    pub codes: IntTensor<B>,
    /// Scales: float32 bits, or 4 codes per word.
    pub scales: IntTensor<B>,
    /// Codebook, map of the scales, offset and outer float32s.
    pub tables: IntTensor<B>,
}

/// Backend operations on packed weights.
///
/// Call them through [`PackedWeight`](crate::PackedWeight), which checks shapes.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait PackedOps: Backend {
    /// Quantizes a weight of any shape to `layout`.
    #[fusion(meta = |_weight, layout| packed_spec(layout))]
    fn pack(weight: FloatTensor<Self>, layout: Layout) -> PackedTensors<Self>;

    /// Decodes the weight, `[out, in]`, into `dtype`.
    #[fusion(meta = |_packed, layout, dtype| TensorSpec::new(
        Shape::new(layout.shape),
        DType::from(*dtype),
    ))]
    fn unpack(
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// `x * W^T`, or `x * W` when `transposed`: the product over the last dimension of `x`.
    #[fusion(dtype = x, shape = product_shape(x, layout.shape, *transposed))]
    fn packed_matmul(
        x: FloatTensor<Self>,
        #[extension_type] packed: PackedTensors<Self>,
        layout: Layout,
        transposed: bool,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "fusion")]
fn packed_spec(layout: &Layout) -> PackedTensorsMetadata {
    let words = |count| TensorSpec::new(Shape::new([count]), DType::U32);
    PackedTensorsMetadata {
        codes: words(layout.code_words()),
        scales: words(layout.scale_words()),
        tables: words(layout.table_words()),
    }
}

/// Shape of a product: `[..., in]` to `[..., out]`, or back when `transposed`.
///
/// # Panics
/// If the last dimension of `x` does not fit the weight.
pub(crate) fn product_shape(x: &Shape, weight: [usize; 2], transposed: bool) -> Shape {
    let mut shape = x.clone();
    let last = shape.num_dims() - 1;
    let [from, to] = [!transposed, transposed].map(|side| weight[usize::from(side)]);
    assert_eq!(shape[last], from, "x is {x:?}, the weight is {weight:?}");
    shape[last] = to;
    shape
}

/// Returns `true` if a product with this number of rows of `x` is computed in FP8.
#[cfg(any(feature = "cpu", feature = "cubecl"))]
pub(crate) fn in_fp8(rows: usize, layout: &Layout) -> bool {
    /// Up to which products are computed from the codes.
    const FEW_ROWS: usize = 8;
    layout.fp8 && rows > FEW_ROWS
}

/// Checks that a device has products in FP8.
///
/// # Errors
/// [`QuantError::Fp8`] if it has none.
pub(crate) fn supports_fp8(device: &Device) -> Result<(), QuantError> {
    #[cfg(feature = "cubecl")]
    if let Some(client) = burn_lora_kernels::cube::client(device) {
        #[cfg(feature = "cuda")]
        if burn_lora_kernels::Fp8Matrix::supported_by(&client) {
            return Ok(());
        }
        let name = &client.properties().identity.name;
        let reason = format!(
            "{name} has none: CUDA with compute capability 8.9 or later and cuBLAS has, and the CPU"
        );
        return Err(QuantError::Fp8 { reason });
    }
    let _ = device;
    Ok(())
}

/// Number of rows after merging the leading dimensions.
pub(crate) fn rows(shape: &Shape) -> usize {
    shape[..shape.num_dims() - 1].iter().product()
}
