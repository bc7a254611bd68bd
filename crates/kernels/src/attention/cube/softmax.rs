//! Softmax of a block of scores, and its gradient.

use crate::{
    attention::blocks::Block,
    cube::{Rows, buffer, elem, empty, reduce, row_position, vector_size},
};
use burn::{backend::TensorMetadata, tensor::DType};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Position of a block, as a kernel argument. See [`Block`].
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Place {
    /// Number of rows of scores.
    count: usize,
    /// Vectors of scores per row.
    steps: usize,
    first_batch: usize,
    first_head: usize,
    heads: usize,
    first_row: usize,
    height: usize,
    first_key: usize,
    kv_heads: usize,
    groups: usize,
    length: usize,
    offset: usize,
    span_rows: usize,
    window: usize,
}

impl Place {
    fn launch_arg(block: &Block, spans: &CubeTensor, vector: usize) -> PlaceLaunch {
        PlaceLaunch::new(
            block.score_rows(),
            block.keys.len() / vector,
            block.batch.start,
            block.heads.start,
            block.heads.len(),
            block.rows.start,
            block.rows.len(),
            block.keys.start,
            block.kv_heads,
            block.groups,
            block.length,
            block.offset,
            spans.shape()[1],
            // No window: as many keys as there are.
            block.spec.window.unwrap_or(usize::MAX).min(block.length + block.offset),
        )
    }
}

/// A row of a block.
#[derive(CubeType, Clone, Copy)]
struct Row {
    /// Index of its values in `[batch, heads, length]`.
    at: usize,
    /// First visible key, relative to the block's first key.
    first: usize,
    /// End of the visible keys, exclusive.
    end: usize,
}

#[cube]
fn row_of(number: usize, place: &Place, spans: &[i32]) -> Row {
    let row = place.first_row + number % place.height;
    let rest = number / place.height;
    let group = rest % place.groups;
    let rest = rest / place.groups;
    let head = place.first_head + rest % place.heads;
    let batch = place.first_batch + rest / place.heads;
    let at = ((batch * place.kv_heads + head) * place.groups + group) * place.length + row;

    let span = (batch % place.span_rows) * place.length + row;
    let own = row + place.offset + 1;
    let first = max(own, place.window) - place.window;
    let first = max(first, max(spans[span], 0i32) as usize);
    // A span may begin anywhere: one that does not reach the query becomes empty, inside the block.
    let first = min(max(first, place.first_key), own);
    let end = min(own, max(spans[place.span_rows * place.length + span], 0i32) as usize);
    let end = max(end, first);
    Row { at, first: first - place.first_key, end: end - place.first_key }
}

#[cube(launch_unchecked)]
fn forward_kernel<S: Float, F: Float, N: Size>(
    scores: &[Vector<S, N>],
    spans: &[i32],
    lse: &mut [f32],
    out: &mut [Vector<F, N>],
    place: &Place,
    scale: f32,
    #[comptime] rows: Rows,
    #[define(S)] _from: ElemType,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let number = row_position(rows);
    // A row past the end repeats the last one and writes nothing.
    let row = row_of(min(number, place.count - 1), place, spans);
    let start = min(number, place.count - 1) * place.steps;
    let lanes = rows.lanes as usize;
    let from = row.first / vector + UNIT_POS_X as usize;
    let last = row.end + comptime![vector - 1];
    let to = last / vector;

    let mut largest = f32::new(-1e30);
    let mut sum = 0.0f32;
    let mut step = from;
    while step < to {
        let values = scores[start + step];
        #[unroll]
        for i in 0..vector {
            let key = step * vector + i;
            if key >= row.first && key < row.end {
                let score = f32::cast_from(values.extract(i)) * scale;
                let next = max(largest, score);
                sum = sum * (largest - next).exp() + (score - next).exp();
                largest = next;
            }
        }
        step += lanes;
    }
    let most = reduce(largest, rows, false);
    let total = reduce(sum * (largest - most).exp(), rows, true);

    if number < place.count {
        // A row without visible keys has the sum 0, and zeros throughout.
        let total = select(row.first < row.end, total, 1.0f32);
        let inverse = 1.0f32 / total;
        let mut step = UNIT_POS_X as usize;
        while step < place.steps {
            let mut result = Vector::<F, N>::empty();
            if step * vector + vector > row.first && step * vector < row.end {
                let values = scores[start + step];
                #[unroll]
                for i in 0..vector {
                    let key = step * vector + i;
                    let score = f32::cast_from(values.extract(i)) * scale;
                    let p = (min(score - most, 0.0f32)).exp() * inverse;
                    let seen = key >= row.first && key < row.end;
                    result.insert(i, F::cast_from(select(seen, p, 0.0f32)));
                }
            } else {
                #[unroll]
                for i in 0..vector {
                    result.insert(i, F::cast_from(0.0f32));
                }
            }
            out[start + step] = result;
            step += lanes;
        }
        if UNIT_POS_X == 0 {
            lse[row.at] = select(row.first < row.end, most + total.ln(), 0.0f32);
        }
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<S: Float, F: Float, N: Size>(
    scores: &[Vector<S, N>],
    p_grad: &[Vector<S, N>],
    lse: &[f32],
    delta: &[f32],
    spans: &[i32],
    p: &mut [Vector<F, N>],
    s_grad: &mut [Vector<F, N>],
    place: &Place,
    scale: f32,
    #[comptime] rows: Rows,
    #[define(S)] _from: ElemType,
    #[define(F)] _dtype: ElemType,
) {
    let vector = N::value().comptime();
    let number = row_position(rows);
    if number < place.count {
        let row = row_of(number, place, spans);
        let start = number * place.steps;
        let (lse, delta) = (lse[row.at], delta[row.at]);
        let mut step = UNIT_POS_X as usize;
        while step < place.steps {
            let mut ps = Vector::<F, N>::empty();
            let mut grads = Vector::<F, N>::empty();
            if step * vector + vector > row.first && step * vector < row.end {
                let (values, p_grads) = (scores[start + step], p_grad[start + step]);
                #[unroll]
                for i in 0..vector {
                    let key = step * vector + i;
                    let seen = key >= row.first && key < row.end;
                    let score = f32::cast_from(values.extract(i)) * scale - lse;
                    // The score of a key that is not visible can be anything.
                    let p = select(seen, (min(score, 1.0f32)).exp(), 0.0f32);
                    let grad = scale * p * (f32::cast_from(p_grads.extract(i)) - delta);
                    ps.insert(i, F::cast_from(p));
                    grads.insert(i, F::cast_from(grad));
                }
            } else {
                #[unroll]
                for i in 0..vector {
                    ps.insert(i, F::cast_from(0.0f32));
                    grads.insert(i, F::cast_from(0.0f32));
                }
            }
            p[start + step] = ps;
            s_grad[start + step] = grads;
            step += rows.lanes as usize;
        }
    }
}

/// [`BlockOps::block_softmax`](crate::attention::blocks::BlockOps::block_softmax).
pub(super) fn forward(
    scores: CubeTensor,
    lse: CubeTensor,
    spans: CubeTensor,
    block: &Block,
    dtype: DType,
) -> (CubeTensor, CubeTensor) {
    let scores = into_contiguous(scores);
    let client = scores.client.clone();
    let out = empty(&scores, scores.shape(), dtype);
    let (len, queries) = (block.score_rows() * block.keys.len(), lse.shape().num_elements());
    let vector = vector_size(&client, DType::F32, block.keys.len());
    let rows = Rows::of(&client, block.keys.len() / vector);
    // SAFETY: the buffers are as large as `Block` says, and there is a value for each query of the
    // attention that it is a part of; rows and steps stay inside, whatever the spans.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            rows.cube_count(&client, block.score_rows()),
            rows.cube_dim(),
            vector,
            buffer(&client, &scores, scores.dtype, len, vector),
            buffer(&client, &spans, DType::I32, 2 * spans.shape()[1] * block.length, 1),
            buffer(&client, &lse, DType::F32, queries, 1),
            buffer(&client, &out, dtype, len, vector),
            Place::launch_arg(block, &spans, vector),
            block.spec.scale,
            rows,
            elem(scores.dtype),
            elem(dtype),
        );
    }
    (out, lse)
}

/// [`BlockOps::block_softmax_grad`](crate::attention::blocks::BlockOps::block_softmax_grad).
pub(super) fn backward(
    scores: CubeTensor,
    p_grad: CubeTensor,
    lse: CubeTensor,
    delta: CubeTensor,
    spans: CubeTensor,
    block: &Block,
    dtype: DType,
) -> (CubeTensor, CubeTensor) {
    let [scores, p_grad, lse] = [scores, p_grad, lse].map(into_contiguous);
    let client = scores.client.clone();
    let (p, s_grad) =
        (empty(&scores, scores.shape(), dtype), empty(&scores, scores.shape(), dtype));
    let (len, queries) = (block.score_rows() * block.keys.len(), lse.shape().num_elements());
    let vector = vector_size(&client, DType::F32, block.keys.len());
    let rows = Rows::of(&client, block.keys.len() / vector);
    // SAFETY: the buffers are as large as `Block` says, and there is a value for each query of the
    // attention that it is a part of; rows and steps stay inside, whatever the spans.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            rows.cube_count(&client, block.score_rows()),
            rows.cube_dim(),
            vector,
            buffer(&client, &scores, scores.dtype, len, vector),
            buffer(&client, &p_grad, scores.dtype, len, vector),
            buffer(&client, &lse, DType::F32, queries, 1),
            buffer(&client, &delta, DType::F32, queries, 1),
            buffer(&client, &spans, DType::I32, 2 * spans.shape()[1] * block.length, 1),
            buffer(&client, &p, dtype, len, vector),
            buffer(&client, &s_grad, dtype, len, vector),
            Place::launch_arg(block, &spans, vector),
            block.spec.scale,
            rows,
            elem(scores.dtype),
            elem(dtype),
        );
    }
    (p, s_grad)
}
