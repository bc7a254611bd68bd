//! The matrix product of two factors in E4M3, by cuBLASLt.

pub(super) mod matrix;

pub use matrix::Fp8Matrix;

use super::cublaslt;
use crate::{
    cube::{check_contiguous, empty},
    cuda::{Kernel, Scalar, has_fp8},
};
use burn::{
    backend::ops::FloatTensorOps,
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::client::Client;

impl Fp8Matrix {
    /// Returns `true` if the device multiplies in FP8: compute capability 8.9 and above, with cuBLAS.
    pub fn supported_by(client: &Client) -> bool {
        has_fp8(client) && cublaslt::library_is_present()
    }

    /// Rounds the rows of a matrix, each with the scale that maps its largest magnitude to 448.
    ///
    /// # Panics
    /// If it is no matrix of floats with a multiple of 16 columns.
    pub fn quantize(x: CubeTensor) -> Self {
        let x = into_contiguous(x);
        // Rows are loaded 16 bytes at a time.
        let aligned = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
        let x = if aligned { x } else { into_contiguous(x.copy()) };
        let (client, shape) = (x.client.clone(), x.meta.shape().clone());
        assert_eq!(shape.num_dims(), 2, "fp8: {shape:?} is no matrix");
        let (rows, width) = (shape[0], shape[1]);
        let fits = width.is_multiple_of(Self::WIDTH_MULTIPLE) && width < i32::MAX as usize;
        assert!(fits, "fp8: {shape:?}");
        check_contiguous(&client, &x, x.dtype, rows * width);
        let dtype = match x.dtype {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
            other => panic!("fp8: a matrix in {other:?}"),
        };
        let out = Self::empty(&client, rows, width);
        let kernel = Kernel {
            source: include_str!("fp8.cu"),
            defines: vec![("DTYPE", dtype)],
            name: "quantize_rows",
            threads: 256,
            shared_bytes: 0,
            overlaps: false,
        };
        let written = vec![out.codes.clone(), out.scales.clone()];
        // SAFETY: the parameters are those of the source, and the buffers have `rows` rows of `width`.
        unsafe {
            let width = vec![Scalar::I32(width as i32)];
            kernel.launch(&client, [rows, 1, 1], vec![x.handle.clone()], written, width);
        }
        out
    }

    /// Computes `sum + self · rhsᵀ`, `[rows, rhs.rows]`, in the dtype of `like`, on whose device the
    /// factors are; in the memory of `sum` unless that is shared.
    ///
    /// # Panics
    /// If the shapes do not fit, or the device has no products in FP8.
    pub fn times_transposed(
        &self,
        rhs: &Self,
        sum: Option<CubeTensor>,
        like: &CubeTensor,
    ) -> CubeTensor {
        assert!(Self::supported_by(&like.client), "fp8: the device has no products in FP8");
        assert_eq!(self.width, rhs.width, "fp8: the inner dimensions");
        assert!(rhs.rows.is_multiple_of(Self::WIDTH_MULTIPLE), "fp8: {} rows", rhs.rows);
        let shape = Shape::new([self.rows, rhs.rows]);
        if let Some(sum) = &sum {
            assert_eq!(
                (sum.meta.shape(), sum.dtype),
                (&shape, like.dtype),
                "fp8: what is added to"
            );
        }
        if cublaslt::scales_rows(&like.client) {
            return cublaslt::gemm_fp8([self, rhs], true, sum, || empty(like, shape, like.dtype));
        }
        // Elsewhere a product has one scale: those of the rows follow. The scales of a weight's rows
        // are one, too, but only the device knows it.
        let out = cublaslt::gemm_fp8([self, rhs], false, None, || empty(like, shape, DType::F32));
        let scales = |of: &Self, shape| {
            let (client, device) = (like.client.clone(), like.device.clone());
            CubeTensor::new_contiguous(
                client,
                device,
                Shape::new(shape),
                of.scales.clone(),
                DType::F32,
            )
        };
        let out = CubeBackend::float_mul(out, scales(self, [self.rows, 1]));
        let out = CubeBackend::float_mul(out, scales(rhs, [1, rhs.rows]));
        let out = CubeBackend::float_cast(out, like.dtype.into());
        match sum {
            Some(sum) => CubeBackend::float_add(sum, out),
            None => out,
        }
    }
}
