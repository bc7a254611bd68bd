//! The operations of a decoder layer that are not linear, as Burn backend extensions: each is one
//! operation with a backward of its own, so that what is kept for it is what it needs.
//!
//! [`DecoderOps`] is implemented for the CPU (`flex`), for every CubeCL runtime (`cube`), lazily for
//! fusion (generated) and differentiably for autodiff (`autodiff`).

mod attention;
mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;
mod tensor;

use burn::backend::{
    backend_extension,
    tensor::{FloatTensor, IntTensor},
};
#[cfg(feature = "fusion")]
use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};
use burn_lora_kernels::GemmOps;

pub use attention::attention_scores;
pub use tensor::{
    CrossEntropy, attention, attention_is_fused, cross_entropy, pull_back, rms_norm, rotate, swiglu,
};

/// The settings of an attention: what depends on neither batch nor position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// The factor of the scores, `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Keys back that a query sees, itself included; `None` sees all.
    pub window: Option<usize>,
}

/// What a backend does between the linear layers of a decoder, on tensors of shapes that the
/// functions of this crate have checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait DecoderOps: GemmOps {
    /// `x / sqrt(mean(x²) + eps) · weight` over the last dimension, computed in float32.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// The gradient of its `x`.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// `silu(gate) · up`, with `silu(z) = z / (1 + exp(-z))`, computed in float32.
    #[fusion(dtype = gate, shape = gate)]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The gradients of its `gate` and `up`.
    #[fusion(meta = |_grad, gate, up| (gate.clone(), up.clone()))]
    fn swiglu_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Rotates the pairs `(i, i + head_dim / 2)` of each head by the angles of its position, and
    /// puts the heads before the sequence: `[batch, sequence, heads, head_dim]` to
    /// `[batch, heads, sequence, head_dim]`. When `inverse`, turned and put back: its gradient.
    #[fusion(meta = |x, _positions, _table, _inverse| TensorSpec::new(
        swapped(&x.shape),
        x.dtype,
    ))]
    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self>;

    /// Causal attention, and the logarithm of the sum of the exponentials of each row of scores,
    /// `[batch, heads, sequence]` in float32.
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

    /// The gradients of `q`, `k` and `v`, from what [`causal_attention`](Self::causal_attention) gave.
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

    /// The cross-entropy of each row of logits and its target, whether the target has the largest
    /// logit (1 or 0), both in float32, and the gradient of the sum of the losses.
    #[fusion(meta = |logits, _targets, _smoothing| (
        TensorSpec::new(Shape::new([logits.shape[0]]), DType::F32),
        TensorSpec::new(Shape::new([logits.shape[0]]), DType::F32),
        logits.clone(),
    ))]
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// A zero whose backward pass starts from `grad` as the gradient of `y`.
    #[fusion(meta = |_y, _grad| TensorSpec::new(Shape::new([1]), DType::F32))]
    fn pull_back(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Checks the shapes of a rotation: of the sequences, `[batch, sequence, head_dim]`, their positions and
/// the table.
///
/// # Panics
/// If they do not fit.
fn check_rotation([batch, length, width]: [usize; 3], positions: &[usize], table: &[usize]) {
    let (&[rows, count], &[_, table_width]) = (positions, table) else {
        panic!("rotate: positions {positions:?} and table {table:?} have two dimensions")
    };
    assert!(rows == 1 || rows == batch, "rotate: positions of {rows} rows, a batch of {batch}");
    assert_eq!(count, length, "rotate: positions of a sequence");
    assert_eq!(table_width, width, "rotate: the widths of the table and a head");
    assert!(width.is_multiple_of(2), "rotate: a head of {width} has no two halves");
}

/// The two middle dimensions of four, exchanged.
#[cfg(feature = "fusion")]
fn swapped(shape: &Shape) -> Shape {
    Shape::new([shape[0], shape[2], shape[1], shape[3]])
}
