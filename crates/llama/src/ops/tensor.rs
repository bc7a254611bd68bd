//! The operations on tensors: shapes are checked here.

use super::{AttentionSpec, DecoderOps, attention::check, check_rotation};
use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Int, Tensor},
};

/// RMSNorm (arXiv:1910.07467): `x / sqrt(mean(x²) + eps) · weight` over the last dimension, computed
/// in float32 whatever the dtype.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_llama::ops::rms_norm;
///
/// let device = Device::default();
/// let x = Tensor::<2>::from_floats([[3.0, -3.0]], &device);
/// let weight = Tensor::from_floats([1.0, 2.0], &device);
/// rms_norm(x, weight, 0.0).into_data().assert_eq(&[[1.0f32, -2.0]].into(), true);
/// ```
///
/// # Shapes
/// - x: `[..., width]`
/// - weight: `[width]`
/// - output: as `x`
///
/// # Panics
/// If the widths differ.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "rms_norm: the widths of x and its weight");
    let weight = weight.cast(x.dtype()).into_dispatch();
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight, eps as f32))
}

/// SwiGLU (arXiv:2002.05202): `silu(gate) · up`, with `silu(z) = z / (1 + exp(-z))`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_llama::ops::swiglu;
///
/// let device = Device::default();
/// let y = swiglu(Tensor::<1>::from_floats([0.0, 50.0], &device), Tensor::ones([2], &device));
/// y.into_data().assert_eq(&[0.0f32, 50.0].into(), true);
/// ```
///
/// # Shapes
/// - gate, up, output: the same
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: the shapes of gate and up");
    assert_eq!(gate.dtype(), up.dtype(), "swiglu: the dtypes of gate and up");
    Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// Rotary position embedding (arXiv:2104.09864), half-split as in transformers: with the angle `a`
/// of a position and a frequency, `(x, y)` at `(i, i + head_dim / 2)` becomes
/// `(x cos a - y sin a, y cos a + x sin a)`. The heads are put before the sequence.
///
/// # Shapes
/// - x: `[batch, sequence, heads, head_dim]`
/// - positions: `[batch, sequence]` or `[1, sequence]`, rows of the table
/// - table: `[positions, head_dim]`, cosines and then sines, in float32
/// - output: `[batch, heads, sequence, head_dim]`
///
/// # Panics
/// If the shapes do not fit; on a CPU also if a position is no row of the table. A GPU gives NaN for
/// such a token.
pub fn rotate(x: Tensor<4>, positions: Tensor<2, Int>, table: Tensor<2>) -> Tensor<4> {
    let [batch, length, _, width] = x.dims();
    check_rotation([batch, length, width], &positions.dims(), &table.dims());
    assert_eq!(table.dtype(), DType::F32, "rotate: the dtype of the table");
    let (positions, table) = (positions.cast(DType::I32).into_dispatch(), table.into_dispatch());
    Tensor::from_dispatch(Dispatch::rotate(x.into_dispatch(), positions, table, false))
}

/// Causal attention: `softmax(scale · q · kᵀ) · v` over the keys that each query sees. The last
/// query is at the last key; a query sees no key after its own, none before its window, and none
/// outside its span.
///
/// Nothing of the size `sequence x sequence` outlives the call or is kept for the backward pass,
/// which recomputes the scores from `q`, `k` and the logarithm of each row's sum. Groups of query
/// heads share a head of keys and values, which is not expanded. A query that sees no key gives
/// zeros.
///
/// # Shapes
/// - q: `[batch, heads, sequence, head_dim]`
/// - k, v: `[batch, kv_heads, keys, head_dim]`, with `keys >= sequence`
/// - spans: `[2, batch, sequence]` or `[2, 1, sequence]`: the first key that a query may see, and
///   the one after the last; segments of a packed row, or what is not padding. Any numbers will do:
///   keys that are not there are not seen
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

/// Whether [`attention`] on this device keeps its scores in registers: on CUDA, with 16-bit floats and
/// heads of 64 or 128 values. Elsewhere, and for fewer than 16 queries, they pass through memory, some
/// at a time.
///
/// ```
/// use burn::tensor::{DType, Device};
/// use burn_lora_llama::ops::attention_is_fused;
///
/// assert!(!attention_is_fused(&Device::default(), DType::F32, 128));
/// ```
pub fn attention_is_fused(device: &Device, dtype: DType, head_dim: usize) -> bool {
    #[cfg(feature = "cuda")]
    if let Some(client) = burn_lora_kernels::cube::client(device) {
        return super::cube::attention_is_fused(&client, dtype, head_dim);
    }
    let _ = (device, dtype, head_dim);
    false
}

/// What [`cross_entropy`] gives of each row.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// The loss, `[rows]` in float32.
    pub loss: Tensor<1>,
    /// 1 where the target has the largest logit, else 0; `[rows]` in float32.
    pub hits: Tensor<1>,
    /// The gradient of the sum of the losses, `[rows, vocabulary]` in the dtype of the logits.
    pub grad: Tensor<2>,
}

/// Softmax cross-entropy with label smoothing as in PyTorch, and its gradient in the same pass:
/// `loss = log(sum(exp(x))) - (1 - s) · x[target] - s · mean(x)` and
/// `grad = softmax(x) - (1 - s) · onehot(target) - s / vocabulary`, computed in float32.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_llama::ops::cross_entropy;
///
/// let device = Device::default();
/// let logits = Tensor::from_floats([[0.0, 0.0], [3.0, -50.0]], &device);
/// let targets = Tensor::<1, Int>::from_ints([1, 0], &device);
/// let found = cross_entropy(logits, targets, 0.0);
/// let loss: Vec<f32> = found.loss.into_data().try_into_vec().unwrap();
/// assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && loss[1].abs() < 1e-6);
/// found.grad.narrow(0, 0, 1).into_data().assert_eq(&[[0.5f32, -0.5]].into(), true);
/// ```
///
/// # Shapes
/// - logits: `[rows, vocabulary]`
/// - targets: `[rows]`, each below the size of the vocabulary
///
/// # Panics
/// If the shapes do not fit; on a CPU also if a target is no token of the vocabulary. A GPU gives NaN
/// for the loss and the gradient of such a row, so that nothing waits for it.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>, smoothing: f32) -> CrossEntropy {
    let [rows, vocabulary] = logits.dims();
    assert_eq!(rows, targets.dims()[0], "cross_entropy: a target for each row");
    assert!(vocabulary > 0 || rows == 0, "cross_entropy: a vocabulary of nothing");
    let targets = targets.cast(DType::I32).into_dispatch();
    let (loss, hits, grad) = Dispatch::cross_entropy(logits.into_dispatch(), targets, smoothing);
    let [loss, hits] = [loss, hits].map(Tensor::from_dispatch);
    CrossEntropy { loss, hits, grad: Tensor::from_dispatch(grad) }
}

/// A zero, `[1]`, whose `backward()` starts from `grad` as the gradient of `y`: the product of a
/// vector with the Jacobian of all that `y` came from.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_llama::ops::pull_back;
///
/// let device = Device::default();
/// let x = Tensor::<1>::from_floats([1.0, 2.0], &device).autodiff().require_grad();
/// let y = x.clone() * 3.0;
/// let grads = pull_back(y, Tensor::from_floats([10.0, 20.0], &device)).backward();
/// x.grad(&grads).unwrap().into_data().assert_eq(&[30.0f32, 60.0].into(), true);
/// ```
///
/// # Panics
/// If the shapes or dtypes differ.
pub fn pull_back<const D: usize>(y: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
    assert_eq!(y.dims(), grad.dims(), "pull_back: the shapes of y and its gradient");
    assert_eq!(y.dtype(), grad.dtype(), "pull_back: the dtypes of y and its gradient");
    Tensor::from_dispatch(Dispatch::pull_back(y.into_dispatch(), grad.autodiff().into_dispatch()))
}
