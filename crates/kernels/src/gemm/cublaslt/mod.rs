//! The matrix product by cuBLASLt.

mod plan;

use super::{
    Gemm,
    fp8::matrix::Fp8Matrix,
    matrix::{Factors, Matrix},
    output_shape,
    target::Target,
};
use crate::{cube::empty, cuda};
use burn::tensor::DType;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::client::Client;
use cudarc::cublaslt::sys;
use plan::{Operands, Problem, send};
use std::sync::OnceLock;

/// Returns `true` if [`gemm`] supports this product, whose shapes were checked; Burn's matmul
/// computes the others.
pub(super) fn supports(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    cuda::runs(&lhs.client)
        && data_type(lhs.dtype).is_some()
        && [lhs, rhs].iter().all(|tensor| tensor.meta.shape().num_elements() > 0)
        && library_is_present()
}

pub(super) fn library_is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: the call only tries to open each candidate name of the library.
    found_once(&PRESENT, || unsafe { sys::is_culib_present() })
}

/// Looks for the library at the first call, and warns once if there is none.
fn found_once(once: &OnceLock<bool>, look: impl FnOnce() -> bool) -> bool {
    *once.get_or_init(|| {
        let present = look();
        if !present {
            burn_lora_io::warn!(
                "libcublasLt is not found, so matrix products run on Burn's own kernels, which \
                 are about three times as slow: install cuBLAS or set LD_LIBRARY_PATH"
            );
        }
        present
    })
}

fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::BF16 => Some(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Some(sys::cudaDataType::CUDA_R_16F),
        DType::F32 => Some(sys::cudaDataType::CUDA_R_32F),
        _ => None,
    }
}

/// Computes the product: allocates the output and sends the call to the device's thread, in order
/// after the kernels launched so far.
pub(super) fn gemm(lhs: CubeTensor, rhs: CubeTensor, target: Target, gemm: Gemm) -> CubeTensor {
    let shape = output_shape(lhs.meta.shape(), rhs.meta.shape(), gemm);
    let Factors { tensors, matrices, batch, flat } = Factors::of(lhs, rhs, gemm);
    let ([lhs, rhs], [lhs_matrix, rhs_matrix]) = (tensors, matrices);

    let dtype = lhs.dtype;
    let out_dtype = gemm.output_dtype(dtype);
    let new = || empty(&lhs, shape, out_dtype);
    let (out, add) = match target {
        Target::New => (new(), None),
        // This handle and the clone to write to share one buffer.
        Target::Place(add) => (add.clone(), Some(add)),
        Target::Sum(add) => place(Some(add), new),
    };
    let out_matrix = Matrix::of(&out, flat).expect("contiguous, or the caller has checked");
    let problem = Problem {
        lhs: lhs_matrix,
        rhs: rhs_matrix,
        out: out_matrix,
        batch: i32::try_from(batch).expect("matrices that a GPU can hold"),
        dtype: data_type(dtype).expect("checked by `supports`"),
        out_dtype: data_type(out_dtype).expect("float32, or the same"),
        tf32: gemm.tf32,
        scaled: false,
        alignment: 256,
    };
    let factors = [lhs.handle, rhs.handle];
    let operands = Operands { factors, scales: None, add: add.map(|add| add.handle) };
    send(problem, operands, &out, gemm.alpha);
    out
}

/// Returns `true` if a product of E4M3 matrices takes a scale for each row of either.
pub(super) fn scales_rows(client: &Client) -> bool {
    // CUDA 12.9
    const VERSION: usize = 12_09_00;
    // SAFETY: the call has no requirements.
    library_is_present()
        && unsafe { sys::cublasLtGetVersion() } >= VERSION
        && cuda::compute_capability(client).is_ok_and(|capability| capability == (9, 0))
}

/// Computes `sum + lhs · rhsᵀ` of matrices in E4M3 in the memory of `sum`, or in what `new` allocates if that
/// is shared. With `scaled`, which [`scales_rows`] has to allow, rows are multiplied by their scales.
pub(super) fn gemm_fp8(
    [lhs, rhs]: [&Fp8Matrix; 2],
    scaled: bool,
    sum: Option<CubeTensor>,
    new: impl FnOnce() -> CubeTensor,
) -> CubeTensor {
    let (out, sum) = place(sum, new);
    let matrix = |of: &Fp8Matrix, op| {
        let (rows, cols) = (of.width as u64, of.rows as u64);
        Matrix { rows, cols, stride: of.width as i64, batch_stride: 0, op }
    };
    let problem = Problem {
        lhs: matrix(lhs, 0),
        rhs: matrix(rhs, 1),
        out: Matrix::of(&out, false).expect("contiguous"),
        batch: 1,
        dtype: sys::cudaDataType::CUDA_R_8F_E4M3,
        out_dtype: data_type(out.dtype).expect("a float"),
        tf32: false,
        scaled,
        alignment: 256,
    };
    let factors = [lhs, rhs].map(|factor| factor.codes.clone());
    let scales = scaled.then(|| [lhs, rhs].map(|factor| factor.scales.clone()));
    send(problem, Operands { factors, scales, add: sum.map(|sum| sum.handle) }, &out, 1.0);
    out
}

/// Returns the tensor to write to, and the one to add to: the same, unless that is shared.
fn place(
    sum: Option<CubeTensor>,
    new: impl FnOnce() -> CubeTensor,
) -> (CubeTensor, Option<CubeTensor>) {
    match sum.map(into_contiguous) {
        // Asked before there is a second handle.
        Some(sum) if sum.can_mut() => (sum.clone(), Some(sum)),
        sum => (new(), sum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_said_once() {
        let once = OnceLock::new();
        let (found, warnings) =
            burn_lora_io::collect(|| [1, 2, 3].map(|_| found_once(&once, || false)));
        assert_eq!((found, warnings.len()), ([false; 3], 1), "{warnings:?}");
        assert!(warnings[0].contains("libcublasLt"), "{warnings:?}");
    }
}
