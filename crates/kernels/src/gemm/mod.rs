//! The matrix product of this workspace.
//!
//! On CUDA it is computed by cuBLASLt on CubeCL's own buffers and stream, on Vulkan by cooperative
//! matrices of whole workgroups where the driver has them, elsewhere by Burn's matmul.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cooperative;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cpu")]
mod flex;
#[cfg(feature = "cuda")]
mod fp8;
#[cfg(feature = "cubecl")]
mod matrix;
#[cfg(feature = "cubecl")]
mod target;
#[cfg(any(feature = "cubecl", test))]
#[cfg_attr(not(feature = "cubecl"), allow(dead_code, reason = "for its tests"))]
mod tile;

#[cfg(feature = "cuda")]
pub use fp8::Fp8Matrix;

#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
#[cfg(any(feature = "fusion", feature = "cubecl"))]
use burn::tensor::Shape;
use burn::{
    backend::{Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor},
    tensor::{DType, Tensor},
};

/// A matrix product `alpha · op(lhs) · op(rhs)`, where `op` may transpose the last two dimensions.
///
/// Products of bf16 and f16 are accumulated in float32. Gradients flow to each side that requires
/// one. On CUDA cuBLASLt computes the product, without a tuning run; if `libcublasLt` is missing, a
/// warning says so once, and Burn's matmul takes over.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_kernels::Gemm;
///
/// let device = Device::default();
/// let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device);
/// let weight = Tensor::from_floats([[3.0, 4.0], [5.0, 6.0]], &device); // [out, in]
/// let y = Gemm::new().trans_rhs().run(x, weight);
/// y.into_data().assert_eq(&[[11.0f32, 17.0]].into(), true);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    trans_lhs: bool,
    trans_rhs: bool,
    alpha: f32,
    tf32: bool,
    f32_output: bool,
}

impl Default for Gemm {
    fn default() -> Self {
        Self::new()
    }
}

impl Gemm {
    /// Size of cuBLASLt's workspace in bytes: NVIDIA's recommendation for Hopper.
    pub const WORKSPACE_BYTES: usize = 32 << 20;

    /// Creates the product `lhs · rhs`.
    pub const fn new() -> Self {
        Self { trans_lhs: false, trans_rhs: false, alpha: 1.0, tf32: false, f32_output: false }
    }

    /// Transposes `lhs`.
    pub const fn trans_lhs(mut self) -> Self {
        self.trans_lhs = true;
        self
    }

    /// Transposes `rhs`, for a weight `[out, in]`.
    pub const fn trans_rhs(mut self) -> Self {
        self.trans_rhs = true;
        self
    }

    /// Sets the factor of the product.
    pub const fn alpha(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Sets whether CUDA may round the factors of float32 products to TF32 (10 bits of mantissa):
    /// several times as fast, with errors near 3e-4. Off by default, as in PyTorch.
    pub const fn tf32(mut self, tf32: bool) -> Self {
        self.tf32 = tf32;
        self
    }

    /// Sets the dtype of the product to float32, as it was accumulated, whatever the dtype of the
    /// factors. Where Burn's matmul computes it, it is cast afterwards.
    pub const fn f32_output(mut self) -> Self {
        self.f32_output = true;
        self
    }

    /// Dtype of the product of factors in `dtype`.
    fn output_dtype(self, dtype: DType) -> DType {
        if self.f32_output { DType::F32 } else { dtype }
    }

    /// Computes the product.
    ///
    /// # Shapes
    /// - lhs: `[..., m, k]`, or `[..., k, m]` when transposed
    /// - rhs: `[..., k, n]`, or `[..., n, k]` when transposed; its leading dimensions are those of
    ///   `lhs`, or all 1: then it is one matrix for all
    /// - output: `[..., m, n]`, in the dtype of the factors, or in float32 after
    ///   [`f32_output`](Self::f32_output)
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn run<const D: usize>(self, lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
        self.output_dims(&lhs, &rhs);
        let (lhs, rhs) = (lhs.into_dispatch(), rhs.into_dispatch());
        Tensor::from_dispatch(<Dispatch as GemmOps>::gemm(lhs, rhs, self))
    }

    /// Computes `out` plus the product, in the memory of `out` unless that is shared.
    ///
    /// # Shapes
    /// As [`run`](Self::run); `out` has the output's shape.
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn run_add<const D: usize>(
        self,
        lhs: Tensor<D>,
        rhs: Tensor<D>,
        out: Tensor<D>,
    ) -> Tensor<D> {
        let dtype = self.output_dtype(lhs.dtype());
        assert_eq!(out.dtype(), dtype, "gemm: the dtype of what is added to");
        let dims = self.output_dims(&lhs, &rhs);
        assert_eq!(out.dims(), dims, "gemm: what is added to and the product");
        let [lhs, rhs, out] = [lhs, rhs, out].map(Tensor::into_dispatch);
        Tensor::from_dispatch(<Dispatch as GemmOps>::gemm_add(lhs, rhs, out, self))
    }

    /// Checks the factors, and returns the shape of the product.
    fn output_dims<const D: usize>(self, lhs: &Tensor<D>, rhs: &Tensor<D>) -> [usize; D] {
        assert_eq!(lhs.dtype(), rhs.dtype(), "gemm: the dtypes of lhs and rhs");
        let mut out = lhs.dims();
        let dims = Dims::of(&out, &rhs.dims(), self);
        (out[D - 2], out[D - 1]) = (dims.m, dims.n);
        out
    }
}

/// Dimensions of a product.
struct Dims {
    /// `true` if `rhs` is one matrix for all the leading dimensions of `lhs`.
    shared: bool,
    /// Product of the leading dimensions of `lhs`.
    #[cfg(feature = "cubecl")]
    batch: usize,
    m: usize,
    n: usize,
}

impl Dims {
    /// Returns `true` if the leading dimensions of `lhs` are rows of one matrix, as one `rhs` serves for
    /// all of them: transposed matrices do not follow each other as rows.
    #[cfg(feature = "cubecl")]
    fn flat(&self, gemm: Gemm) -> bool {
        self.shared && !gemm.trans_lhs
    }

    /// Dimensions of the product of two shapes.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn of(lhs: &[usize], rhs: &[usize], gemm: Gemm) -> Self {
        let rank = lhs.len();
        assert!(rank >= 2 && rank == rhs.len(), "gemm: {lhs:?} and {rhs:?} are no matrices");
        let split = |dims: &[usize], trans: bool| {
            let (leading, matrix) = dims.split_at(dims.len() - 2);
            let (rows, cols) = if trans { (matrix[1], matrix[0]) } else { (matrix[0], matrix[1]) };
            (leading.iter().product::<usize>(), rows, cols)
        };
        let (batch, m, k) = split(lhs, gemm.trans_lhs);
        let (rhs_batch, rhs_k, n) = split(rhs, gemm.trans_rhs);
        assert_eq!(k, rhs_k, "gemm: the inner dimensions of {lhs:?} and {rhs:?} by {gemm:?}");
        let one = rhs[..rank - 2].iter().all(|&dim| dim == 1);
        let fits = lhs[..rank - 2] == rhs[..rank - 2] || one;
        assert!(fits, "gemm: the leading dimensions of {lhs:?} and {rhs:?}");
        Self {
            shared: rhs_batch == 1 && batch != 1,
            #[cfg(feature = "cubecl")]
            batch,
            m,
            n,
        }
    }
}

/// [`Gemm`] on primitives, whose shapes [`Gemm::run`] has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GemmOps: Backend {
    /// Computes the product.
    #[fusion(meta = |lhs, rhs, gemm| TensorSpec::new(
        output_shape(&lhs.shape, &rhs.shape, *gemm),
        gemm.output_dtype(lhs.dtype),
    ))]
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self>;

    /// Computes `out` plus the product.
    #[fusion(dtype = out, shape = out)]
    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self>;
}

/// Shape of the product of two shapes.
#[cfg(any(feature = "fusion", feature = "cubecl"))]
fn output_shape(lhs: &Shape, rhs: &Shape, gemm: Gemm) -> Shape {
    let Dims { m, n, .. } = Dims::of(lhs, rhs, gemm);
    let mut shape = lhs.clone();
    let rank = shape.num_dims();
    (shape[rank - 2], shape[rank - 1]) = (m, n);
    shape
}

/// The product by Burn's matmul.
fn matmul<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>, gemm: Gemm) -> FloatTensor<B> {
    let rank = lhs.rank();
    let transpose = |tensor, trans| {
        if trans { B::float_swap_dims(tensor, rank - 2, rank - 1) } else { tensor }
    };
    let out = B::float_matmul(transpose(lhs, gemm.trans_lhs), transpose(rhs, gemm.trans_rhs));
    let dtype = gemm.output_dtype(out.dtype());
    let out = if dtype == out.dtype() { out } else { B::float_cast(out, dtype.into()) };
    if gemm.alpha == 1.0 { out } else { B::float_mul_scalar(out, gemm.alpha.into()) }
}

#[cfg(feature = "cpu")]
impl GemmOps for burn::backend::Flex {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
        flex::few_rows(&lhs, &rhs, gemm).unwrap_or_else(|| matmul::<Self>(lhs, rhs, gemm))
    }

    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self> {
        use burn::backend::ops::FloatTensorOps;
        Self::float_add(out, Self::gemm(lhs, rhs, gemm))
    }
}
