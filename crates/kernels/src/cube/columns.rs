//! Copies into a part of a matrix.

use super::{UNITS, buffer, elem, vector_size};
use burn::backend::TensorMetadata;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, ir::ElemType, prelude::*};

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut [Vector<F, N>],
    count: usize,
    width: usize,
    stride: usize,
    first: usize,
    factor: f32,
    #[comptime] scaled: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        let mut values = from[at];
        if scaled {
            #[unroll]
            for i in 0..N::value().comptime() {
                let value = f32::cast_from(values.extract(i)) * factor;
                values.insert(i, F::cast_from(value));
            }
        }
        to[first + at / width * stride + at % width] = values;
    }
}

/// Copies `factor · from` into a matrix, from a row and a column on.
///
/// # Shapes
/// - from: `[rows, columns]`
/// - to: `[rows or more, columns or more]`, contiguous
///
/// # Panics
/// If `from` does not fit there, or the dtypes or devices differ.
///
/// # Safety
/// Nobody else may use the memory of `to` yet.
pub unsafe fn copy_into(from: CubeTensor, factor: f32, to: &CubeTensor, [row, column]: [usize; 2]) {
    let (client, dtype, from) = (to.client.clone(), to.dtype, into_contiguous(from));
    let ([rows, width], [all, stride]) = (from.shape().dims(), to.shape().dims());
    assert!(row + rows <= all && column + width <= stride, "copy_into: outside of the matrix");
    if rows * width == 0 {
        return;
    }
    let vector = vector_size(&client, dtype, width);
    let vector = if (stride % vector, column % vector) == (0, 0) { vector } else { 1 };
    let (count, cube_dim) = (rows * width / vector, CubeDim::new_1d(UNITS));
    // SAFETY: the buffers are as long as checked; each unit below `count` stays inside, the others do nothing.
    unsafe {
        kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, count, cube_dim),
            cube_dim,
            vector,
            buffer(&client, &from, dtype, rows * width, vector),
            buffer(&client, to, dtype, all * stride, vector),
            count,
            width / vector,
            stride / vector,
            (row * stride + column) / vector,
            factor,
            factor != 1.0,
            elem(dtype),
        );
    }
}
