//! Specification of a decoder layer, as data.

use burn_lora_kernels::Activation;

/// Specification of a decoder layer: an attention and a feed-forward block, each added to its
/// input.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Self-attention.
    pub attention: SelfAttentionSpec,
    /// Feed-forward block.
    pub feed_forward: FeedForwardSpec,
    /// Where the norms stand.
    pub norms: NormPlacement,
    /// Factor of what a block adds to its input (Granite); 1 in most families.
    pub residual_multiplier: f64,
}

/// Specification of a causal self-attention.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfAttentionSpec {
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; each serves the same number of query heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores; `1 / sqrt(head_dim)` in most families.
    pub scale: f32,
    /// Sliding window: number of keys that a query sees, itself included; `None` sees all.
    pub window: Option<usize>,
    /// Rotary table of the layer, by its index in [`LlamaConfig::ropes`](crate::LlamaConfig).
    pub rope: usize,
    /// `true` if queries, keys and values are one projection, `qkv_proj`, whose rows are theirs in
    /// this order.
    pub fused: bool,
    /// `true` if the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// `true` if the output projection has a bias.
    pub o_bias: bool,
    /// `true` if each head of queries and keys goes through a norm before it is rotated.
    pub head_norms: bool,
    /// `true` if each query head has a sink, a learned score beside those of the keys (gpt-oss).
    pub sinks: bool,
}

impl SelfAttentionSpec {
    /// Values of all query heads of a token.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Values of all key heads of a token, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// Specification of a feed-forward block.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardSpec {
    /// A gated MLP.
    Gated(GatedMlpSpec),
    /// A mixture of gated MLPs.
    Experts(ExpertsSpec),
}

impl FeedForwardSpec {
    /// The MLP, or that of an expert.
    pub fn mlp(&self) -> &GatedMlpSpec {
        match self {
            Self::Gated(mlp) | Self::Experts(ExpertsSpec { mlp, .. }) => mlp,
        }
    }

    /// The MLP, or that of an expert, to change it.
    pub fn mlp_mut(&mut self) -> &mut GatedMlpSpec {
        match self {
            Self::Gated(mlp) | Self::Experts(ExpertsSpec { mlp, .. }) => mlp,
        }
    }
}

/// Specification of a mixture of experts: a router chooses some of them for each token, whose
/// outputs are added up with its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Number of experts.
    pub num_experts: usize,
    /// Number of experts that a token goes through.
    pub experts_per_token: usize,
    /// An expert.
    pub mlp: GatedMlpSpec,
    /// Router.
    pub router: RouterSpec,
}

/// Specification of the router of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterSpec {
    /// Name of its linear layer.
    pub name: &'static str,
    /// `true` if it has a bias.
    pub bias: bool,
    /// How logits become the weights of the chosen experts.
    pub weights: RouterWeights,
}

/// How a router makes weights of the logits of experts. The chosen ones are those with the largest
/// logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterWeights {
    /// Softmax over all experts; the chosen ones keep their parts.
    Softmax,
    /// Softmax over all experts; the parts of the chosen ones are divided by their sum.
    NormalizedSoftmax,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
}

/// Specification of a gated MLP: `down(activation(gate(x)) · up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedMlpSpec {
    /// Width of gate and up.
    pub intermediate_size: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Whether gate and up are one projection.
    pub gate_up: GateUp,
    /// Limit of gate and up (gpt-oss):
    /// `down(activation(min(gate(x), limit)) · (clamp(up(x), -limit, limit) + 1))`.
    pub limit: Option<f64>,
    /// `true` if the projections have biases.
    pub bias: bool,
}

/// The projections of gate and up in an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateUp {
    /// Two: `gate_proj` and `up_proj`.
    Separate,
    /// One, `gate_up_proj`, whose rows are those of gate and those of up.
    Fused,
    /// One, `gate_up_proj`, of which checkpoints have the two parts: experts.
    Joined,
    /// One, `gate_up_proj`, whose even rows are those of gate and whose odd rows those of up
    /// (gpt-oss).
    Interleaved,
}

/// Where the norms of a decoder layer stand, and what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each block: `x + block(norm(x))`, by `input_layernorm` and
    /// `post_attention_layernorm` (Llama).
    Before,
    /// Before and after each block: `x + norm(block(norm(x)))`, by `input_layernorm` and
    /// `post_attention_layernorm` around the attention, `pre_feedforward_layernorm` and
    /// `post_feedforward_layernorm` around the feed-forward block (Gemma 2 and 3).
    Around,
}
