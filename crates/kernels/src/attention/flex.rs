//! Attention on the CPU: on all cores, in float32 for every dtype.

use super::{
    AttentionOps, AttentionSpec,
    blocks::{self, Block, BlockOps},
    ranges,
};
use crate::flex::{dot, from_f32, rows_of, to_f32};
use burn::{
    backend::{
        Flex, TensorMetadata,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType, Shape},
};
use burn_flex::FlexTensor;
use rayon::prelude::*;

impl AttentionOps for Flex {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        ranges::forward::<Self>(spans, |spans| {
            blocks::forward::<Self>(q.clone(), k.clone(), v.clone(), spans, spec)
        })
    }

    fn causal_attention_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        ranges::backward::<Self>(spans, |spans| {
            let [grad, q, k, v, out, lse] = [&grad, &q, &k, &v, &out, &lse].map(Clone::clone);
            blocks::backward::<Self>(grad, q, k, v, out, lse, spans, spec).into()
        })
    }
}

/// A row of a block.
struct Row {
    /// Index of its values in `[batch, heads, length]`.
    at: usize,
    /// Range of its visible keys, relative to the block's first key.
    seen: std::ops::Range<usize>,
}

impl Block {
    /// Returns a row of scores by its index.
    fn row(&self, number: usize, spans: &[i32]) -> Row {
        let height = self.rows.len();
        let (row, rest) = (self.rows.start + number % height, number / height);
        let (group, rest) = (rest % self.groups, rest / self.groups);
        let head = self.heads.start + rest % self.heads.len();
        let batch = self.batch.start + rest / self.heads.len();
        let at = ((batch * self.kv_heads + head) * self.groups + group) * self.length + row;

        let span_rows = spans.len() / (2 * self.length);
        let span = batch % span_rows * self.length + row;
        let own = row + self.offset + 1;
        let first = self.spec.window.map_or(0, |window| own.saturating_sub(window));
        // A span may begin anywhere: one that does not reach the query becomes empty, inside the
        // block.
        let first = first.max(spans[span].max(0) as usize).max(self.keys.start).min(own);
        let end = own.min(spans[span_rows * self.length + span].max(0) as usize);
        let end = end.min(self.keys.end).max(first) - self.keys.start;
        Row { at, seen: (first - self.keys.start).min(end)..end }
    }
}

impl BlockOps for Flex {
    fn block_softmax(
        scores: FloatTensor<Self>,
        mut lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = scores.shape();
        let (mut scores, spans) = (to_f32(scores), spans.to_contiguous());
        let (spans, width): (&[i32], usize) = (spans.storage(), block.keys.len());
        let rows = scores.storage_mut::<f32>().par_chunks_mut(width).enumerate();
        let sums: Vec<(usize, f32)> = rows
            .with_min_len(rows_of(width))
            .map(|(number, scores)| {
                let row = block.row(number, spans);
                scores[..row.seen.start].fill(0.0);
                scores[row.seen.end..].fill(0.0);
                let seen = &mut scores[row.seen];
                let max = seen.iter().fold(f32::NEG_INFINITY, |max, score| max.max(*score));
                let mut sum = 0.0;
                for score in seen.iter_mut() {
                    *score = ((*score - max) * block.spec.scale).exp();
                    sum += *score;
                }
                for score in seen.iter_mut() {
                    *score /= sum;
                }
                (row.at, if seen.is_empty() { 0.0 } else { max * block.spec.scale + sum.ln() })
            })
            .collect();
        let all = lse.storage_mut::<f32>();
        for (at, sum) in sums {
            all[at] = sum;
        }
        let p = FlexTensor::reshape(&scores, shape);
        (if dtype == FloatDType::F32 { p } else { Self::float_cast(p, dtype) }, lse)
    }

    fn block_softmax_grad(
        scores: FloatTensor<Self>,
        p_grad: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [mut p, mut s_grad] = [scores, p_grad].map(to_f32);
        let spans = spans.to_contiguous();
        let (spans, width): (&[i32], usize) = (spans.storage(), block.keys.len());
        let (lse, delta): (&[f32], &[f32]) = (lse.storage(), delta.storage());
        let scale = block.spec.scale;
        let rows = p.storage_mut::<f32>().par_chunks_mut(width);
        let rows = rows.zip(s_grad.storage_mut::<f32>().par_chunks_mut(width)).enumerate();
        rows.with_min_len(rows_of(width)).for_each(|(number, (p, s_grad))| {
            let row = block.row(number, spans);
            for values in [&mut *p, &mut *s_grad] {
                values[..row.seen.start].fill(0.0);
                values[row.seen.end..].fill(0.0);
            }
            for (p, s_grad) in p[row.seen.clone()].iter_mut().zip(&mut s_grad[row.seen]) {
                *p = (*p * scale - lse[row.at]).exp();
                *s_grad = scale * *p * (*s_grad - delta[row.at]);
            }
        });
        let cast = |tensor| {
            if dtype == FloatDType::F32 { tensor } else { Self::float_cast(tensor, dtype) }
        };
        (cast(p), cast(s_grad))
    }

    fn row_dot(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = a.shape();
        let width = shape[shape.num_dims() - 1];
        let (a, b) = (to_f32(a), to_f32(b));
        let (a, b): (&[f32], &[f32]) = (a.storage(), b.storage());
        let rows = a.par_chunks(width).zip(b.par_chunks(width)).with_min_len(rows_of(width));
        let sums: Vec<f32> = rows.map(|(a, b)| dot(a, b)).collect();
        let rows = Shape::from(shape[..shape.num_dims() - 1].to_vec());
        from_f32(sums, rows, DType::F32)
    }

    fn batched(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor.to_contiguous()
    }

    fn contiguous(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor.to_contiguous()
    }
}
