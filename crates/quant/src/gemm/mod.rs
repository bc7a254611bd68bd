//! The one matrix product of this workspace.
//!
//! On CUDA it is cuBLASLt on CubeCL's own buffers and stream; everywhere else Burn's matmul.

mod autodiff;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cubecl")]
pub(crate) mod cube;

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor},
    tensor::{Shape, Tensor},
};

/// A matrix product `alpha · op(lhs) · op(rhs)`, where `op` may transpose the last two dimensions.
///
/// Products of bf16 and f16 are summed in float32. Gradients flow to each side that requires one.
/// On CUDA it is computed by cuBLASLt, which needs no tuning run; a missing `libcublasLt` is logged
/// once, and Burn's matmul takes over.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_quant::Gemm;
///
/// let device = Device::default();
/// let x = Tensor::<2>::from_floats([[1.0, 2.0]], &device);
/// let weight = Tensor::from_floats([[3.0, 4.0], [5.0, 6.0]], &device); // [out, in]
/// let y = Gemm::new().trans_rhs().run(x, weight);
/// y.into_data().assert_eq(&[[11.0f32, 17.0]].into(), true);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    pub(crate) trans_lhs: bool,
    pub(crate) trans_rhs: bool,
    pub(crate) alpha: f32,
    pub(crate) tf32: bool,
}

impl Default for Gemm {
    fn default() -> Self {
        Self::new()
    }
}

impl Gemm {
    /// `lhs · rhs`.
    pub const fn new() -> Self {
        Self { trans_lhs: false, trans_rhs: false, alpha: 1.0, tf32: false }
    }

    /// Take `lhs` transposed.
    pub const fn trans_lhs(mut self) -> Self {
        self.trans_lhs = true;
        self
    }

    /// Take `rhs` transposed: a weight `[out, in]` stays as it is.
    pub const fn trans_rhs(mut self) -> Self {
        self.trans_rhs = true;
        self
    }

    /// Multiply the product by a number.
    pub const fn alpha(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Let CUDA round the factors of float32 products to TF32 (10 bits of mantissa): several times
    /// as fast, with errors near 3e-4. Off by default, as in PyTorch.
    pub const fn tf32(mut self, tf32: bool) -> Self {
        self.tf32 = tf32;
        self
    }

    /// The product.
    ///
    /// # Shapes
    /// - lhs: `[..., m, k]`, or `[..., k, m]` when transposed
    /// - rhs: `[..., k, n]`, or `[..., n, k]` when transposed; its leading dimensions are those of
    ///   `lhs`, or all 1: then it is one matrix for all
    /// - output: `[..., m, n]`
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn run<const D: usize>(self, lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
        let call = Call::new(self, lhs, rhs);
        let shape = call.shape;
        let out = <Dispatch as GemmOps>::gemm(
            call.lhs.into_dispatch(),
            call.rhs.into_dispatch(),
            self,
        );
        Tensor::<3>::from_dispatch(out).reshape(shape)
    }

    /// `out` plus the product, written over `out` where nothing else holds it.
    ///
    /// # Shapes
    /// As [`run`](Self::run), with `out` of the output's shape.
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn run_add<const D: usize>(
        self,
        lhs: Tensor<D>,
        rhs: Tensor<D>,
        out: Tensor<D>,
    ) -> Tensor<D> {
        let dtypes = (lhs.dtype(), out.dtype());
        assert_eq!(dtypes.0, dtypes.1, "gemm: lhs is {:?} and out is {:?}", dtypes.0, dtypes.1);
        let call = Call::new(self, lhs, rhs);
        let shape = call.shape;
        assert_eq!(out.dims(), shape, "gemm: the product and what it is added to");
        let out = out.reshape(call.out);
        let out = <Dispatch as GemmOps>::gemm_add(
            call.lhs.into_dispatch(),
            call.rhs.into_dispatch(),
            out.into_dispatch(),
            self,
        );
        Tensor::<3>::from_dispatch(out).reshape(shape)
    }
}

/// The tensors of one product as the backends take them: three dimensions, equal batches.
struct Call<const D: usize> {
    lhs: Tensor<3>,
    rhs: Tensor<3>,
    /// The output in three dimensions.
    out: [usize; 3],
    /// The output as the caller wants it.
    shape: [usize; D],
}

impl<const D: usize> Call<D> {
    fn new(gemm: Gemm, lhs: Tensor<D>, rhs: Tensor<D>) -> Self {
        let (l, r) = (lhs.dims(), rhs.dims());
        assert!(D >= 2, "gemm: {D} dimension is no matrix");
        let matrix = |dims: [usize; D], trans: bool| {
            let (rows, cols) = (dims[D - 2], dims[D - 1]);
            if trans { (cols, rows) } else { (rows, cols) }
        };
        let ((m, k), (inner, n)) = (matrix(l, gemm.trans_lhs), matrix(r, gemm.trans_rhs));
        assert_eq!(k, inner, "gemm: the inner dimensions differ: {gemm:?} of {l:?} and {r:?}");
        assert_eq!(lhs.dtype(), rhs.dtype(), "gemm: the dtypes differ");
        let mut shape = l;
        (shape[D - 2], shape[D - 1]) = (m, n);

        let batch = |dims: [usize; D]| dims[..D - 2].iter().product::<usize>();
        let (batch, shared) = (batch(l), batch(r) == 1);
        assert!(
            shared || l[..D - 2] == r[..D - 2],
            "gemm: the leading dimensions differ: {l:?} and {r:?}"
        );
        let rhs = rhs.reshape([r[..D - 2].iter().product(), r[D - 2], r[D - 1]]);
        // One matrix for all: the batch is more rows.
        if shared && !gemm.trans_lhs {
            let lhs = lhs.reshape([1, batch * m, k]);
            return Self { lhs, rhs, out: [1, batch * m, n], shape };
        }
        let lhs = lhs.reshape([batch, l[D - 2], l[D - 1]]);
        let rhs = if shared && batch != 1 {
            rhs.expand([batch, r[D - 2], r[D - 1]])
        } else {
            rhs
        };
        Self { lhs, rhs, out: [batch, m, n], shape }
    }
}

/// [`Gemm`] on three-dimensional primitives with equal batches.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait GemmOps: Backend {
    /// The product.
    #[fusion(dtype = lhs, shape = output_shape(lhs, rhs, gemm))]
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self>;

    /// `out` plus the product.
    #[fusion(dtype = out, shape = out)]
    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "fusion")]
fn output_shape(lhs: &Shape, rhs: &Shape, gemm: &Gemm) -> Shape {
    Shape::new([lhs[0], lhs[1 + usize::from(gemm.trans_lhs)], rhs[2 - usize::from(gemm.trans_rhs)]])
}

/// Burn's own matmul.
fn matmul<B: Backend>(lhs: FloatTensor<B>, rhs: FloatTensor<B>, gemm: Gemm) -> FloatTensor<B> {
    let lhs = if gemm.trans_lhs { B::float_swap_dims(lhs, 1, 2) } else { lhs };
    let rhs = if gemm.trans_rhs { B::float_swap_dims(rhs, 1, 2) } else { rhs };
    let out = B::float_matmul(lhs, rhs);
    if gemm.alpha == 1.0 { out } else { B::float_mul_scalar(out, gemm.alpha.into()) }
}

#[cfg(feature = "cpu")]
impl GemmOps for burn::backend::Flex {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
        matmul::<Self>(lhs, rhs, gemm)
    }

    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self> {
        use burn::backend::ops::FloatTensorOps;
        Self::float_add(out, matmul::<Self>(lhs, rhs, gemm))
    }
}
