//! Decoder layers, and the decoder that is made of them.

use super::{Attention, LinearCosts, Mlp, Parameters, RmsNorm, SparseExperts, TokenCost};
use crate::{
    cache::LayerCache,
    causal_lm::{Keep, Kept, Rerun},
    config::LlamaConfig,
    context::Context,
    error::LlamaError,
    spec::{FeedForwardSpec, GateUp, LayerSpec, NormPlacement},
};
use burn::{
    module::Module,
    tensor::{Gradients, Tensor},
};
use burn_lora_adapter::{AdaptedEmbedding, adaptable};
use burn_lora_kernels::{NormSpec, pull_back, pull_back_with};

/// Decoder layer: attention and MLP, each with norms where the family has them, and added to its
/// input.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Attention.
    pub self_attn: Attention,
    /// MLP, unless there are experts.
    pub mlp: Option<Mlp>,
    /// Mixture of experts, in the place of the MLP and under its path.
    pub experts: Option<SparseExperts>,
    /// Norm before the attention.
    pub input_layernorm: RmsNorm,
    /// Norm after the attention; where the norms stand before the blocks only, that before the
    /// MLP.
    pub post_attention_layernorm: RmsNorm,
    /// Norm before the MLP, where norms stand around the blocks.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// Norm after the MLP.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    /// Factor of what a block adds to its input.
    #[module(skip)]
    pub residual_multiplier: f64,
}
adaptable!(DecoderLayer {
    self_attn,
    mlp,
    experts as "mlp",
    input_layernorm,
    post_attention_layernorm,
    pre_feedforward_layernorm,
    post_feedforward_layernorm,
});

impl DecoderLayer {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        hidden: usize,
        spec: &LayerSpec,
        norm: NormSpec,
    ) -> Result<Self, LlamaError> {
        let path = |name: &str| format!("{path}.{name}");
        let norm_of = |name: &str| RmsNorm::build(from, &path(name), hidden, norm);
        let around = |name| (spec.norms == NormPlacement::Around).then(|| norm_of(name));
        let self_attn = Attention::build(from, &path("self_attn"), hidden, &spec.attention, norm)?;
        let (mlp, experts) = match &spec.feed_forward {
            FeedForwardSpec::Gated(mlp) => {
                (Some(Mlp::build(from, &path("mlp"), hidden, mlp)?), None)
            }
            FeedForwardSpec::Experts(experts) => {
                (None, Some(SparseExperts::build(from, &path("mlp"), hidden, experts)?))
            }
        };
        Ok(Self {
            self_attn,
            mlp,
            experts,
            input_layernorm: norm_of("input_layernorm")?,
            post_attention_layernorm: norm_of("post_attention_layernorm")?,
            pre_feedforward_layernorm: around("pre_feedforward_layernorm").transpose()?,
            post_feedforward_layernorm: around("post_feedforward_layernorm").transpose()?,
            residual_multiplier: spec.residual_multiplier,
        })
    }

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
        self.fed_forward(self.attended(x, context, cache), context)
    }

    /// Returns `true` if nothing of the layer has to be run again after
    /// [`forward_once`](Self::forward_once) with [`Keep::All`].
    pub(crate) fn keeps(&self, context: &Context) -> bool {
        let plain = self.mlp.as_ref().is_some_and(|mlp| mlp.is_plain(context));
        plain && self.norms_are_before() && self.self_attn.is_plain(context)
    }

    /// Returns `forward(x, context, None)` of a layer that is run again for its backward pass, and what
    /// is kept of it: nothing, or what [`pull_back`](Self::pull_back) then need not compute.
    ///
    /// # Shapes
    /// - x, first output: `[batch, sequence, hidden]`
    pub fn forward_once(&self, x: Tensor<3>, context: &Context, how: Rerun) -> (Tensor<3>, Kept) {
        let dims = x.dims();
        let keeps = how.keep != Keep::Inputs && self.norms_are_before();
        let all = how.keep == Keep::All && self.keeps(context);
        let (x, attention, of_attention) = match keeps && self.self_attn.can_keep() {
            true => self.attended_keeping(x, context, how.keep),
            false => (self.attended(x, context, None), vec![], [None, None]),
        };
        let (out, feed_forward, of_mlp) = match (&self.mlp, how.tile) {
            (Some(mlp), tile) if keeps && (all || tile.is_none()) => {
                let normed_x = normed(x.clone(), self.norms().1[0], context);
                let (out, kept, h) = mlp.forward_keeping(normed_x, context, all);
                (self.added(x, out), kept, h)
            }
            (_, Some(tile)) => {
                let tiles = tiles(x, tile).into_iter().map(|x| self.fed_forward(x, context));
                (Tensor::cat(tiles.collect(), 1).reshape(dims), vec![], [None, None])
            }
            (_, None) => (self.fed_forward(x, context), vec![], [None, None]),
        };
        let updates = of_attention.into_iter().chain(of_mlp);
        let updates = updates.map(|h| h.filter(|_| keeps).map(|h| h.flatten(0, 1))).collect();
        (out, Kept { attention, feed_forward, updates })
    }

    /// Returns `pull_back(forward(x, context, None), grad)`: a zero, `[1]`, whose `backward()` starts
    /// from `grad` as the gradient of the output. What nobody needs is not computed: the last product
    /// of an MLP, and what [`forward_once`](Self::forward_once) kept. `found` gets the gradients of
    /// parameters that are there before.
    ///
    /// # Shapes
    /// - x, grad: `[batch, sequence, hidden]`
    pub fn pull_back(
        &self,
        x: Tensor<3>,
        context: &Context,
        grad: Tensor<3>,
        kept: Kept,
        how: Rerun,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        let ([before, _], dims) = (self.norms().0, x.dims());
        let Kept { mut attention, feed_forward, updates } = kept;
        let mut updates = updates.into_iter().map(|h| {
            let tokens = dims[0] * dims[1];
            h.map(|h| h.clone().reshape([tokens, h.dims()[0] / tokens]))
        });
        let mut pair = || [(); 2].map(|()| updates.next().flatten());
        let (mut of_attention, of_mlp) = (pair(), pair());
        let plain = self.norms_are_before() && self.self_attn.is_plain(context);
        if attention.is_empty() && !plain {
            let x = self.attended(x, context, None);
            if how.tile.is_none() {
                return self.fed_back(x, context, grad, vec![], of_mlp, found);
            }
            let kept = (vec![], of_mlp);
            let grad = self.fed_back_at_once(x.clone().inner(), context, grad, kept, how, found);
            return pull_back(x, grad);
        }
        let sum = match (attention.is_empty(), how.keep) {
            (true, _) => {
                let (sum, again, h) =
                    self.attended_keeping(x.clone().inner(), context, Keep::Attention);
                of_attention = h;
                attention = again.into_iter().map(Tensor::inner).collect();
                attention.pop();
                sum.inner()
            }
            (_, Keep::Attention | Keep::All) => attention.pop().expect("it is kept").reshape(dims),
            _ => {
                let out = self.self_attn.output(attention[0].clone(), dims, context);
                self.added(x.clone().inner(), out.inner())
            }
        };
        let kept = (feed_forward, of_mlp);
        let grad = self.fed_back_at_once(sum, context, grad, kept, how, found);
        let normed_x = normed(x.clone(), before, context);
        let of_block = self.of_block(&grad);
        let (kept, h) = (attention, of_attention);
        let zero = self.self_attn.pull_back_kept(normed_x, kept, h, context, of_block, found);
        pull_back_with(zero, x, grad)
    }

    /// Returns the gradient of the input of the feed-forward block, which is run forward and backward,
    /// in tiles if there are some.
    fn fed_back_at_once(
        &self,
        x: Tensor<3>,
        context: &Context,
        grad: Tensor<3>,
        (kept, h): (Vec<Tensor<1>>, Updates),
        how: Rerun,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<3> {
        let dims = x.dims();
        let mut back = |x: Tensor<3>, grad, kept, h| {
            let x = x.autodiff().require_grad();
            let mut of_tile = self.fed_back(x.clone(), context, grad, kept, h, found).backward();
            let grad = x.grad_remove(&mut of_tile).expect("an input has a gradient");
            found(of_tile);
            grad
        };
        let Some(tile) = how.tile else { return back(x, grad, kept, h) };
        let tokens = dims[0] * dims[1];
        let mut kept: Vec<_> = kept
            .into_iter()
            .map(|x| x.clone().split(tile * (x.dims()[0] / tokens), 0).into_iter())
            .collect();
        let mut h = h.map(|h| Some(h?.split(tile, 0).into_iter()));
        let pairs = tiles(x, tile).into_iter().zip(tiles(grad, tile));
        let grads = pairs.map(|(x, grad)| {
            let kept = kept.iter_mut().map(|tiles| tiles.next().expect("one for each")).collect();
            let h = h.each_mut().map(|tiles| tiles.as_mut()?.next());
            back(x, grad, kept, h)
        });
        Tensor::cat(grads.collect(), 1).reshape(dims)
    }

    /// Returns the sum of the layer's input and the attention, and what is kept of that.
    fn attended_keeping(
        &self,
        x: Tensor<3>,
        context: &Context,
        keep: Keep,
    ) -> (Tensor<3>, Vec<Tensor<1>>, Updates) {
        let normed_x = normed(x.clone(), self.norms().0[0], context);
        let (out, mut kept, h) = self.self_attn.forward_keeping(normed_x, context);
        let sum = self.added(x, out);
        match keep {
            Keep::Inputs | Keep::Outputs => kept.truncate(2),
            Keep::Attention | Keep::All => kept.push(sum.clone().flatten(0, 2)),
        }
        (sum, kept, h)
    }

    /// Returns the sum of the attention's output and the feed-forward block.
    fn fed_forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let (_, [before, after]) = self.norms();
        let normed_x = normed(x.clone(), before, context);
        let out = match (&self.mlp, &self.experts) {
            (Some(mlp), _) => mlp.forward(normed_x, context),
            (None, Some(experts)) => experts.forward(normed_x, context),
            (None, None) => unreachable!("a layer has one of them"),
        };
        self.added(x, normed(out, after, context))
    }

    /// Returns `pull_back(fed_forward(x, context), grad)`, without the last product of an MLP and what is
    /// kept.
    fn fed_back(
        &self,
        x: Tensor<3>,
        context: &Context,
        grad: Tensor<3>,
        kept: Vec<Tensor<1>>,
        h: Updates,
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        let (Some(mlp), (_, [before, None])) = (&self.mlp, self.norms()) else {
            return pull_back(self.fed_forward(x, context), grad);
        };
        let normed_x = normed(x.clone(), before, context);
        let zero = mlp.pull_back(normed_x, context, self.of_block(&grad), kept, h, found);
        pull_back_with(zero, x, grad)
    }

    /// Gradient of a block's output, from that of its sum with the input.
    fn of_block(&self, grad: &Tensor<3>) -> Tensor<3> {
        match self.residual_multiplier {
            1.0 => grad.clone(),
            factor => grad.clone() * factor,
        }
    }

    /// Returns the sum of the layer's input and the attention.
    fn attended(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let ([before, after], _) = self.norms();
        let out = self.self_attn.forward(normed(x.clone(), before, context), context, cache);
        self.added(x, normed(out, after, context))
    }

    /// Adds the output of a block to its input.
    fn added(&self, x: Tensor<3>, out: Tensor<3>) -> Tensor<3> {
        match self.residual_multiplier {
            1.0 => x + out,
            factor => x + out * factor,
        }
    }

    fn norms_are_before(&self) -> bool {
        matches!(self.norms(), ([_, None], [_, None]))
    }

    /// The norms before and after the attention, and before and after the MLP.
    fn norms(&self) -> ([Option<&RmsNorm>; 2], [Option<&RmsNorm>; 2]) {
        let (input, middle) = (Some(&self.input_layernorm), Some(&self.post_attention_layernorm));
        match (&self.pre_feedforward_layernorm, &self.post_feedforward_layernorm) {
            (None, None) => ([input, None], [middle, None]),
            (before, after) => ([input, middle], [before.as_ref(), after.as_ref()]),
        }
    }
}

/// Splits the tokens of a batch into tiles, `[1, tokens, hidden]`.
fn tiles(x: Tensor<3>, tile: usize) -> Vec<Tensor<3>> {
    let [batch, length, hidden] = x.dims();
    x.reshape([1, batch * length, hidden]).split(tile, 1)
}

/// Applies a norm, if there is one. What is on no autodiff device stays so.
fn normed(x: Tensor<3>, norm: Option<&RmsNorm>, context: &Context) -> Tensor<3> {
    let graph = x.is_autodiff();
    match norm {
        Some(norm) if graph => norm.forward(x, context),
        Some(norm) => norm.forward(x, context).inner(),
        None => x,
    }
}

/// Inputs of a block's first and last projections, times A of their low-rank updates.
type Updates = [Option<Tensor<2>>; 2];

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

impl Decoder {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        config: &LlamaConfig,
    ) -> Result<Self, LlamaError> {
        let (hidden, norm) = (config.hidden_size, config.norm);
        let shape = [config.vocab_size, hidden];
        let layers = config.layers.iter().enumerate().map(|(index, spec)| {
            DecoderLayer::build(from, &format!("{path}.layers.{index}"), hidden, spec, norm)
        });
        Ok(Self {
            embed_tokens: from.embedding(&format!("{path}.embed_tokens"), shape)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: RmsNorm::build(from, &format!("{path}.norm"), hidden, norm)?,
        })
    }
}

const MLP: &str = "mlp";

impl LayerSpec {
    /// Returns what the layer keeps of a token for its backward pass, its input left out, with
    /// `scores_in_registers` or not ([`SelfAttentionSpec::output_kept`]).
    ///
    /// [`SelfAttentionSpec::output_kept`]: crate::spec::SelfAttentionSpec::output_kept
    pub fn kept(
        &self,
        hidden: usize,
        costs: &dyn LinearCosts,
        scores_in_registers: bool,
    ) -> TokenCost {
        let attention = self.kept_by_attention(hidden, costs, scores_in_registers);
        attention + self.kept_by_feed_forward(hidden, costs)
    }

    /// Returns what [`DecoderLayer::forward_once`] keeps of a token of the attention; `None` if that is
    /// nothing.
    pub fn kept_of_attention(&self, hidden: usize, keep: Keep) -> Option<TokenCost> {
        let keeps = self.norms == NormPlacement::Before && !self.attention.sinks;
        let (q, kv) = (self.attention.q_width(), self.attention.kv_width());
        let values = match keep {
            Keep::Inputs => return None,
            Keep::Outputs => q,
            Keep::Attention | Keep::All => 2 * q + 2 * kv + hidden,
        };
        keeps.then_some(TokenCost { values, floats: self.attention.num_heads })
    }

    /// Returns `true` if a layer without DoRA, dropout, trained weights or biases keeps all that its
    /// backward pass needs ([`CausalLm::keeps`](crate::CausalLm::keeps)).
    pub fn can_keep_all(&self) -> bool {
        let mlp = match &self.feed_forward {
            FeedForwardSpec::Gated(mlp) => {
                mlp.limit.is_none() && mlp.gate_up != GateUp::Interleaved
            }
            FeedForwardSpec::Experts(_) => false,
        };
        mlp && self.norms == NormPlacement::Before && !self.attention.sinks
    }

    /// Returns the values that [`DecoderLayer::forward_once`] keeps of a token of the feed-forward block.
    pub fn kept_of_feed_forward(&self) -> usize {
        match &self.feed_forward {
            FeedForwardSpec::Gated(mlp) => 2 * mlp.intermediate_size,
            FeedForwardSpec::Experts(_) => 0,
        }
    }

    /// Returns what the attention with its norms keeps of a token.
    pub fn kept_by_attention(
        &self,
        hidden: usize,
        costs: &dyn LinearCosts,
        scores_in_registers: bool,
    ) -> TokenCost {
        let output = self.attention.output_kept(costs, scores_in_registers);
        // The norm before it keeps the layer's input; one after it keeps the output.
        let norms = usize::from(self.norms != NormPlacement::Before);
        (self.attention.kept(hidden, costs) + output).plus_values(norms * hidden)
    }

    /// Returns what the feed-forward block with its norms keeps of a token.
    pub fn kept_by_feed_forward(&self, hidden: usize, costs: &dyn LinearCosts) -> TokenCost {
        let kept = match &self.feed_forward {
            FeedForwardSpec::Gated(mlp) => mlp.kept(MLP, hidden, costs),
            FeedForwardSpec::Experts(experts) => experts.kept(MLP, hidden, costs),
        };
        // The input of the norm before the block; a norm after it keeps the block's output.
        let norms = if self.norms == NormPlacement::Before { 1 } else { 2 };
        kept.plus_values(norms * hidden)
    }

    /// Returns what the backward pass through the feed-forward block has of a token beside the
    /// kept: the output (forward), its gradient, and what the block has. `twice` is that of
    /// [`GatedMlpSpec::backward`](crate::spec::GatedMlpSpec::backward).
    pub fn feed_forward_backward(
        &self,
        hidden: usize,
        costs: &dyn LinearCosts,
        twice: bool,
    ) -> TokenCost {
        let block = match &self.feed_forward {
            FeedForwardSpec::Gated(mlp) => mlp.backward(MLP, costs, twice),
            FeedForwardSpec::Experts(experts) => experts.backward(MLP, hidden, costs, twice),
        };
        block.plus_values(2 * hidden)
    }

    /// Returns what the feed-forward block has of a token in a pass without gradients: the residual
    /// and the norm's output, and what the block has.
    pub fn feed_forward_inference(&self, hidden: usize) -> TokenCost {
        let block = match &self.feed_forward {
            FeedForwardSpec::Gated(mlp) => mlp.inference(),
            FeedForwardSpec::Experts(experts) => experts.inference(hidden),
        };
        block.plus_values(2 * hidden)
    }

    /// Path of the last projection of the feed-forward block, of the first expert if there are
    /// some.
    pub fn down_path(&self) -> &'static str {
        match &self.feed_forward {
            FeedForwardSpec::Gated(_) => "mlp.down_proj",
            FeedForwardSpec::Experts(_) => "mlp.experts.0.down_proj",
        }
    }
}
