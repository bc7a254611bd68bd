//! Tensors as matrices in memory.

use super::{Dims, Gemm};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};

/// A matrix or a batch of matrices in memory, in cuBLASLt's terms: it takes every matrix as one
/// with contiguous columns, so that one with contiguous rows is the transposed matrix to it. That
/// is what it needs: the output has contiguous rows too, and is computed as
/// `out^T = rhs^T * lhs^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matrix {
    pub rows: u64,
    pub cols: u64,
    /// Number of elements from one column to the next.
    pub stride: i64,
    /// Number of elements from one matrix to the next.
    pub batch_stride: i64,
    /// 0, `CUBLAS_OP_N`: this is the transposed matrix already; 1, `CUBLAS_OP_T`: transpose it.
    pub op: i32,
}

impl Matrix {
    /// Describes the last two dimensions, or with `flat` the last one and all others as rows.
    pub fn of(tensor: &CubeTensor, flat: bool) -> Option<Self> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let rank = shape.num_dims();
        let (leading, rows, cols) = (&shape[..rank - 2], shape[rank - 2], shape[rank - 1]);
        let count: usize = leading.iter().product();
        // `true` if one stride describes the leading dimensions, innermost last.
        let dense = |mut next: usize| {
            let mut dims = leading.iter().zip(&strides[..rank - 2]).rev();
            dims.all(|(&dim, &stride)| {
                let fits = dim == 1 || stride == next;
                next *= dim;
                fits
            })
        };
        let innermost = leading.iter().zip(&strides[..rank - 2]).rev().find(|(dim, _)| **dim != 1);
        let batch_stride = innermost.map_or(0, |(_, stride)| *stride);
        if count > 1 && !dense(batch_stride) || tensor.meta.is_tiled() {
            return None;
        }
        // The stride of a dimension of size 1 has no meaning.
        let next_row = if rows == 1 { cols } else { strides[rank - 2] };
        let next_col = if cols == 1 { 1 } else { strides[rank - 1] };
        let (rows, batch_stride, next_row) = match flat && count > 1 {
            true if rows == 1 => (count, 0, batch_stride),
            true if batch_stride == rows * next_row => (count * rows, 0, next_row),
            true => return None,
            false => (rows, batch_stride, next_row),
        };
        let (rows, cols, stride, op) = match (next_row, next_col) {
            (stride, 1) if stride >= cols => (cols, rows, stride, 0),
            (1, stride) if stride >= rows => (rows, cols, stride, 1),
            _ => return None,
        };
        let [rows, cols] = [rows, cols].map(|dim| dim as u64);
        Some(Self { rows, cols, stride: stride as i64, batch_stride: batch_stride as i64, op })
    }
}

/// The factors of a product as matrices.
pub(super) struct Factors {
    pub tensors: [CubeTensor; 2],
    pub matrices: [Matrix; 2],
    /// Number of products.
    pub batch: usize,
    /// The leading dimensions of `lhs` are rows: one `rhs` serves for all of them.
    pub flat: bool,
}

impl Factors {
    /// Describes the factors, after copies of those that are no matrices in memory.
    pub fn of(lhs: CubeTensor, rhs: CubeTensor, gemm: Gemm) -> Self {
        let dims = Dims::of(lhs.meta.shape(), rhs.meta.shape(), gemm);
        let flat = dims.flat(gemm);
        let batch = if flat { 1 } else { dims.batch };
        let (lhs, mut lhs_matrix) = into_matrix(lhs, flat);
        let (rhs, mut rhs_matrix) = into_matrix(rhs, false);
        lhs_matrix.op ^= i32::from(gemm.trans_lhs);
        rhs_matrix.op ^= i32::from(gemm.trans_rhs);
        Self { tensors: [lhs, rhs], matrices: [lhs_matrix, rhs_matrix], batch, flat }
    }
}

/// Describes a tensor as a [`Matrix`], after a copy if it is none.
fn into_matrix(tensor: CubeTensor, flat: bool) -> (CubeTensor, Matrix) {
    if let Some(matrix) = Matrix::of(&tensor, flat) {
        return (tensor, matrix);
    }
    let tensor = into_contiguous(tensor);
    let matrix = Matrix::of(&tensor, flat).expect("contiguous");
    (tensor, matrix)
}
