//! Attention over several ranges of keys: a pass for each, joined by the log-sum-exps of their scores.

use burn::{
    backend::{
        Backend, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, Shape, Slice},
};

/// Output and log-sum-exps.
type Attended<B> = (FloatTensor<B>, FloatTensor<B>);

/// Runs an attention for each range of keys, and joins the results: with `lse' = log(exp(lse) + exp(other))` the
/// outputs are weighted by `exp(lse - lse')` and `exp(other - lse')`.
pub(super) fn forward<B: Backend>(
    spans: IntTensor<B>,
    mut one: impl FnMut(IntTensor<B>) -> Attended<B>,
) -> Attended<B> {
    if spans.shape()[0] == 2 {
        return one(spans);
    }
    let mut parts = split::<B>(&spans).into_iter();
    let first = parts.next().expect("there is a range");
    parts.fold(one(first), |joined, part| {
        let (out, lse) = one(part.clone());
        let lse = B::float_add(lse, unseen::<B>(part, &joined.1.shape()));
        join::<B>(joined, Some(out), lse)
    })
}

/// Sums of the gradients of all ranges: each takes the log-sum-exps over all of them, and so the weights that its keys have
/// among all.
pub(super) fn backward<B: Backend>(
    spans: IntTensor<B>,
    mut one: impl FnMut(IntTensor<B>) -> [FloatTensor<B>; 3],
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let parts = if spans.shape()[0] == 2 { vec![spans] } else { split::<B>(&spans) };
    let mut all = parts.into_iter().map(&mut one);
    let first = all.next().expect("there is a range");
    let [q, k, v] = all.fold(first, |[q, k, v], [q2, k2, v2]| {
        [(q, q2), (k, k2), (v, v2)].map(|(sum, grad)| B::float_add(sum, grad))
    });
    (q, k, v)
}

/// The spans of each range, `[2, rows, sequence]`.
fn split<B: Backend>(spans: &IntTensor<B>) -> Vec<IntTensor<B>> {
    let shape = spans.shape();
    let part = |range: usize| {
        let slices = [2 * range..2 * range + 2, 0..shape[1], 0..shape[2]].map(Slice::from);
        B::int_slice(spans.clone(), &slices)
    };
    (0..shape[0] / 2).map(part).collect()
}

/// Joins the results of an attention with those over other keys, of which each query that sees some sees some of the first, too;
/// without an output, their values are zero.
pub(super) fn join<B: Backend>(
    (out, lse): Attended<B>,
    other: Option<FloatTensor<B>>,
    of_other: FloatTensor<B>,
) -> Attended<B> {
    let (rows, dtype) = (lse.shape(), FloatDType::from(out.dtype()));
    let above = B::float_sub(of_other, lse.clone());
    // log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
    let small = B::float_exp(B::float_neg(B::float_abs(above.clone())));
    let more = B::float_add(B::float_clamp_min(above.clone(), 0f32.into()), B::float_log1p(small));
    let weighted = |out: FloatTensor<B>, log_weight: FloatTensor<B>| {
        let shape = Shape::new([rows[0], rows[1], rows[2], 1]);
        let weight = B::float_reshape(B::float_exp(log_weight), shape);
        B::float_mul(B::float_cast(out, FloatDType::F32), weight)
    };
    let mut out = weighted(out, B::float_neg(more.clone()));
    if let Some(other) = other {
        out = B::float_add(out, weighted(other, B::float_sub(above, more.clone())));
    }
    (B::float_cast(out, dtype), B::float_add(lse, more))
}

/// A very low number for each row of scores of a query that sees no key of a range, else 0.
fn unseen<B: Backend>(spans: IntTensor<B>, rows: &Shape) -> FloatTensor<B> {
    let shape = spans.shape();
    let end = |which: usize| {
        let slices = [which..which + 1, 0..shape[1], 0..shape[2]].map(Slice::from);
        B::int_slice(spans.clone(), &slices)
    };
    let seen = B::int_clamp(B::int_sub(end(1), end(0)), 0.into(), 1.into());
    let seen = B::float_reshape(
        B::int_into_float(seen, FloatDType::F32),
        Shape::new([shape[1], 1, shape[2]]),
    );
    let penalty = B::float_mul_scalar(B::float_sub_scalar(seen, 1f32.into()), 1e30f32.into());
    B::float_expand(penalty, rows.clone())
}
