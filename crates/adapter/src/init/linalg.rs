//! Host matrices and their decompositions (by faer).

use crate::error::AdapterError;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use faer::{Mat, MatRef};
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, StandardNormal};

/// Extra singular values of the subspace iteration, for the accuracy of the last ones requested.
const OVERSAMPLING: usize = 8;

/// Size, of the smaller side of a matrix, up to which [`svd_accurate`] decomposes exactly.
const SMALL: usize = 512;

/// Truncated singular value decomposition of a matrix: `u · diag(s) · vᵀ`.
pub(crate) struct Svd {
    /// Left singular vectors, `[rows, count]`.
    pub u: Mat<f32>,
    /// Singular values, in descending order.
    pub s: Vec<f32>,
    /// Right singular vectors, `[columns, count]`.
    pub v: Mat<f32>,
}

impl Svd {
    /// Returns `u · diag(scale(s))`, the layout of B `[out, rank]`.
    pub fn left(&self, scale: impl Fn(f32) -> f32) -> Mat<f32> {
        Mat::from_fn(self.u.nrows(), self.s.len(), |i, j| self.u[(i, j)] * scale(self.s[j]))
    }

    /// Returns `diag(scale(s)) · vᵀ`, the layout of A `[rank, in]`.
    pub fn right(&self, scale: impl Fn(f32) -> f32) -> Mat<f32> {
        Mat::from_fn(self.s.len(), self.v.nrows(), |i, j| self.v[(j, i)] * scale(self.s[i]))
    }
}

fn failed(layer: &str, reason: impl Into<String>) -> AdapterError {
    AdapterError::Layer { layer: layer.to_owned(), reason: reason.into() }
}

/// Computes the full decomposition, truncated to `rank`.
pub(crate) fn svd(matrix: MatRef<'_, f32>, rank: usize, layer: &str) -> Result<Svd, AdapterError> {
    let svd = matrix.thin_svd().map_err(|error| failed(layer, format!("SVD: {error:?}")))?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let rank = rank.min(s.nrows());
    Ok(Svd {
        u: u.subcols(0, rank).to_owned(),
        s: (0..rank).map(|i| s[i]).collect(),
        v: v.subcols(0, rank).to_owned(),
    })
}

/// Computes the largest singular values by subspace iteration (arXiv:0909.4061, algorithm 4.4).
pub(crate) fn svd_iterative(
    matrix: MatRef<'_, f32>,
    rank: usize,
    rounds: usize,
    rng: &mut Xoshiro256PlusPlus,
    layer: &str,
) -> Result<Svd, AdapterError> {
    let basis = |matrix: Mat<f32>| matrix.qr().compute_thin_Q();
    let width = (rank + OVERSAMPLING).min(matrix.nrows()).min(matrix.ncols());
    let start = normal(matrix.ncols(), width, rng);
    let mut q = basis(matrix * start);
    for _ in 0..rounds {
        let back = basis(matrix.transpose() * q);
        q = basis(matrix * back);
    }
    let small = svd((q.transpose() * matrix).as_ref(), rank, layer)?;
    Ok(Svd { u: q * small.u, ..small })
}

/// Computes the largest singular values: exactly for a small matrix, else by 8 rounds of iteration.
pub(crate) fn svd_accurate(
    matrix: MatRef<'_, f32>,
    rank: usize,
    rng: &mut Xoshiro256PlusPlus,
    layer: &str,
) -> Result<Svd, AdapterError> {
    if matrix.nrows().min(matrix.ncols()) <= SMALL {
        svd(matrix, rank, layer)
    } else {
        svd_iterative(matrix, rank, 8, rng, layer)
    }
}

/// Matrix of samples from N(0, 1).
pub(crate) fn normal(rows: usize, columns: usize, rng: &mut Xoshiro256PlusPlus) -> Mat<f32> {
    Mat::from_fn(rows, columns, |_, _| StandardNormal.sample(rng))
}

/// Copies a tensor to the host.
///
/// # Errors
/// [`AdapterError::Device`] if it cannot be read; [`AdapterError::Layer`] if a value is not finite.
pub(crate) fn to_mat(tensor: Tensor<2>, layer: &str) -> Result<Mat<f32>, AdapterError> {
    let [rows, columns] = tensor.dims();
    let values = to_vec(tensor, layer)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(failed(layer, "a matrix to decompose has values that are not finite"));
    }
    Ok(Mat::from_fn(rows, columns, |i, j| values[i * columns + j]))
}

/// Copies the values of a tensor to the host, in float32.
pub(crate) fn to_vec<const D: usize>(
    tensor: Tensor<D>,
    name: &str,
) -> Result<Vec<f32>, AdapterError> {
    let error = |reason: String| AdapterError::Device { tensor: name.to_owned(), reason };
    let tensor = tensor.inner().cast(FloatDType::F32);
    let data = tensor.try_into_data().map_err(|e| error(e.to_string()))?;
    data.try_into_vec().map_err(|e| error(format!("{e:?}")))
}

/// Copies a matrix to a device, in float32.
pub(crate) fn to_tensor(matrix: MatRef<'_, f32>, device: &Device) -> Tensor<2> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let mut values = Vec::with_capacity(rows * columns);
    for i in 0..rows {
        values.extend((0..columns).map(|j| matrix[(i, j)]));
    }
    tensor(values, [rows, columns], device)
}

/// Copies values to a device, in float32.
pub(crate) fn tensor<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}
