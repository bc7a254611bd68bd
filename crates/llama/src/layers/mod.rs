//! Modules of a decoder, under the names of Hugging Face's checkpoints.

use crate::{cache::LayerCache, context::Context};
use burn::{module::Module, tensor::Tensor};
use burn_lora_adapter::{
    Adaptable, AdaptedEmbedding, AdaptedLinear, AdaptedVector, Layers, LayersMut, adaptable,
};
use burn_lora_kernels::{AttentionSpec, attention, rms_norm, rotate, swiglu};

/// RMSNorm, computed in float32.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Weight, `[width]`.
    pub weight: AdaptedVector,
    /// Epsilon, added to the mean square.
    #[module(skip)]
    pub eps: f64,
}

impl RmsNorm {
    /// Returns `x / sqrt(mean(x²) + eps) · weight`, over the last dimension.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, context: &Context) -> Tensor<D> {
        rms_norm(x, self.weight.val_with(context.adapters()), self.eps)
    }
}

impl Adaptable for RmsNorm {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.weight.collect(path, layers);
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.weight.collect_mut(path, layers);
    }
}

/// Causal grouped-query self-attention with rotary position embedding.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection, `[heads * head_dim, hidden]`.
    pub q_proj: AdaptedLinear,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    pub k_proj: AdaptedLinear,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    pub v_proj: AdaptedLinear,
    /// Output projection, `[hidden, heads * head_dim]`.
    pub o_proj: AdaptedLinear,
    /// Norm of each query head (Qwen 3).
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head (Qwen 3).
    pub k_norm: Option<RmsNorm>,
    /// Width of a head.
    #[module(skip)]
    pub head_dim: usize,
    /// Sliding window: keys that a query sees, itself included; `None` sees all.
    #[module(skip)]
    pub window: Option<usize>,
}
adaptable!(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

impl Attention {
    /// Returns the output of the attention. With a cache, its keys and values are seen too, and
    /// those of `x` are appended to it.
    ///
    /// # Shapes
    /// - x, output: `[batch, sequence, hidden]`
    ///
    /// # Panics
    /// If the cache is full.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let heads = |projected: Tensor<3>| {
            let count = projected.dims()[2] / self.head_dim;
            projected.reshape([batch, length, count, self.head_dim])
        };
        let normed = |x: Tensor<4>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x, context),
            None => x,
        };
        let project = |linear: &AdaptedLinear, x| linear.forward_with(x, context.adapters());
        let rotated = |x| rotate(x, context.positions.clone(), context.table.clone());
        let q = rotated(normed(heads(project(&self.q_proj, x.clone())), &self.q_norm));
        let k = rotated(normed(heads(project(&self.k_proj, x.clone())), &self.k_norm));
        let v = heads(project(&self.v_proj, x)).swap_dims(1, 2);
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v),
        };
        let spec =
            AttentionSpec { scale: (self.head_dim as f32).sqrt().recip(), window: self.window };
        let out = attention(q, k, v, context.spans.clone(), spec);
        let width = out.dims()[1] * self.head_dim;
        project(&self.o_proj, out.swap_dims(1, 2).reshape([batch, length, width]))
    }
}

/// Gated MLP: `down(silu(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Gate projection, `[intermediate, hidden]`.
    pub gate_proj: AdaptedLinear,
    /// Up projection, `[intermediate, hidden]`.
    pub up_proj: AdaptedLinear,
    /// Down projection, `[hidden, intermediate]`.
    pub down_proj: AdaptedLinear,
}
adaptable!(Mlp { gate_proj, up_proj, down_proj });

impl Mlp {
    /// Returns the output of the MLP.
    ///
    /// # Shapes
    /// - x, output: `[batch, sequence, hidden]`
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let project = |linear: &AdaptedLinear, x| linear.forward_with(x, context.adapters());
        let gate = project(&self.gate_proj, x.clone());
        project(&self.down_proj, swiglu(gate, project(&self.up_proj, x)))
    }
}

/// Decoder layer: attention and MLP, each after a norm and added to its input.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Attention.
    pub self_attn: Attention,
    /// MLP.
    pub mlp: Mlp,
    /// Norm before the attention.
    pub input_layernorm: RmsNorm,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
}
adaptable!(DecoderLayer { self_attn, mlp, input_layernorm, post_attention_layernorm });

impl DecoderLayer {
    /// Returns the output of the layer. The cache is used as by [`Attention::forward`].
    ///
    /// # Shapes
    /// - x, output: `[batch, sequence, hidden]`
    ///
    /// # Panics
    /// If the cache is full.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone(), context);
        let x = x + self.self_attn.forward(normed, context, cache);
        let normed = self.post_attention_layernorm.forward(x.clone(), context);
        x + self.mlp.forward(normed, context)
    }
}

/// Embedding, decoder layers and final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding, `[vocabulary, hidden]`.
    pub embed_tokens: AdaptedEmbedding,
    /// Decoder layers.
    pub layers: Vec<DecoderLayer>,
    /// Norm after the last layer.
    pub norm: RmsNorm,
}
adaptable!(Decoder { embed_tokens, layers, norm });
