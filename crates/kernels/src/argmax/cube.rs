//! The largest element of each row on CubeCL's runtimes.

use super::ArgmaxOps;
use crate::cube::{Rows, buffer, elem, empty, reduce, row_position, vector_size};
use burn::{
    backend::tensor::{FloatTensor, IntTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::prelude::*;

/// Vectors that a unit loads at once.
const UNROLL: usize = 4;

#[cube(launch_unchecked)]
fn argmax_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [i32],
    count: usize,
    steps: usize,
    #[comptime] rows: Rows,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let lanes = rows.lanes as usize;
    let row = row_position(rows);
    // A row past the end repeats the last one and writes nothing.
    let first = min(row, count - 1) * steps;
    // (WGSL has no infinity.)
    let mut most = f32::min_value();
    let mut place = 0usize;
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        #[unroll]
        for turn in 0..UNROLL {
            // Past the end, the last again: it is not larger than itself.
            let at = min(step + turn * lanes, steps - 1);
            let values = x[first + at];
            #[unroll]
            for i in 0..vector {
                let value = f32::cast_from(values.extract(i));
                if value > most {
                    most = value;
                    place = at * vector + i;
                }
            }
        }
        step += UNROLL * lanes;
    }
    let largest = reduce(most, rows, false);
    // Of the units that have it, the first place: indices of up to 24 bits are exact in float32.
    let own = if most == largest { 0.0f32 - place as f32 } else { f32::min_value() };
    let place = 0.0f32 - reduce(own, rows, false);
    if row < count && UNIT_POS_X == 0 {
        out[row] = place as i32;
    }
}

impl ArgmaxOps for CubeBackend {
    fn argmax_rows(x: FloatTensor<Self>) -> IntTensor<Self> {
        let x = into_contiguous(x);
        let (client, dtype, [count, width]) = (x.client.clone(), x.dtype, x.meta.shape().dims());
        let out = empty(&x, Shape::new([count]), DType::I32);
        if count == 0 {
            return out;
        }
        let vector = vector_size(&client, dtype, width);
        let steps = width / vector;
        let rows = Rows::of(&client, steps);
        // SAFETY: the buffer holds `count` rows of `width`, and the output an element for each; rows and steps stay inside.
        unsafe {
            argmax_kernel::launch_unchecked(
                &client,
                rows.cube_count(&client, count),
                rows.cube_dim(),
                vector,
                buffer(&client, &x, dtype, count * width, vector),
                buffer(&client, &out, DType::I32, count, 1),
                count,
                steps,
                rows,
                elem(dtype),
            );
        }
        out
    }
}
