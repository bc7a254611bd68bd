//! The matrix product on CubeCL's runtimes.

#[cfg(feature = "cuda")]
use super::cublaslt;
use super::{
    Gemm, GemmOps, cooperative, matmul, output_shape,
    target::{self, Target},
};
use crate::cube::{check, row_dot};
use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeBackend,
    ops::{numeric::zeros, reshape},
    tensor::CubeTensor,
};

impl Gemm {
    /// Adds the product to a part of a tensor in place, even if the memory is shared: for kernels
    /// that own it. Returns `false`, and does nothing, where that is impossible: cuBLASLt and
    /// cooperative matrices can, and only if the rows of the part are contiguous and its matrices evenly
    /// spaced.
    ///
    /// # Shapes
    /// As [`run_add`](Self::run_add), but `rhs` must not be one matrix for all leading dimensions.
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes or devices differ.
    ///
    /// # Safety
    /// The caller must own the memory of `part` exclusively: other tensors that share it are
    /// changed, and neither factor may share it.
    pub unsafe fn add_in_place(
        self,
        lhs: &CubeTensor,
        rhs: &CubeTensor,
        part: &CubeTensor,
    ) -> bool {
        self.check_sum(lhs, rhs, part);
        if !target::fits(rhs, part) {
            return false;
        }
        let place = Target::Place(part.clone());
        #[cfg(feature = "cuda")]
        if cublaslt::supports(lhs, rhs) {
            cublaslt::gemm(lhs.clone(), rhs.clone(), place, self);
            return true;
        }
        let adds = cooperative::supports(lhs, rhs, self) && cooperative::adds(lhs, rhs, part, self);
        if adds {
            cooperative::gemm(lhs.clone(), rhs.clone(), place, self);
        }
        adds
    }

    /// Checks the factors, and returns the shape of the product.
    fn check(self, lhs: &CubeTensor, rhs: &CubeTensor) -> Shape {
        for factor in [lhs, rhs] {
            check(&lhs.client, factor, lhs.dtype);
        }
        output_shape(&lhs.shape(), &rhs.shape(), self)
    }

    /// Checks the factors and the tensor to add to, and returns the shape of the product.
    fn check_sum(self, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Shape {
        let shape = self.check(lhs, rhs);
        check(&lhs.client, out, self.output_dtype(lhs.dtype));
        assert_eq!(out.shape(), shape, "gemm: what is added to and the product");
        shape
    }
}

/// The product of two vectors, for which Burn's matmul would measure the device and tune.
fn dot(lhs: CubeTensor, rhs: CubeTensor, shape: Shape) -> CubeTensor {
    let row = Shape::new([1, lhs.meta.shape().num_elements()]);
    let [lhs, rhs] = [lhs, rhs].map(|factor| reshape(factor, row.clone()));
    reshape(row_dot(lhs, rhs), shape)
}

/// Returns `true` if the product has no elements, or is an empty sum.
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
            return cublaslt::gemm(lhs, rhs, Target::New, gemm);
        }
        if cooperative::supports(&lhs, &rhs, gemm) {
            return cooperative::gemm(lhs, rhs, Target::New, gemm);
        }
        if lhs.dtype == DType::F32 && gemm.alpha == 1.0 && shape.num_elements() == 1 {
            return dot(lhs, rhs, shape);
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
            return cublaslt::gemm(lhs, rhs, Target::Sum(out), gemm);
        }
        if cooperative::supports(&lhs, &rhs, gemm) && cooperative::adds(&lhs, &rhs, &out, gemm) {
            return cooperative::gemm(lhs, rhs, Target::Sum(out), gemm);
        }
        Self::float_add(out, Self::gemm(lhs, rhs, gemm))
    }
}
