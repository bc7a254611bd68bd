//! The operations on the CPU: all cores, in float32 whatever the dtype.

use super::{
    AttentionSpec, DecoderOps,
    attention::{self, Block, BlockOps},
};
use burn::{
    backend::{
        Flex,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType, Shape, TensorData},
};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Elements a task, at least: below that, sharing costs more than it brings.
const TASK: usize = 16 << 10;

/// Rows a task of so many elements.
fn rows_of(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

fn to_f32(tensor: FlexTensor) -> FlexTensor {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::F32 => tensor,
        _ => Flex::float_cast(tensor, FloatDType::F32),
    }
}

fn shape_of(tensor: &FlexTensor) -> Shape {
    Shape::from(tensor.layout().shape().to_vec())
}

fn from_f32(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    let tensor = FlexTensor::from_data(TensorData::new(values, shape));
    if dtype == DType::F32 { tensor } else { Flex::float_cast(tensor, dtype.into()) }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `1 / sqrt(mean(x²) + eps)`.
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + eps).sqrt().recip()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl DecoderOps for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let (shape, dtype) = (shape_of(&x), x.dtype());
        let (x, weight) = (to_f32(x), to_f32(weight));
        let (x, weight): (&[f32], &[f32]) = (x.storage(), weight.storage());
        let width = weight.len().max(1);
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(rows_of(width)).for_each(
            |(out, x)| {
                let factor = inverse_rms(x, eps);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * factor * weight;
                }
            },
        );
        from_f32(out, shape, dtype)
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let (shape, dtype) = (shape_of(&x), x.dtype());
        let [grad, x, weight] = [grad, x, weight].map(to_f32);
        let (x, weight, grad): (&[f32], &[f32], &[f32]) =
            (x.storage(), weight.storage(), grad.storage());
        let width = weight.len().max(1);
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .zip(grad.par_chunks(width))
            .with_min_len(rows_of(width))
            .for_each(|((out, x), grad)| {
                let factor = inverse_rms(x, eps);
                for ((out, grad), weight) in out.iter_mut().zip(grad).zip(weight) {
                    *out = grad * weight;
                }
                let along = dot(out, x) * factor * factor / width as f32;
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (*out - x * along) * factor;
                }
            });
        from_f32(out, shape, dtype)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (shape, dtype) = (shape_of(&gate), gate.dtype());
        let [gate, up] = [gate, up].map(to_f32);
        let (gate, up): (&[f32], &[f32]) = (gate.storage(), up.storage());
        let mut out = vec![0.0; gate.len()];
        out.par_iter_mut().zip(gate).zip(up).with_min_len(TASK).for_each(|((out, gate), up)| {
            *out = gate * sigmoid(*gate) * up;
        });
        from_f32(out, shape, dtype)
    }

    fn swiglu_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (shape_of(&gate), gate.dtype());
        let [grad, gate, up] = [grad, gate, up].map(to_f32);
        let (grad, gate, up): (&[f32], &[f32], &[f32]) =
            (grad.storage(), gate.storage(), up.storage());
        let (mut gate_grad, mut up_grad) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
        let outputs = gate_grad.par_iter_mut().zip(&mut up_grad);
        let inputs = grad.par_iter().zip(gate).zip(up);
        outputs.zip(inputs).with_min_len(TASK).for_each(
            |((gate_grad, up_grad), ((grad, gate), up))| {
                let sigmoid = sigmoid(*gate);
                *up_grad = grad * gate * sigmoid;
                *gate_grad = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            },
        );
        (from_f32(gate_grad, shape.clone(), dtype), from_f32(up_grad, shape, dtype))
    }

    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (shape, dtype) = (shape_of(&x), x.dtype());
        let out_shape = Shape::new([shape[0], shape[2], shape[1], shape[3]]);
        let (outer, inner, width) = (shape[1], shape[2], shape[3]);
        let (x, table, positions) = (to_f32(x), to_f32(table), positions.to_contiguous());
        let (x, table): (&[f32], &[f32]) = (x.storage(), table.storage());
        let (rows, known) = (positions.layout().shape()[0], table.len() / width.max(1));
        let positions: &[i32] = positions.storage();
        if let Some(position) = positions.iter().find(|position| **position as usize >= known) {
            panic!("rotate: position {position}, a table of {known}");
        }
        let length = if inverse { inner } else { outer };
        let half = width / 2;
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width.max(1)).enumerate().with_min_len(rows_of(width)).for_each(
            |(row, out)| {
                // `out` is [batch, inner, outer, width].
                let (batch, i, o) = (row / (inner * outer), row / outer % inner, row % outer);
                let x = &x[((batch * outer + o) * inner + i) * width..][..width];
                let position = if inverse { i } else { o };
                let angles = positions[batch % rows * length + position] as usize * width;
                let (cos, sin) = table[angles..angles + width].split_at(half);
                for j in 0..half {
                    let (a, b) = (x[j], x[half + j]);
                    let sin = if inverse { -sin[j] } else { sin[j] };
                    out[j] = a * cos[j] - b * sin;
                    out[half + j] = b * cos[j] + a * sin;
                }
            },
        );
        from_f32(out, out_shape, dtype)
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward::<Self>(q, k, v, spans, spec)
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
        attention::backward::<Self>(grad, q, k, v, out, lse, spans, spec)
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (shape_of(&logits), logits.dtype());
        let (logits, targets) = (to_f32(logits), targets.to_contiguous());
        let (logits, targets): (&[f32], &[i32]) = (logits.storage(), targets.storage());
        let (count, width) = (shape[0], shape[1]);
        let known = |target: i32| usize::try_from(target).is_ok_and(|target| target < width);
        if let Some((row, target)) = targets.iter().enumerate().find(|(_, target)| !known(**target))
        {
            panic!("cross_entropy: target {target} of row {row}, a vocabulary of {width}");
        }
        let mut grad = vec![0.0f32; logits.len()];
        let (mut loss, mut hits) = (vec![0.0f32; count], vec![0.0f32; count]);
        let spread = smoothing / width as f32;
        grad.par_chunks_mut(width.max(1))
            .zip(logits.par_chunks(width.max(1)))
            .zip(targets)
            .zip(loss.par_iter_mut().zip(&mut hits))
            .for_each(|(((grad, x), &target), (loss, hit))| {
                let target = target as usize;
                let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut total = 0.0;
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad = (x - most).exp();
                    total += *grad;
                }
                for grad in grad.iter_mut() {
                    *grad = *grad / total - spread;
                }
                grad[target] -= 1.0 - smoothing;
                let mean = if smoothing > 0.0 { x.iter().sum::<f32>() * spread } else { 0.0 };
                *loss = most + total.ln() - (1.0 - smoothing) * x[target] - mean;
                *hit = f32::from(u8::from(x[target] >= most));
            });
        let rows = |values| from_f32(values, Shape::new([count]), DType::F32);
        (rows(loss), rows(hits), from_f32(grad, shape, dtype))
    }

    fn pull_back(_y: FloatTensor<Self>, _grad: FloatTensor<Self>) -> FloatTensor<Self> {
        from_f32(vec![0.0], Shape::new([1]), DType::F32)
    }
}

/// One row of a block.
struct Row {
    /// Where its values lie in `[batch, heads, length]`.
    at: usize,
    /// The keys that it sees, counted from the block's first.
    seen: std::ops::Range<usize>,
}

impl Block {
    /// The row of scores with this number.
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
        // A span may begin anywhere: what does not reach the query is empty, and inside the block.
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
        let shape = shape_of(&scores);
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
        let shape = shape_of(&a);
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
