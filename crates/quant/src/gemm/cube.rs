//! The product on CubeCL's runtimes.

use super::{Gemm, GemmOps, matmul};
use burn::backend::{ops::FloatTensorOps, tensor::FloatTensor};
use burn_cubecl::CubeBackend;

impl GemmOps for CubeBackend {
    fn gemm(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, gemm: Gemm) -> FloatTensor<Self> {
        #[cfg(feature = "cuda")]
        if super::cublaslt::supports(&lhs, &rhs) {
            return super::cublaslt::gemm(lhs, rhs, None, gemm);
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
        if super::cublaslt::supports(&lhs, &rhs) {
            return super::cublaslt::gemm(lhs, rhs, Some(out), gemm);
        }
        Self::float_add(out, matmul::<Self>(lhs, rhs, gemm))
    }
}
