//! Model configuration: `config.json`.

use crate::{error::LlamaError, fields::Fields, rope::RopeConfig, weights::stored};
use burn::tensor::DType;
use burn_lora_quant::StorageFormat;
use serde_json::Value;
use std::{path::Path, sync::Arc};

/// Model families whose decoder is the Llama stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3.3, and models published as Llama (TinyLlama, SmolLM2).
    Llama,
    /// Mistral: the same with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: RMSNorm on each head of q and k.
    Qwen3,
}

/// Shape and numeric settings of a model, as in Hugging Face's `config.json`.
///
/// ```
/// use burn_lora_llama::LlamaConfig;
///
/// let config = LlamaConfig::from_json(r#"{
///     "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
///     "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
///     "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
///     "max_position_embeddings": 131072, "rope_theta": 500000.0
/// }"#)?;
/// assert_eq!((config.head_dim, config.tie_word_embeddings), (128, false));
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Model family.
    pub family: Family,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; each serves the same number of query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of RMSNorm, added to the mean square.
    pub rms_norm_eps: f64,
    /// Context length that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// `true` if the output head shares the embedding's weight (tied embeddings).
    pub tie_word_embeddings: bool,
    /// `true` if q, k and v have biases.
    pub qkv_bias: bool,
    /// `true` if the output projection of the attention has a bias.
    pub o_bias: bool,
    /// `true` if the projections of the MLP have biases.
    pub mlp_bias: bool,
    /// Sliding window of each layer: keys that a query sees, itself included; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// `true` if `quantization_config` declares quantized weights: see
    /// [`stored_format`](Self::stored_format).
    pub quantized: bool,
    /// The whole file, for readers of other fields.
    pub raw: Value,
}

/// Fields that change the model in ways that this crate does not support.
const UNSUPPORTED: [&str; 6] = [
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
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// - [`LlamaError::Io`] if the file cannot be read.
    /// - [`LlamaError::Format`] if it is not a JSON object.
    /// - [`LlamaError::Field`] if a field is missing, or its value is malformed or not supported.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LlamaError> {
        let path = path.as_ref();
        let json = burn_lora_io::read(path).map_err(LlamaError::io(path))?;
        let raw = serde_json::from_slice(&json).map_err(|e| LlamaError::format(path, e))?;
        Self::from_value(raw, path)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file), without [`LlamaError::Io`].
    pub fn from_json(json: &str) -> Result<Self, LlamaError> {
        let path = Path::new("config.json");
        let raw = serde_json::from_str(json).map_err(|e| LlamaError::format(path, e))?;
        Self::from_value(raw, path)
    }

    /// Ids of the end-of-text tokens, from `eos_token_id`.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let ids = match &self.raw["eos_token_id"] {
            Value::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        ids.iter().filter_map(Value::as_u64).filter_map(|id| id.try_into().ok()).collect()
    }

    /// Storage format of the linear layers that `quantization_config` declares, if any.
    pub fn stored_format(&self) -> Option<Arc<dyn StorageFormat>> {
        // Its errors were those of reading the file.
        let fields = Fields::new(Path::new("config.json"), &self.raw).ok()?;
        stored::format(&fields).ok()?
    }

    /// Intended dtype of the model, from `dtype` or the older `torch_dtype`.
    pub(crate) fn dtype(&self) -> Option<DType> {
        let name = ["dtype", "torch_dtype"].into_iter().find_map(|name| self.raw[name].as_str());
        match name?.trim_start_matches("torch.") {
            "float32" => Some(DType::F32),
            "float16" => Some(DType::F16),
            "bfloat16" => Some(DType::BF16),
            _ => None,
        }
    }

    pub(crate) fn from_value(raw: Value, path: &Path) -> Result<Self, LlamaError> {
        let fields = Fields::new(path, &raw)?;
        let family = family(&fields)?;
        for field in UNSUPPORTED {
            if let Some(value) = fields.value(field) {
                return Err(fields.wrong(field, value, "not supported"));
            }
        }
        fields.equals("hidden_act", "silu".to_owned())?;

        let heads: usize = fields.required("num_attention_heads")?;
        let hidden_size: usize = fields.required("hidden_size")?;
        // Defaults are those of transformers.
        let head_dim = match family {
            Family::Qwen3 => 128,
            _ => hidden_size / heads.max(1),
        };
        let max_positions = match family {
            Family::Llama => 2048,
            Family::Mistral => 4096 * 32,
            Family::Qwen2 | Family::Qwen3 => 32768,
        };
        // These limit what a file can make us allocate before its tensors are looked at.
        let size = |field: &str, size: usize, most: usize| match size {
            size if (1..=most).contains(&size) => Ok(size),
            _ => Err(fields.wrong(field, size, &format!("expected a size from 1 to {most}"))),
        };
        let or = |field: &str, default: usize, most: usize| {
            size(field, fields.get(field)?.unwrap_or(default), most)
        };
        let required = |field: &str, most: usize| size(field, fields.required(field)?, most);
        let num_hidden_layers = required("num_hidden_layers", 1 << 12)?;
        let num_attention_heads = size("num_attention_heads", heads, 1 << 14)?;
        // A missing field has its class's default; `null` means as many as query heads.
        let key_value_heads = match family {
            _ if fields.has("num_key_value_heads") => heads,
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        let num_key_value_heads = or("num_key_value_heads", key_value_heads, 1 << 14)?;
        let head_dim = or("head_dim", head_dim, 1 << 14)?;
        let max_position_embeddings = or("max_position_embeddings", max_positions, 1 << 28)?;
        if !heads.is_multiple_of(num_key_value_heads) {
            let reason = format!("`num_attention_heads` {heads} is no multiple of it");
            return Err(fields.wrong("num_key_value_heads", num_key_value_heads, &reason));
        }
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", head_dim, "rotary embedding needs an even one"));
        }
        let eps = fields.get("rms_norm_eps")?.unwrap_or(1e-6);
        if !(0.0..1.0).contains(&eps) {
            return Err(fields.wrong("rms_norm_eps", eps, "expected a number from 0 and below 1"));
        }

        let flag = |field: &str| Ok::<_, LlamaError>(fields.get(field)?.unwrap_or(false));
        // Qwen 2 has these biases whatever the file says, and Mistral none.
        let attention_bias = match family {
            Family::Llama | Family::Qwen3 => flag("attention_bias")?,
            Family::Mistral | Family::Qwen2 => false,
        };
        let vocab_size = required("vocab_size", 1 << 28)?;
        let hidden_size = size("hidden_size", hidden_size, 1 << 28)?;
        let intermediate_size = required("intermediate_size", 1 << 28)?;
        // Each size may be valid, and the model still too large.
        let heads = 2 * (num_attention_heads + num_key_value_heads) * head_dim;
        let widths = num_hidden_layers * (heads + 3 * intermediate_size) + 2 * vocab_size;
        if widths.checked_mul(hidden_size).is_none_or(|parameters| parameters > MOST_PARAMETERS) {
            let reason =
                "with the other sizes it is a model of more parameters than can be handled";
            return Err(fields.wrong("hidden_size", hidden_size, reason));
        }
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: eps,
            max_position_embeddings,
            rope: RopeConfig::read(&fields, head_dim, max_position_embeddings)?,
            tie_word_embeddings: flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            o_bias: attention_bias,
            mlp_bias: family == Family::Llama && flag("mlp_bias")?,
            windows: windows(&fields, family, num_hidden_layers)?,
            quantized: stored::format(&fields)?.is_some(),
            raw,
        })
    }
}

fn family(fields: &Fields<'_>) -> Result<Family, LlamaError> {
    const KNOWN: &str = "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and \
                         Qwen3ForCausalLM";
    let of_type = |name: &str| match name {
        "llama" => Some(Family::Llama),
        "mistral" => Some(Family::Mistral),
        "qwen2" => Some(Family::Qwen2),
        "qwen3" => Some(Family::Qwen3),
        _ => None,
    };
    let of_class = |name: &str| match name {
        "LlamaForCausalLM" => Some(Family::Llama),
        "MistralForCausalLM" => Some(Family::Mistral),
        "Qwen2ForCausalLM" => Some(Family::Qwen2),
        "Qwen3ForCausalLM" => Some(Family::Qwen3),
        _ => None,
    };
    let classes = fields.get::<Vec<String>>("architectures")?.unwrap_or_default();
    let of_class = classes
        .first()
        .map(|name| {
            // The same decoder with another head.
            let decoder = name.replace("ForSequenceClassification", "ForCausalLM");
            (name, of_class(&decoder))
        })
        .map(|(name, family)| family.ok_or_else(|| fields.wrong("architectures", name, KNOWN)));
    let of_type = fields
        .get::<String>("model_type")?
        .map(|name| of_type(&name).ok_or_else(|| fields.wrong("model_type", name, KNOWN)));
    match (of_class.transpose()?, of_type.transpose()?) {
        (class, Some(family)) => {
            if class.is_some_and(|class| class != family) {
                fields.warn(format_args!(
                    "`architectures` and `model_type` contradict each other: it is loaded as the \
                     latter says, {family:?}"
                ));
            }
            Ok(family)
        }
        (Some(family), None) => Ok(family),
        (None, None) => Err(fields.wrong("architectures", "missing", KNOWN)),
    }
}

/// Sliding window of each layer.
fn windows(
    fields: &Fields<'_>,
    family: Family,
    layers: usize,
) -> Result<Vec<Option<usize>>, LlamaError> {
    let used = match family {
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => fields.get("use_sliding_window")?.unwrap_or(false),
        Family::Llama => false,
    };
    // transformers' default for a missing field; `null` is no window.
    let default = (!fields.has("sliding_window")).then_some(4096);
    let window = fields.get("sliding_window")?.or(default).filter(|_| used);
    if let Some(window) = window.filter(|window| !(1..=1 << 28).contains(window)) {
        return Err(fields.wrong("sliding_window", window, "expected a length from 1, or null"));
    }
    let types = match family {
        Family::Qwen2 | Family::Qwen3 => fields.get::<Vec<String>>("layer_types")?,
        // All layers are alike, whatever stands there.
        Family::Llama | Family::Mistral => None,
    };
    let Some(types) = types else {
        let first = match family {
            Family::Mistral => 0,
            _ => fields.get("max_window_layers")?.unwrap_or(28),
        };
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        let reason = format!("expected one for each of {layers} layers");
        return Err(fields.wrong("layer_types", types.len(), &reason));
    }
    let window_of = |name: &String| match name.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => {
            Err(fields.wrong("layer_types", name, "`sliding_window` does not give its length"))
        }
        _ => Err(fields.wrong("layer_types", name, "only full and sliding attention")),
    };
    types.iter().map(window_of).collect()
}
