//! The product on CubeCL's runtimes.

#[cfg(feature = "cuda")]
use super::cublaslt;
use super::{Gemm, GemmOps, matmul, output_shape};
use crate::cube::check;
use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::Shape,
};
use burn_cubecl::{CubeBackend, ops::numeric::zeros, tensor::CubeTensor};

impl Gemm {
    /// Adds the product to a part of a tensor in place, whoever else sees its memory: for kernels
    /// that own that. Says whether it did: only cuBLASLt can, and only where the rows of the part
    /// are contiguous and its matrices evenly spaced.
    ///
    /// # Shapes
    /// As [`run_add`](Self::run_add), but one matrix for all is not taken.
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes or devices differ.
    ///
    /// # Safety
    /// The memory of `part` has to be the caller's alone: other tensors that share it are changed, and
    /// neither factor may.
    pub unsafe fn add_in_place(
        self,
        lhs: &CubeTensor,
        rhs: &CubeTensor,
        part: &CubeTensor,
    ) -> bool {
        self.check_sum(lhs, rhs, part);
        #[cfg(feature = "cuda")]
        if cublaslt::supports(lhs, rhs) && cublaslt::fits(rhs, part) {
            let place = cublaslt::Target::Place(part.clone());
            cublaslt::gemm(lhs.clone(), rhs.clone(), place, self);
            return true;
        }
        false
    }

    /// The shape of a product, after all checks.
    fn check(self, lhs: &CubeTensor, rhs: &CubeTensor) -> Shape {
        for factor in [lhs, rhs] {
            check(&lhs.client, factor, lhs.dtype);
        }
        output_shape(&lhs.shape(), &rhs.shape(), self)
    }

    /// The same with what the product is added to.
    fn check_sum(self, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Shape {
        let shape = self.check(lhs, rhs);
        check(&lhs.client, out, self.output_dtype(lhs.dtype));
        assert_eq!(out.shape(), shape, "gemm: what is added to and the product");
        shape
    }
}

/// Whether a product has no elements, or is a sum of none.
fn is_empty(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    [lhs, rhs].iter().any(|factor| factor.shape().num_elements() == 0)
}

impl GemmOps for CubeBackend {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
        let shape = gemm.check(&lhs, &rhs);
        if is_empty(&lhs, &rhs) {
            return zeros(lhs.device.clone(), shape, gemm.output_dtype(lhs.dtype));
        }
        #[cfg(feature = "cuda")]
        if cublaslt::supports(&lhs, &rhs) {
            return cublaslt::gemm(lhs, rhs, cublaslt::Target::New, gemm);
        }
        matmul::<Self>(lhs, rhs, gemm)
    }

    fn gemm_add(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        out: FloatTensor<Self>,
        gemm: Gemm,
    ) -> FloatTensor<Self> {
        gemm.check_sum(&lhs, &rhs, &out);
        if is_empty(&lhs, &rhs) {
            return out;
        }
        #[cfg(feature = "cuda")]
        if cublaslt::supports(&lhs, &rhs) {
            return cublaslt::gemm(lhs, rhs, cublaslt::Target::Sum(out), gemm);
        }
        Self::float_add(out, matmul::<Self>(lhs, rhs, gemm))
    }
}
