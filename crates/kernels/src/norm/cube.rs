//! RMSNorm on CubeCL's runtimes: each row is read twice, the second time from a cache.

use super::{NormOps, NormSpec};
use crate::cube::{Rows, buffer, elem, empty, reduce, row_position, vector_size};
use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: usize,
    steps: usize,
    eps: f32,
    offset: f32,
    #[comptime] rows: Rows,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let row = row_position(rows);
    // A row past the end repeats the last one and writes nothing.
    let first = min(row, count - 1) * steps;
    let mut sum = 0.0f32;
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let values = x[first + step];
        #[unroll]
        for i in 0..vector {
            let value = f32::cast_from(values.extract(i));
            sum += value * value;
        }
        step += rows.lanes as usize;
    }
    let sum = reduce(sum, rows, true);
    let factor = (sum / (steps * vector) as f32 + eps).inverse_sqrt();
    if row < count {
        let mut step = UNIT_POS_X as usize;
        while step < steps {
            let (values, weights) = (x[first + step], weight[step]);
            let mut result = Vector::<F, N>::empty();
            #[unroll]
            for i in 0..vector {
                let value = f32::cast_from(values.extract(i)) * factor;
                let weight = f32::cast_from(weights.extract(i)) + offset;
                result.insert(i, F::cast_from(value * weight));
            }
            out[first + step] = result;
            step += rows.lanes as usize;
        }
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: usize,
    steps: usize,
    eps: f32,
    offset: f32,
    #[comptime] rows: Rows,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let row = row_position(rows);
    let first = min(row, count - 1) * steps;
    let mut sum = 0.0f32;
    let mut along = 0.0f32;
    let mut step = UNIT_POS_X as usize;
    while step < steps {
        let (values, grads, weights) = (x[first + step], grad[first + step], weight[step]);
        #[unroll]
        for i in 0..vector {
            let value = f32::cast_from(values.extract(i));
            let weight = f32::cast_from(weights.extract(i)) + offset;
            sum += value * value;
            along += value * f32::cast_from(grads.extract(i)) * weight;
        }
        step += rows.lanes as usize;
    }
    let width = (steps * vector) as f32;
    let factor = (reduce(sum, rows, true) / width + eps).inverse_sqrt();
    let along = reduce(along, rows, true) * factor * factor / width;
    if row < count {
        let mut step = UNIT_POS_X as usize;
        while step < steps {
            let (values, grads, weights) = (x[first + step], grad[first + step], weight[step]);
            let mut result = Vector::<F, N>::empty();
            #[unroll]
            for i in 0..vector {
                let weight = f32::cast_from(weights.extract(i)) + offset;
                let grad = f32::cast_from(grads.extract(i)) * weight;
                let value = f32::cast_from(values.extract(i));
                result.insert(i, F::cast_from((grad - value * along) * factor));
            }
            out[first + step] = result;
            step += rows.lanes as usize;
        }
    }
}

impl NormOps for CubeBackend {
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let [x, weight] = [x, weight].map(into_contiguous);
        let (client, dtype, shape) = (x.client.clone(), x.dtype, x.shape());
        let out = empty(&x, shape.clone(), dtype);
        let width = weight.shape()[0];
        let count = shape.num_elements() / width.max(1);
        if count == 0 {
            return out;
        }
        let vector = vector_size(&client, dtype, width);
        let steps = width / vector;
        let rows = Rows::of(&client, steps);
        // SAFETY: the buffers hold `count` rows of `width`, and the weight one; rows and steps stay inside.
        unsafe {
            forward_kernel::launch_unchecked(
                &client,
                rows.cube_count(&client, count),
                rows.cube_dim(),
                vector,
                buffer(&client, &x, dtype, count * width, vector),
                buffer(&client, &weight, dtype, width, vector),
                buffer(&client, &out, dtype, count * width, vector),
                count,
                steps,
                spec.eps as f32,
                spec.offset as f32,
                rows,
                elem(dtype),
            );
        }
        out
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let [grad, x, weight] = [grad, x, weight].map(into_contiguous);
        let (client, dtype, shape) = (x.client.clone(), x.dtype, x.shape());
        let out = empty(&x, shape.clone(), dtype);
        let width = weight.shape()[0];
        let count = shape.num_elements() / width.max(1);
        if count == 0 {
            return out;
        }
        let vector = vector_size(&client, dtype, width);
        let steps = width / vector;
        let rows = Rows::of(&client, steps);
        // SAFETY: as above.
        unsafe {
            backward_kernel::launch_unchecked(
                &client,
                rows.cube_count(&client, count),
                rows.cube_dim(),
                vector,
                buffer(&client, &grad, dtype, count * width, vector),
                buffer(&client, &x, dtype, count * width, vector),
                buffer(&client, &weight, dtype, width, vector),
                buffer(&client, &out, dtype, count * width, vector),
                count,
                steps,
                spec.eps as f32,
                spec.offset as f32,
                rows,
                elem(dtype),
            );
        }
        out
    }
}
