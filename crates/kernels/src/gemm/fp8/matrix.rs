//! A matrix in E4M3, with a scale for each row.

use cubecl::{client::Client, server::Handle};

/// A matrix `[rows, width]` in E4M3, row-major, with a scale for each row: on a CUDA device, for kernels
/// that make one of a weight.
#[derive(Clone, Debug)]
pub struct Fp8Matrix {
    /// Values, one byte each.
    pub codes: Handle,
    /// Scales of the rows, in float32.
    pub scales: Handle,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns: a multiple of [`WIDTH_MULTIPLE`](Self::WIDTH_MULTIPLE).
    pub width: usize,
}

impl Fp8Matrix {
    /// Divisor of the columns, and of the rows of the second factor of a product.
    pub const WIDTH_MULTIPLE: usize = 16;

    /// Creates a matrix without values, for a kernel to write.
    pub fn empty(client: &Client, rows: usize, width: usize) -> Self {
        let [codes, scales] =
            [rows * width, rows * size_of::<f32>()].map(|len| client.empty(len.max(1)));
        Self { codes, scales, rows, width }
    }
}
