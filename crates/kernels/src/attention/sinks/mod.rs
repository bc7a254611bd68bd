//! Causal attention with sinks: made of [`attention`](super::attention), by the log-sum-exp of each
//! row of scores.

mod autodiff;

use super::{AttentionOps, AttentionSpec, check, ranges};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::{
    backend::{
        Dispatch, TensorMetadata, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType, Int, Shape, Tensor, activation::sigmoid},
};

/// [`attention`](super::attention()) with a sink in each head: a learned score of a key that every
/// query sees, and that has no value. With scores `s` the weights are
/// `exp(s) / (exp(sink) + sum exp(s))`, whose sum is below 1 (gpt-oss; arXiv:2309.17453).
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_kernels::{AttentionSpec, attention_with_sinks};
///
/// // A single key with the score 0, as that of the sink: half of its value.
/// let device = Device::default();
/// let [q, k, v] = [0.0, 1.0, 6.0].map(|x| Tensor::<4>::full([1, 1, 1, 1], x, &device));
/// let spans = Tensor::<3, Int>::from_ints([[[0]], [[1]]], &device);
/// let spec = AttentionSpec { scale: 1.0, window: None };
/// let out = attention_with_sinks(q, k, v, Tensor::zeros([1], &device), spans, spec);
/// assert_eq!(out.into_scalar::<f32>(), 3.0);
/// ```
///
/// # Shapes
/// - sinks: `[heads]`
/// - q, k, v, spans, output: as those of [`attention`](super::attention())
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn attention_with_sinks(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    sinks: Tensor<1>,
    spans: Tensor<3, Int>,
    spec: AttentionSpec,
) -> Tensor<4> {
    check(&q.dims(), &k.dims(), &v.dims(), &spans.dims(), spec);
    assert_eq!(sinks.dims(), [q.dims()[1]], "attention: a sink for each head of q {:?}", q.dims());
    assert!(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "attention: the dtypes of q, k, v");
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    let (sinks, spans) = (sinks.into_dispatch(), spans.cast(DType::I32).into_dispatch());
    let (out, _) = Dispatch::attention_with_sinks(q, k, v, sinks, spans, spec);
    Tensor::from_dispatch(out)
}

/// Returns [`attention_with_sinks`] without a graph, from an attention without them and the log-sum-exps of its scores:
/// `out · σ(lse - sink)`.
///
/// # Shapes
/// - out: `[batch, heads, sequence, head_dim]`
/// - lse: `[batch, heads, sequence]`
/// - sinks: `[heads]`
///
/// # Panics
/// If the shapes do not fit.
pub fn add_sinks((out, lse): (Tensor<4>, Tensor<3>), sinks: Tensor<1>) -> Tensor<4> {
    let sinks = sinks.inner().cast(lse.dtype()).reshape([1, lse.dims()[1], 1]);
    let (dtype, weights) = (out.dtype(), sigmoid(lse - sinks).unsqueeze_dim(3));
    (out.cast(DType::F32) * weights).cast(dtype)
}

/// [`attention_with_sinks`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait SinkOps: AttentionOps {
    /// Causal attention with sinks, and the log-sum-exp of each row of scores with its sink,
    /// `[batch, heads, sequence]` in float32. The gradients of `q`, `k` and `v` are those of
    /// [`causal_attention_grad`](AttentionOps::causal_attention_grad) for these two.
    #[fusion(meta = |q, _k, _v, _sinks, _spans, _spec| (
        q.clone(),
        TensorSpec::new(Shape::from(q.shape[..3].to_vec()), DType::F32),
    ))]
    fn attention_with_sinks(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sinks: FloatTensor<Self>,
        spans: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // A key without a value: with `lse' = log(exp(lse) + exp(sink))`, the output is `out · exp(lse - lse')`. That of
        // a query that sees no key stays zero.
        let attended = Self::causal_attention(q, k, v, spans, spec);
        let sinks = by_row::<Self>(sinks, &attended.1.shape());
        ranges::join::<Self>(attended, None, sinks)
    }
}

#[cfg(feature = "cpu")]
impl SinkOps for burn::backend::Flex {}

#[cfg(feature = "cubecl")]
impl SinkOps for burn_cubecl::CubeBackend {}

/// Returns sinks in float32, one for each row of scores.
fn by_row<B: AttentionOps>(sinks: FloatTensor<B>, rows: &Shape) -> FloatTensor<B> {
    let sinks = B::float_cast(sinks, FloatDType::F32);
    let sinks = B::float_reshape(sinks, Shape::new([1, rows[1], 1]));
    B::float_expand(sinks, rows.clone())
}
