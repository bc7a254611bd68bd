//! Causal attention: in blocks of batched products, or, where the device has suitable tensor cores,
//! in fused kernels that keep the scores in registers.

mod autodiff;
mod blocks;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
mod ranges;
mod sinks;

#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Device, Int, Tensor},
};

pub use blocks::attention_scores;
pub use sinks::{SinkOps, add_sinks, attention_with_sinks};

/// Settings of an attention that depend on neither batch nor position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Factor of the scores, `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Size of the sliding window: number of keys up to the query's own that it sees; `None` is
    /// unlimited.
    pub window: Option<usize>,
}

/// Causal attention: `softmax(scale · q · kᵀ) · v` over the keys visible to each query. The last
/// query is aligned with the last key; a query sees no later key, none before its window, and none
/// outside of its span.
///
/// Nothing of size `sequence x sequence` outlives the call or is saved for the backward pass, which
/// recomputes the scores from `q`, `k` and the log-sum-exp of each row. Groups of query heads share
/// a key-value head, which is not expanded. The output of a query that sees no key is zero.
///
/// # Shapes
/// - q: `[batch, heads, sequence, head_dim]`
/// - k, v: `[batch, kv_heads, keys, head_dim]`, with `keys >= sequence`
/// - spans: `[2 · ranges, batch, sequence]` or `[2 · ranges, 1, sequence]`: the first key that a query may see, and
///   the one after the last: segments of a packed row, or the part that is not padding. Any values
///   are valid: keys that do not exist are ignored. With several ranges, which must not overlap, a query may see the keys of
///   each, such as those of a prompt that answers share: a further range ends before the query, which has to see some keys of the
///   first range, too. There is no window then
/// - output: as `q`
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    spans: Tensor<3, Int>,
    spec: AttentionSpec,
) -> Tensor<4> {
    check(&q.dims(), &k.dims(), &v.dims(), &spans.dims(), spec);
    assert!(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "attention: the dtypes of q, k, v");
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    let spans = spans.cast(DType::I32).into_dispatch();
    let (out, _) = Dispatch::causal_attention(q, k, v, spans, spec);
    Tensor::from_dispatch(out)
}

/// [`attention`] without a graph, and the log-sum-exp of each row of scores: what
/// [`attention_grad`] takes.
///
/// # Shapes
/// - q, k, v, spans, first output: as those of [`attention`]
/// - second output: `[batch, heads, sequence]`, in float32
///
/// # Panics
/// As [`attention`].
pub fn attention_forward(
    [q, k, v]: [Tensor<4>; 3],
    spans: Tensor<3, Int>,
    spec: AttentionSpec,
) -> (Tensor<4>, Tensor<3>) {
    check(&q.dims(), &k.dims(), &v.dims(), &spans.dims(), spec);
    let [q, k, v] = [q, k, v].map(|tensor| tensor.inner().into_dispatch());
    let spans = spans.cast(DType::I32).into_dispatch();
    let (out, lse) = Dispatch::causal_attention(q, k, v, spans, spec);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Gradients of q, k and v, from that of the output and what [`attention_forward`] returned.
///
/// # Shapes
/// - grad, out: as q
/// - output: as q, k and v
///
/// # Panics
/// As [`attention`].
pub fn attention_grad(
    grad: Tensor<4>,
    [q, k, v]: [Tensor<4>; 3],
    (out, lse): (Tensor<4>, Tensor<3>),
    spans: Tensor<3, Int>,
    spec: AttentionSpec,
) -> [Tensor<4>; 3] {
    check(&q.dims(), &k.dims(), &v.dims(), &spans.dims(), spec);
    assert_eq!([grad.dims(), out.dims()], [q.dims(); 2], "attention: the output and its gradient");
    let [grad, q, k, v, out] = [grad, q, k, v, out].map(|tensor| tensor.inner().into_dispatch());
    let (lse, spans) = (lse.inner().into_dispatch(), spans.cast(DType::I32).into_dispatch());
    let (q, k, v) = Dispatch::causal_attention_grad(grad, q, k, v, out, lse, spans, spec);
    [q, k, v].map(Tensor::from_dispatch)
}

/// Returns `true` if [`attention`] on this device runs in fused kernels, which keep the scores in
/// registers: on CUDA, with 16-bit floats and heads of 64 or 128 values. Elsewhere, and for fewer
/// than 16 queries, the scores pass through memory, block by block.
///
/// ```
/// use burn::tensor::{DType, Device};
/// use burn_lora_kernels::attention_is_fused;
///
/// assert!(!attention_is_fused(&Device::default(), DType::F32, 128));
/// ```
pub fn attention_is_fused(device: &Device, dtype: DType, head_dim: usize) -> bool {
    #[cfg(feature = "cuda")]
    if let Some(client) = crate::cube::client(device) {
        return cube::fused::supports(&client, dtype, head_dim);
    }
    let _ = (device, dtype, head_dim);
    false
}

/// Checks the shapes of an attention: `q`, `k`, `v` and the spans.
///
/// # Panics
/// If they do not fit.
fn check(q: &[usize], k: &[usize], v: &[usize], spans: &[usize], spec: AttentionSpec) {
    let (&[batch, heads, length, width], &[_, kv_heads, keys, _]) = (q, k) else {
        panic!("attention: q {q:?} and k {k:?} have four dimensions")
    };
    assert_eq!(k, [batch, kv_heads, keys, width], "attention: k for q {q:?}");
    assert_eq!(k, v, "attention: k and v");
    let shared = heads.checked_rem(kv_heads) == Some(0);
    assert!(shared, "attention: {heads} heads over {kv_heads}");
    assert!(width > 0, "attention: heads of no width");
    assert!(keys >= length, "attention: {length} queries, {keys} keys");
    assert!(spec.window != Some(0), "attention: a window of no keys");
    let one = spans.first() == Some(&2) || spec.window.is_none();
    assert!(one, "attention: a window over several ranges of keys");
    let fits = matches!(spans, &[ends, rows, count] if ends >= 2 && ends % 2 == 0 && (rows == 1 || rows == batch) && count == length);
    assert!(fits, "attention: spans {spans:?} for q {q:?}");
}

/// [`attention`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait AttentionOps: Backend {
    /// Causal attention, and the log-sum-exp of each row of scores, `[batch, heads, sequence]` in
    /// float32.
    #[fusion(meta = |q, _k, _v, _spans, _spec| (
        q.clone(),
        TensorSpec::new(Shape::from(q.shape[..3].to_vec()), DType::F32),
    ))]
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of `q`, `k` and `v`, from the results of
    /// [`causal_attention`](Self::causal_attention).
    #[fusion(meta = |_grad, q, k, v, _out, _lse, _spans, _spec| (
        q.clone(),
        k.clone(),
        v.clone(),
    ))]
    #[allow(clippy::too_many_arguments, reason = "what goes in and what came out")]
    fn causal_attention_grad(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}
