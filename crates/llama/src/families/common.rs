//! Fields of `config.json` that most families have.

use crate::{
    config::{LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    rope::{RopeConfig, RopeDefaults},
    spec::{
        ExpertsSpec, FeedForwardSpec, GateUp, GatedMlpSpec, LayerSpec, NormPlacement, RouterSpec,
        RouterWeights, SelfAttentionSpec,
    },
    weights::stored,
};
use burn_lora_kernels::{Activation, NormSpec};

/// Values of a family for fields that `config.json` does not have: those of its class in
/// transformers. A size without one has to be in the file.
///
/// ```
/// use burn_lora_llama::ConfigDefaults;
///
/// // Heads of 128, however many there are.
/// let qwen3 = ConfigDefaults { head_dim: Some(128), ..ConfigDefaults::default() };
/// ```
#[derive(Clone, Debug)]
pub struct ConfigDefaults {
    /// `vocab_size`.
    pub vocab_size: Option<usize>,
    /// `hidden_size`.
    pub hidden_size: Option<usize>,
    /// `intermediate_size`.
    pub intermediate_size: Option<usize>,
    /// `num_hidden_layers`.
    pub num_hidden_layers: Option<usize>,
    /// `num_attention_heads`.
    pub num_attention_heads: Option<usize>,
    /// `num_key_value_heads`; `None` is as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// `head_dim`; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// `rms_norm_eps`.
    pub rms_norm_eps: f64,
    /// `tie_word_embeddings`.
    pub tie_word_embeddings: bool,
    /// Name of the field with the activation of the MLP.
    pub activation_field: &'static str,
    /// Activation of the MLP.
    pub activation: Activation,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `original_max_position_embeddings`; `None` is `max_position_embeddings`.
    pub original_max_position_embeddings: Option<usize>,
    /// Fields that the family reads itself, or `partial_rotary_factor` if it has that. With
    /// `rope_parameters`, the family reads all of rotary positions. All others that change a model, and that
    /// [`LlamaConfig::uniform`] does not read, are refused if they are there.
    pub reads: &'static [&'static str],
}

impl Default for ConfigDefaults {
    /// Returns those of Llama.
    fn default() -> Self {
        Self {
            vocab_size: None,
            hidden_size: None,
            intermediate_size: None,
            num_hidden_layers: None,
            num_attention_heads: None,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            activation_field: "hidden_act",
            activation: Activation::Silu,
            rope_theta: 10_000.0,
            original_max_position_embeddings: None,
            reads: &[],
        }
    }
}

/// Fields that change the model, and that a family has to know.
const SPECIAL: [&str; 6] = [
    "num_local_experts",
    "num_experts",
    "logits_scaling",
    "residual_multiplier",
    "final_logit_softcapping",
    "attn_logit_softcapping",
];

/// Maximum number of parameters; the largest models have about 2^41.
const MOST_PARAMETERS: usize = 1 << 44;

impl LlamaConfig {
    /// Reads the fields that most families have into a decoder of equal layers, without biases and
    /// windows: the start of [`ModelFamily::config`], which then changes what the family has
    /// differently.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if a field is missing, or its value is malformed or not supported.
    pub fn uniform(
        family: &'static dyn ModelFamily,
        fields: &ConfigFields<'_>,
        defaults: &ConfigDefaults,
    ) -> Result<Self, LlamaError> {
        for field in SPECIAL.into_iter().filter(|field| !defaults.reads.contains(field)) {
            if let Some(value) = fields.value(field) {
                return Err(fields.wrong(field, value, "not supported"));
            }
        }
        let activation = activation(fields, defaults)?;

        let given = |field: &str, default: Option<usize>| match (fields.get(field)?, default) {
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => fields.required::<usize>(field),
        };
        // These limit what a file can make us allocate before its tensors are looked at.
        let size = |field: &str, size: usize, most: usize| match size {
            size if (1..=most).contains(&size) => Ok(size),
            _ => Err(fields.wrong(field, size, &format!("expected a size from 1 to {most}"))),
        };
        let sized = |field: &str, default, most| size(field, given(field, default)?, most);
        let heads = given("num_attention_heads", defaults.num_attention_heads)?;
        let hidden_size = given("hidden_size", defaults.hidden_size)?;
        let num_hidden_layers = sized("num_hidden_layers", defaults.num_hidden_layers, 1 << 12)?;
        let num_heads = size("num_attention_heads", heads, 1 << 14)?;
        // A missing field has its class's default; `null` means as many as query heads.
        let kv_heads = match defaults.num_key_value_heads {
            Some(default) if !fields.has("num_key_value_heads") => default,
            _ => heads,
        };
        let num_kv_heads = sized("num_key_value_heads", Some(kv_heads), 1 << 14)?;
        let head_dim = defaults.head_dim.unwrap_or(hidden_size / heads.max(1));
        let head_dim = sized("head_dim", Some(head_dim), 1 << 14)?;
        let positions = Some(defaults.max_position_embeddings);
        let max_position_embeddings = sized("max_position_embeddings", positions, 1 << 28)?;
        if !heads.is_multiple_of(num_kv_heads) {
            let reason = format!("`num_attention_heads` {heads} is no multiple of it");
            return Err(fields.wrong("num_key_value_heads", num_kv_heads, &reason));
        }
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", head_dim, "rotary embedding needs an even one"));
        }
        let eps = fields.get("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps);
        if !(0.0..1.0).contains(&eps) {
            return Err(fields.wrong("rms_norm_eps", eps, "expected a number from 0 and below 1"));
        }
        let vocab_size = sized("vocab_size", defaults.vocab_size, 1 << 28)?;
        let hidden_size = size("hidden_size", hidden_size, 1 << 28)?;
        let intermediate_size = sized("intermediate_size", defaults.intermediate_size, 1 << 28)?;
        // Each size may be valid, and the model still too large.
        let heads = 2 * (num_heads + num_kv_heads) * head_dim;
        let widths = num_hidden_layers * (heads + 3 * intermediate_size) + 2 * vocab_size;
        if widths.checked_mul(hidden_size).is_none_or(|parameters| parameters > MOST_PARAMETERS) {
            let reason =
                "with the other sizes it is a model of more parameters than can be handled";
            return Err(fields.wrong("hidden_size", hidden_size, reason));
        }
        let rope = RopeDefaults {
            theta: defaults.rope_theta,
            original: defaults.original_max_position_embeddings,
            partial: defaults.reads.contains(&"partial_rotary_factor"),
        };
        let ropes = match defaults.reads.contains(&"rope_parameters") {
            true => vec![],
            false => vec![RopeConfig::read(fields, head_dim, max_position_embeddings, rope)?],
        };
        let layer = LayerSpec {
            attention: SelfAttentionSpec {
                num_heads,
                num_kv_heads,
                head_dim,
                scale: (head_dim as f32).sqrt().recip(),
                window: None,
                rope: 0,
                fused: false,
                qkv_bias: false,
                o_bias: false,
                head_norms: false,
                sinks: false,
            },
            feed_forward: FeedForwardSpec::Gated(GatedMlpSpec {
                intermediate_size,
                activation,
                gate_up: GateUp::Separate,
                limit: None,
                bias: false,
            }),
            norms: NormPlacement::Before,
            residual_multiplier: 1.0,
        };
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            max_position_embeddings,
            layers: vec![layer; num_hidden_layers],
            ropes,
            norm: NormSpec::from(eps),
            embedding_multiplier: 1.0,
            logits_scaling: 1.0,
            final_logit_softcapping: None,
            tie_word_embeddings: flag(fields, "tie_word_embeddings", defaults.tie_word_embeddings)?,
            quantized: stored::format(fields)?.is_some(),
            raw: fields.json(),
        })
    }

    /// Changes all layers.
    pub fn each_layer(&mut self, change: impl FnMut(&mut LayerSpec)) {
        self.layers.iter_mut().for_each(change);
    }
}

fn activation(
    fields: &ConfigFields<'_>,
    defaults: &ConfigDefaults,
) -> Result<Activation, LlamaError> {
    let field = defaults.activation_field;
    match fields.get::<String>(field)?.as_deref() {
        None => Ok(defaults.activation),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(fields.wrong(field, other, "supported are silu and gelu_pytorch_tanh")),
    }
}

/// Fields with the number of experts: newer files have the first.
pub(super) const EXPERT_COUNTS: [&str; 2] = ["num_local_experts", "num_experts"];

/// Changes the layers for which `sparse` is true into mixtures of experts, from
/// `num_experts_per_tok` and the first of [`EXPERT_COUNTS`] that is there.
///
/// # Errors
/// [`LlamaError::Field`] if a number is missing, or does not fit the others.
pub(super) fn set_experts(
    config: &mut LlamaConfig,
    fields: &ConfigFields<'_>,
    [default_count, default_chosen]: [usize; 2],
    intermediate_size: usize,
    weights: RouterWeights,
    sparse: impl Fn(usize) -> bool,
) -> Result<(), LlamaError> {
    let there = EXPERT_COUNTS.into_iter().find(|field| fields.value(field).is_some());
    let field = there.unwrap_or(EXPERT_COUNTS[0]);
    let num_experts = fields.get(field)?.unwrap_or(default_count);
    if !(1..=1 << 14).contains(&num_experts) {
        return Err(fields.wrong(field, num_experts, "expected a number from 1"));
    }
    let experts_per_token = fields.get("num_experts_per_tok")?.unwrap_or(default_chosen);
    if !(1..=num_experts).contains(&experts_per_token) {
        let reason = format!("expected a number from 1 to {num_experts}, that of the experts");
        return Err(fields.wrong("num_experts_per_tok", experts_per_token, &reason));
    }
    let parameters = (num_experts * config.layers.len())
        .checked_mul(3 * intermediate_size)
        .and_then(|width| width.checked_mul(config.hidden_size));
    if parameters.is_none_or(|parameters| parameters > MOST_PARAMETERS) {
        let reason = "with the other sizes it is a model of more parameters than can be handled";
        return Err(fields.wrong(field, num_experts, reason));
    }
    for (_, layer) in config.layers.iter_mut().enumerate().filter(|(index, _)| sparse(*index)) {
        let mlp = layer.feed_forward.mlp();
        layer.feed_forward = FeedForwardSpec::Experts(ExpertsSpec {
            num_experts,
            experts_per_token,
            mlp: GatedMlpSpec { intermediate_size, gate_up: GateUp::Joined, ..mlp.clone() },
            router: RouterSpec { name: "gate", bias: false, weights },
        });
    }
    Ok(())
}

/// Value of a field that is true or false.
///
/// # Errors
/// [`LlamaError::Field`] if it is neither.
pub(super) fn flag(
    fields: &ConfigFields<'_>,
    field: &str,
    default: bool,
) -> Result<bool, LlamaError> {
    Ok(fields.get(field)?.unwrap_or(default))
}

/// Length of the sliding window, `sliding_window`; `null` is no window.
///
/// # Errors
/// [`LlamaError::Field`] if it cannot be one.
pub(super) fn window(
    fields: &ConfigFields<'_>,
    default: Option<usize>,
) -> Result<Option<usize>, LlamaError> {
    let missing = !fields.has("sliding_window");
    let window = fields.get("sliding_window")?.or(default.filter(|_| missing));
    match window.filter(|window| !(1..=1 << 28).contains(window)) {
        None => Ok(window),
        Some(window) => {
            Err(fields.wrong("sliding_window", window, "expected a length from 1, or null"))
        }
    }
}

/// Returns for each layer whether it is a sliding one: by `layer_types`, or else by its index.
///
/// # Errors
/// [`LlamaError::Field`] if the types are of another number of layers, or one is not known.
pub(super) fn sliding_layers(
    fields: &ConfigFields<'_>,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, LlamaError> {
    let Some(types) = fields.get::<Vec<String>>("layer_types")? else {
        return Ok((0..layers).map(otherwise).collect());
    };
    if types.len() != layers {
        let reason = format!("expected one for each of {layers} layers");
        return Err(fields.wrong("layer_types", types.len(), &reason));
    }
    let sliding = types.iter().map(|name| match name.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(fields.wrong("layer_types", name, "only full and sliding attention")),
    });
    sliding.collect()
}
