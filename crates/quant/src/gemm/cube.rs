//! The product on CubeCL's runtimes.

#[cfg(feature = "cuda")]
use super::cublaslt;
use super::{Gemm, GemmOps, matmul};
use burn::backend::{ops::FloatTensorOps, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

impl Gemm {
    /// Adds the product to a part of a tensor in place, whoever else sees its memory: for kernels
    /// that own that. Says whether it did: only cuBLASLt can, and only where the rows of the part
    /// are contiguous and its matrices evenly spaced.
    ///
    /// # Shapes
    /// As [`run_add`](Self::run_add), but one matrix for all is not taken.
    pub fn add_in_place(self, lhs: &CubeTensor, rhs: &CubeTensor, part: &CubeTensor) -> bool {
        #[cfg(feature = "cuda")]
        if cublaslt::supports(lhs, rhs) && cublaslt::fits(part) {
            let place = cublaslt::Target::Place(part.clone());
            cublaslt::gemm(lhs.clone(), rhs.clone(), place, self);
            return true;
        }
        let _ = (lhs, rhs, part);
        false
    }
}

impl GemmOps for CubeBackend {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
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
        #[cfg(feature = "cuda")]
        if cublaslt::supports(&lhs, &rhs) {
            return cublaslt::gemm(lhs, rhs, cublaslt::Target::Sum(out), gemm);
        }
        Self::float_add(out, matmul::<Self>(lhs, rhs, gemm))
    }
}
