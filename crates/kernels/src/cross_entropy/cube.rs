//! Cross-entropy on CubeCL's runtimes: each row is read twice, its gradient written once.

use super::CrossEntropyOps;
use crate::cube::{Rows, buffer, elem, empty, reduce, row_position, vector_size};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn cross_entropy_kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[i32],
    of_rows: &mut [f32],
    grad: &mut [Vector<F, N>],
    count: usize,
    steps: usize,
    smoothing: f32,
    nan: f32,
    #[comptime] rows: Rows,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let number = row_position(rows);
    // A row past the end repeats the last one and writes nothing.
    let row = min(number, count - 1);
    let first = row * steps;
    let target = targets[row] as usize;
    // A target outside of the vocabulary gives NaN: the host does not know the targets at launch.
    let known = target < steps * vector;

    let mut largest = f32::new(-1e30);
    let mut exponentials = 0.0f32;
    let mut weighted = 0.0f32;
    let mut all = 0.0f32;
    let mut own = 0.0f32;
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let values = logits[first + step];
        #[unroll]
        for i in 0..vector {
            let x = f32::cast_from(values.extract(i));
            let next = max(largest, x);
            let (before, this) = ((largest - next).exp(), (x - next).exp());
            exponentials = exponentials * before + this;
            weighted = weighted * before + this * x;
            largest = next;
            all += x;
            own += select(step * vector + i == target, x, 0.0f32);
        }
        step += rows.lanes as usize;
    }
    let most = reduce(largest, rows, false);
    let rescale = (largest - most).exp();
    let total = reduce(exponentials * rescale, rows, true);
    let weighted = reduce(weighted * rescale, rows, true);
    let all = reduce(all, rows, true);
    let own = reduce(own, rows, true);

    if number < count {
        let spread = smoothing / (steps * vector) as f32;
        let inverse = 1.0f32 / total;
        let mut step = UNIT_POS_X as usize;
        while step < steps {
            let values = logits[first + step];
            let mut result = Vector::<F, N>::empty();
            #[unroll]
            for i in 0..vector {
                let p = (f32::cast_from(values.extract(i)) - most).exp() * inverse;
                let hit = select(step * vector + i == target, 1.0f32 - smoothing, 0.0f32);
                let grad = select(known, p - spread - hit, nan);
                result.insert(i, F::cast_from(grad));
            }
            grad[first + step] = result;
            step += rows.lanes as usize;
        }
        if UNIT_POS_X == 0 {
            let log_sum = most + total.ln();
            let value = log_sum - (1.0f32 - smoothing) * own - spread * all;
            of_rows[number] = select(known, value, nan);
            of_rows[count + number] = select(known && own >= most, 1.0f32, 0.0f32);
            of_rows[2 * count + number] = log_sum - weighted * inverse;
            of_rows[3 * count + number] = all / (steps * vector) as f32;
        }
    }
}

impl CrossEntropyOps for CubeBackend {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [logits, targets] = [logits, targets].map(into_contiguous);
        let (client, dtype, shape) = (logits.client.clone(), logits.dtype, logits.shape());
        let (count, width) = (shape[0], shape[1]);
        let of_rows = empty(&logits, Shape::new([4, count]), DType::F32);
        let grad = empty(&logits, shape, dtype);
        if count == 0 {
            return (of_rows, grad);
        }
        let vector = vector_size(&client, dtype, width);
        let rows = Rows::of(&client, width / vector);
        // SAFETY: the buffers hold `count` rows, of `width` where they are those of logits; rows and steps
        // stay inside.
        unsafe {
            cross_entropy_kernel::launch_unchecked(
                &client,
                rows.cube_count(&client, count),
                rows.cube_dim(),
                vector,
                buffer(&client, &logits, dtype, count * width, vector),
                buffer(&client, &targets, DType::I32, count, 1),
                buffer(&client, &of_rows, DType::F32, 4 * count, 1),
                buffer(&client, &grad, dtype, count * width, vector),
                count,
                width / vector,
                smoothing,
                f32::NAN,
                rows,
                elem(dtype),
            );
        }
        (of_rows, grad)
    }
}
