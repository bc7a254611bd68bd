//! Rotary position embedding and the exchange of heads and sequence in one pass, on CubeCL's
//! runtimes.

use super::{RotaryOps, check};
use crate::cube::{UNITS, buffer, elem, empty, vector_size};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// `x` is `[batch, outer, inner, 2 * half]`, the output `[batch, inner, outer, 2 * half]`, with
/// `half` vectors. A unit writes a vector of each half; a position outside of the table gives NaN.
#[cube(launch_unchecked)]
fn rotate_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    positions: &[i32],
    table: &[Vector<f32, N>],
    out: &mut [Vector<F, N>],
    count: usize,
    half: usize,
    outer: usize,
    inner: usize,
    position_rows: usize,
    table_rows: usize,
    nan: f32,
    #[comptime] inverse: bool,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < count {
        let (row, step) = (ABSOLUTE_POS / half, ABSOLUTE_POS % half);
        let (rest, o) = (row / outer, row % outer);
        let (batch, i) = (rest / inner, rest % inner);
        let from = ((batch * outer + o) * inner + i) * half * 2 + step;
        let to = row * half * 2 + step;
        let (length, at) = if inverse { (inner, i) } else { (outer, o) };
        let position = positions[(batch % position_rows) * length + at] as usize;
        let known = position < table_rows;
        let angles = select(known, position, 0usize) * half * 2 + step;
        let (cos, sin) = (table[angles], table[angles + half]);
        let (first, second) = (x[from], x[from + half]);
        let mut out_first = Vector::<F, N>::empty();
        let mut out_second = Vector::<F, N>::empty();
        #[unroll]
        for j in 0..N::value().comptime() {
            let a = f32::cast_from(first.extract(j));
            let b = f32::cast_from(second.extract(j));
            let cos = select(known, cos.extract(j), nan);
            let sin = if inverse { -sin.extract(j) } else { sin.extract(j) };
            out_first.insert(j, F::cast_from(a * cos - b * sin));
            out_second.insert(j, F::cast_from(b * cos + a * sin));
        }
        out[to] = out_first;
        out[to + half] = out_second;
    }
}

impl RotaryOps for CubeBackend {
    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let [x, positions, table] = [x, positions, table].map(into_contiguous);
        let (client, dtype, shape) = (x.client.clone(), x.dtype, x.shape());
        let (batch, outer, inner, width) = (shape[0], shape[1], shape[2], shape[3]);
        let (rows, table_rows) = (positions.shape()[0], table.shape()[0]);
        let length = if inverse { inner } else { outer };
        check([batch, length, width], &positions.shape(), &table.shape());
        let out = empty(&x, Shape::new([batch, inner, outer, width]), dtype);
        let vector = vector_size(&client, table.dtype, width / 2);
        let half = width / 2 / vector;
        let count = batch * outer * inner * half;
        if count == 0 {
            return out;
        }
        let cube_dim = CubeDim::new_1d(UNITS);
        // SAFETY: the buffers are as large as these shapes, which fit each other; the kernel stays
        // below `count`, and does not look up a position outside of the table.
        unsafe {
            rotate_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, count, cube_dim),
                cube_dim,
                vector,
                buffer(&client, &x, dtype, 2 * count * vector, vector),
                buffer(&client, &positions, DType::I32, rows * length, 1),
                buffer(&client, &table, DType::F32, table_rows * width, vector),
                buffer(&client, &out, dtype, 2 * count * vector, vector),
                count,
                half,
                outer,
                inner,
                rows,
                table_rows,
                f32::NAN,
                inverse,
                elem(dtype),
            );
        }
        out
    }
}
