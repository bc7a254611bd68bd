//! Products of vectors.

use super::{Rows, buffer, elem, empty, reduce, row_position, vector_size};
use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn row_dot_kernel<F: Float, N: Size>(
    a: &[Vector<F, N>],
    b: &[Vector<F, N>],
    out: &mut [f32],
    count: usize,
    steps: usize,
    #[comptime] rows: Rows,
    #[define(F)] _dtype: ElemType,
) {
    let number = row_position(rows);
    let start = min(number, count - 1) * steps;
    let mut sum = 0.0f32;
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let (a, b) = (a[start + step], b[start + step]);
        #[unroll]
        for i in 0..N::value().comptime() {
            sum += f32::cast_from(a.extract(i)) * f32::cast_from(b.extract(i));
        }
        step += rows.lanes as usize;
    }
    let sum = reduce(sum, rows, true);
    if UNIT_POS_X == 0 && number < count {
        out[number] = sum;
    }
}

/// `sum(a · b)` over the last dimension, in float32, in the same order each time.
pub(crate) fn row_dot(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let [a, b] = [a, b].map(into_contiguous);
    let (client, dtype, shape) = (a.client.clone(), a.dtype, a.shape());
    let (last, width) = (shape.num_dims() - 1, shape[shape.num_dims() - 1]);
    let out = empty(&a, Shape::from(shape[..last].to_vec()), DType::F32);
    let count = out.shape().num_elements();
    if count == 0 {
        return out;
    }
    let vector = vector_size(&client, dtype, width);
    let rows = Rows::of(&client, width / vector);
    // SAFETY: the buffers hold `count` rows of `width`; rows and steps stay inside.
    unsafe {
        row_dot_kernel::launch_unchecked(
            &client,
            rows.cube_count(&client, count),
            rows.cube_dim(),
            vector,
            buffer(&client, &a, dtype, count * width, vector),
            buffer(&client, &b, dtype, count * width, vector),
            buffer(&client, &out, DType::F32, count, 1),
            count,
            width / vector,
            rows,
            elem(dtype),
        );
    }
    out
}
