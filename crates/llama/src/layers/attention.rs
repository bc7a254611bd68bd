//! Causal self-attention.

use super::{
    LinearCosts, Parameters, RmsNorm, TokenCost,
    cost::{all_beside, any_keeps_input},
};
use crate::{cache::LayerCache, context::Context, error::LlamaError, spec::SelfAttentionSpec};
use burn::{
    module::Module,
    tensor::{DType, Gradients, Tensor},
};
use burn_lora_adapter::{AdaptedLinear, AdaptedVector, adaptable};
use burn_lora_kernels::{
    AttentionSpec, NormSpec, add_sinks, attention, attention_forward, attention_grad,
    attention_with_sinks, pull_back_with, rotate, rotate_grad,
};

/// Causal grouped-query self-attention with rotary position embedding.
///
/// The projections of queries, keys and values are three layers, or one.
#[derive(Module, Debug)]
pub struct Attention {
    /// Projection of queries, keys and values (Phi), `[(heads + 2 * kv_heads) * head_dim, hidden]`.
    pub qkv_proj: Option<AdaptedLinear>,
    /// Query projection, `[heads * head_dim, hidden]`.
    pub q_proj: Option<AdaptedLinear>,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    pub k_proj: Option<AdaptedLinear>,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    pub v_proj: Option<AdaptedLinear>,
    /// Output projection, `[hidden, heads * head_dim]`.
    pub o_proj: AdaptedLinear,
    /// Norm of each query head (Qwen 3, Gemma 3).
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head (Qwen 3, Gemma 3).
    pub k_norm: Option<RmsNorm>,
    /// Sink of each query head (gpt-oss), `[heads]`.
    pub sinks: Option<AdaptedVector>,
    /// Specification.
    #[module(skip)]
    pub spec: SelfAttentionSpec,
}
adaptable!(Attention { qkv_proj, q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, sinks });

impl Attention {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        hidden: usize,
        spec: &SelfAttentionSpec,
        norm: NormSpec,
    ) -> Result<Self, LlamaError> {
        let path = |name: &str| format!("{path}.{name}");
        let (q, kv) = (spec.q_width(), spec.kv_width());
        let linear = |name: &str, out| from.linear(&path(name), [out, hidden], spec.qkv_bias);
        let separate = |name, out| (!spec.fused).then(|| linear(name, out)).transpose();
        let head_norm = |name| {
            let norm = || RmsNorm::build(from, &path(name), spec.head_dim, norm);
            spec.head_norms.then(norm).transpose()
        };
        let sinks = || from.vector(&path("sinks"), &path("sinks"), spec.num_heads);
        Ok(Self {
            qkv_proj: spec.fused.then(|| linear("qkv_proj", q + 2 * kv)).transpose()?,
            q_proj: separate("q_proj", q)?,
            k_proj: separate("k_proj", kv)?,
            v_proj: separate("v_proj", kv)?,
            o_proj: from.linear(&path("o_proj"), [hidden, q], spec.o_bias)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            sinks: spec.sinks.then(sinks).transpose()?,
            spec: spec.clone(),
        })
    }

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
        let [q, k, v] = self.heads(self.project(x, context), context);
        let (spans, scores) = (context.spans.clone(), self.scores());
        let sinks = self.sinks.as_ref().map(|sinks| sinks.val_with(context.adapters()));
        let out = match (cache, sinks) {
            (None, None) => attention(q, k, v, spans, scores),
            (None, Some(sinks)) => attention_with_sinks(q, k, v, sinks, spans, scores),
            (Some(cache), None) => cache.attend(q, k, v, spans, scores),
            (Some(cache), Some(sinks)) => {
                add_sinks(cache.attend_with_lse(q, k, v, spans, scores), sinks)
            }
        };
        self.o_proj.forward_with(heads_last(out), context.adapters())
    }

    /// Returns `true` if [`forward_keeping`](Self::forward_keeping) is possible.
    pub(super) fn can_keep(&self) -> bool {
        self.sinks.is_none()
    }

    /// Returns `true` if its backward pass needs no graph from input to output.
    pub(super) fn is_plain(&self, context: &Context) -> bool {
        let mut layers = self.projections().into_iter().chain([&self.o_proj]);
        self.can_keep() && layers.all(|layer| layer.is_plain(context.adapters()))
    }

    /// Returns the output; what [`pull_back_kept`](Self::pull_back_kept) needs
    /// beside the input, as vectors: the attention's output, the log-sum-exps of its scores, and queries,
    /// keys and values, which can be computed again: rotated, or before their norms; and the inputs times A
    /// of the projections' updates, those before the attention and the one after.
    pub(super) fn forward_keeping(
        &self,
        x: Tensor<3>,
        context: &Context,
    ) -> (Tensor<3>, Vec<Tensor<1>>, [Option<Tensor<2>>; 2]) {
        let graph = x.is_autodiff();
        let (projected, before) = self.project_once(x, context, None);
        let heads = self.heads(projected.clone(), context);
        let (out, lse) = attention_forward(heads.clone(), context.spans.clone(), self.scores());
        let out = heads_last(if graph { out } else { out.inner() });
        let [q, k, v] = projected.map(|x| x.flatten(0, 2));
        let [q, k] = match self.spec.head_norms {
            true => [q, k],
            false => {
                let [q, k, _] = heads;
                [q, k].map(|x| x.flatten(0, 3))
            }
        };
        let kept = vec![out.clone().flatten(0, 2), lse.flatten(0, 2), q, k, v];
        let (out, after) = forward(&self.o_proj, out, context);
        (out, kept, [before, after])
    }

    /// Returns the output, from that of the attention itself, as it was kept.
    pub(super) fn output(
        &self,
        out: Tensor<1>,
        [batch, length, _]: [usize; 3],
        context: &Context,
    ) -> Tensor<3> {
        let out = out.reshape([batch, length, self.spec.q_width()]);
        self.o_proj.forward_with(out, context.adapters())
    }

    /// Returns `pull_back(forward(x, context, None), grad)` with what
    /// [`forward_keeping`](Self::forward_keeping) kept. `found` gets the gradients of parameters
    /// after the projections of queries, keys and values.
    ///
    /// # Shapes
    /// - x, grad: `[batch, sequence, hidden]`
    pub(super) fn pull_back_kept(
        &self,
        x: Tensor<3>,
        kept: Vec<Tensor<1>>,
        [before, after]: [Option<Tensor<2>>; 2],
        context: &Context,
        grad: Tensor<3>,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        let [batch, length, _] = x.dims();
        let mut kept = kept.into_iter();
        let (Some(out), Some(lse)) = (kept.next(), kept.next()) else { panic!("they are kept") };
        let kept = [kept.next(), kept.next(), kept.next()];
        let take = |x: &Tensor<3>, found: &mut Gradients| {
            x.grad_remove(found).expect("an input has a gradient")
        };
        let heads_first = |x: Tensor<3>| {
            let width = x.dims()[2];
            x.reshape([batch, length, width / self.spec.head_dim, self.spec.head_dim])
                .swap_dims(1, 2)
        };
        let rows = |x: Tensor<1>| {
            let width = x.dims()[0] / (batch * length);
            x.reshape([batch, length, width])
        };

        let out = rows(out).autodiff().require_grad();
        let (layers, adapters) = ([&self.o_proj], context.adapters());
        let zero = AdaptedLinear::pull_back_all(&layers, out.clone(), adapters, vec![grad], after);
        let mut of_out = zero.backward();
        let out_grad = heads_first(take(&out, &mut of_out));
        found(of_out);
        let lse = lse.reshape([batch, self.spec.num_heads, length]);
        let out = (heads_first(out.inner()), lse);

        let h = before.clone();
        let project = || self.project_once(x.clone().inner(), context, h).0.map(Tensor::inner);
        let spans = context.spans.clone();
        let grads_of = |heads| attention_grad(out_grad, heads, out, spans, self.scores());
        if !self.spec.head_norms {
            let heads = match kept {
                [Some(q), Some(k), Some(v)] => {
                    let [q, k] = [q, k].map(|x| {
                        let count = x.dims()[0] / (batch * length * self.spec.head_dim);
                        x.reshape([batch, count, length, self.spec.head_dim])
                    });
                    [q, k, heads_first(rows(v))]
                }
                _ => self.heads(project(), context),
            };
            let table = &context.tables[self.spec.rope];
            let back = |grad| rotate_grad(grad, context.positions.clone(), table.clone());
            let [q, k, v] = grads_of(heads);
            let grads = [back(q), back(k), v.swap_dims(1, 2)].map(|grad| {
                let width = grad.dims()[2] * self.spec.head_dim;
                grad.reshape([batch, length, width])
            });
            return self.pull_back_projections(x, context, grads, before);
        }
        let projected = match kept {
            [Some(q), Some(k), Some(v)] => [q, k, v].map(rows),
            _ => project(),
        };
        let projected = projected.map(|x| x.autodiff().require_grad());
        let heads = self.heads(projected.clone(), context);
        let grads = grads_of(heads.each_ref().map(|heads| heads.clone().inner()));
        let zero = Tensor::zeros([1], (&x.device(), DType::F32));
        let pairs = heads.into_iter().zip(grads);
        let zero = pairs.fold(zero, |zero, (heads, grad)| pull_back_with(zero, heads, grad));
        let mut of_heads = zero.backward();
        let grads = projected.each_ref().map(|tensor| take(tensor, &mut of_heads));
        found(of_heads);
        self.pull_back_projections(x, context, grads, before)
    }

    /// Returns queries, keys and values by heads, `[batch, heads, sequence, head_dim]`, with norms and
    /// rotary positions.
    fn heads(&self, projected: [Tensor<3>; 3], context: &Context) -> [Tensor<4>; 3] {
        let table = &context.tables[self.spec.rope];
        let rotated = |x| rotate(x, context.positions.clone(), table.clone());
        let normed = |x: Tensor<4>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x, context),
            None => x,
        };
        let [q, k, v] = projected.map(|x| {
            let [batch, length, width] = x.dims();
            x.reshape([batch, length, width / self.spec.head_dim, self.spec.head_dim])
        });
        let (q, k) = (normed(q, &self.q_norm), normed(k, &self.k_norm));
        [rotated(q), rotated(k), v.swap_dims(1, 2)]
    }

    fn scores(&self) -> AttentionSpec {
        AttentionSpec { scale: self.spec.scale, window: self.spec.window }
    }

    /// Returns queries, keys and values.
    fn project(&self, x: Tensor<3>, context: &Context) -> [Tensor<3>; 3] {
        self.parts(AdaptedLinear::forward_all(&self.projections(), x, context.adapters()))
    }

    /// Returns queries, keys and values without a graph, and the input times A of their updates, which is not
    /// computed if it is given.
    fn project_once(
        &self,
        x: Tensor<3>,
        context: &Context,
        h: Option<Tensor<2>>,
    ) -> ([Tensor<3>; 3], Option<Tensor<2>>) {
        let projections = self.projections();
        let (outputs, h) = AdaptedLinear::forward_once(&projections, x, context.adapters(), h);
        (self.parts(outputs), h)
    }

    /// Returns queries, keys and values, which may be parts of one output.
    fn parts(&self, outputs: Vec<Tensor<3>>) -> [Tensor<3>; 3] {
        <[_; 3]>::try_from(outputs).unwrap_or_else(|one| {
            let (q, kv) = (self.spec.q_width(), self.spec.kv_width());
            [(0, q), (q, kv), (q + kv, kv)]
                .map(|(start, width)| one[0].clone().narrow(2, start, width))
        })
    }

    /// Returns `pull_back` of queries, keys and values.
    fn pull_back_projections(
        &self,
        x: Tensor<3>,
        context: &Context,
        grads: [Tensor<3>; 3],
        h: Option<Tensor<2>>,
    ) -> Tensor<1> {
        let grads = match &self.qkv_proj {
            Some(_) => vec![Tensor::cat(grads.to_vec(), 2)],
            None => grads.to_vec(),
        };
        AdaptedLinear::pull_back_all(&self.projections(), x, context.adapters(), grads, h)
    }

    /// The projections of queries, keys and values, or their one.
    fn projections(&self) -> Vec<&AdaptedLinear> {
        let all = [&self.qkv_proj, &self.q_proj, &self.k_proj, &self.v_proj];
        all.into_iter().flatten().collect()
    }
}

/// Returns the output of a layer, and its input times A.
pub(super) fn forward<const D: usize>(
    layer: &AdaptedLinear,
    x: Tensor<D>,
    context: &Context,
) -> (Tensor<D>, Option<Tensor<2>>) {
    let (mut outputs, h) = AdaptedLinear::forward_once(&[layer], x, context.adapters(), None);
    (outputs.remove(0), h)
}

const OUTPUT: &str = "self_attn.o_proj";

/// Puts the heads of a token side by side: `[batch, heads, sequence, head_dim]` to
/// `[batch, sequence, heads * head_dim]`.
fn heads_last(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, length, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, heads * width])
}

impl SelfAttentionSpec {
    /// Projections of queries, keys and values.
    fn projections(&self) -> &'static [&'static str] {
        match self.fused {
            true => &["self_attn.qkv_proj"],
            false => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        }
    }

    /// Returns what is kept up to the attention: the norm's output, queries, keys, values, output
    /// and the log-sum-exp of the scores (`attention/autodiff.rs` of the kernels crate).
    pub fn kept(&self, hidden: usize, costs: &dyn LinearCosts) -> TokenCost {
        let (q, kv) = (self.q_width(), self.kv_width());
        let normed = if any_keeps_input(costs, self.projections()) { hidden } else { 0 };
        // Queries and keys before their norms, too.
        let normed_heads = if self.head_norms { q + kv } else { 0 };
        // Values are a part of what the one projection gave.
        let fused = if self.fused { q + kv } else { 0 };
        let values = normed + 2 * q + 2 * kv + normed_heads + fused;
        TokenCost { values: values + all_beside(costs, self.projections()), floats: self.num_heads }
    }

    /// Returns what the output projection keeps: the output, with the heads moved behind the
    /// sequence. Fused kernels (`scores_in_registers`) write it so at once.
    pub fn output_kept(&self, costs: &dyn LinearCosts, scores_in_registers: bool) -> TokenCost {
        let moved = costs.keeps_input(OUTPUT) && !scores_in_registers;
        let output = if moved { self.q_width() } else { 0 };
        TokenCost { values: output + costs.beside(OUTPUT), floats: 0 }
    }

    /// Returns what the backward pass has beside the kept: the gradients of the residual and of the
    /// output, of queries, of keys and values (in float32, if blocks of scores are summed), the
    /// contiguous values (for blocks of scores), and `delta`.
    pub fn backward(&self, hidden: usize, scores_in_registers: bool) -> TokenCost {
        let (q, kv) = (self.q_width(), self.kv_width());
        let (values, floats) = if scores_in_registers { (kv, 0) } else { (0, 2 * kv) };
        TokenCost { values: hidden + 2 * q + kv + values, floats: floats + self.num_heads }
    }

    /// Returns what a pass without gradients has: the residual and the norm's output, queries and
    /// output, keys and values, and a contiguous copy of the values; with sinks also the output in
    /// float32, and scaled.
    pub fn inference(&self, hidden: usize) -> TokenCost {
        let floats = if self.sinks { 2 * self.q_width() } else { 0 };
        TokenCost { values: 2 * hidden + 2 * self.q_width() + 3 * self.kv_width(), floats }
    }
}
