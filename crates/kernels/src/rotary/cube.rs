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
/// `half` vectors; the first `2 * turned` of a head are rotated. A unit writes a vector of each half
/// of these, or two of the rest; a position outside of the table gives NaN.
#[cube(launch_unchecked)]
fn rotate_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    positions: &[i32],
    table: &[Vector<f32, N>],
    out: &mut [Vector<F, N>],
    count: usize,
    half: usize,
    turned: usize,
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
        let from = ((batch * outer + o) * inner + i) * half * 2;
        let to = row * half * 2;
        if step < turned {
            let (length, at) = if inverse { (inner, i) } else { (outer, o) };
            let position = positions[(batch % position_rows) * length + at] as usize;
            let known = position < table_rows;
            let angles = select(known, position, 0usize) * turned * 2 + step;
            let (cos, sin) = (table[angles], table[angles + turned]);
            let (first, second) = (x[from + step], x[from + step + turned]);
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
            out[to + step] = out_first;
            out[to + step + turned] = out_second;
        } else {
            let rest = step + turned;
            out[to + rest] = x[from + rest];
            out[to + rest + half - turned] = x[from + rest + half - turned];
        }
    }
}

/// Greatest common divisor.
fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
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
        let rotated = table.shape()[1];
        // Of both halves of the rotated part, and of the whole.
        let both = common_divisor(rotated / 2, width / 2);
        let vector = vector_size(&client, table.dtype, both);
        let (half, turned) = (width / 2 / vector, rotated / 2 / vector);
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
                buffer(&client, &table, DType::F32, table_rows * rotated, vector),
                buffer(&client, &out, dtype, 2 * count * vector, vector),
                count,
                half,
                turned,
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
