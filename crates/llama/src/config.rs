//! Model configuration, and the interface of model families.

use crate::{
    error::LlamaError, fields::ConfigFields, gguf::GgufKeys, rope::RopeConfig, spec::LayerSpec,
    weights::stored,
};
use burn::tensor::DType;
use burn_lora_kernels::NormSpec;
use burn_lora_quant::StorageFormat;
use serde_json::{Map, Value};
use std::{borrow::Cow, fmt, path::Path, sync::Arc};

/// Family of models: reads `config.json` into the specification of a decoder, and knows the names
/// of its tensors. `docs/extending.md` shows a family of one's own.
pub trait ModelFamily: fmt::Debug + Sync {
    /// `model_type` in `config.json`: `llama`.
    fn model_type(&self) -> &'static str;

    /// Class in `architectures` of `config.json`: `LlamaForCausalLM`.
    fn class(&self) -> &'static str;

    /// Reads the fields of `config.json`. [`LlamaConfig::uniform`] reads those that most families
    /// have.
    ///
    /// # Errors
    /// [`LlamaError::Field`] if a field is missing, or its value is malformed or not supported.
    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError>;

    /// Returns the name in the model of a tensor of a checkpoint: its path in the model and
    /// `weight` or `bias`. `None` if the tensor is of another part, such as a vision tower, and is
    /// passed over.
    fn tensor_name<'a>(&self, stored: &'a str) -> Option<Cow<'a, str>> {
        Some(Cow::Borrowed(stored))
    }

    /// Returns the name in a checkpoint of a tensor of the model: the inverse of
    /// [`tensor_name`](Self::tensor_name).
    fn stored_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(name)
    }

    /// `true` if checkpoints have the weights of all experts in one tensor: `experts.down_proj`,
    /// `[experts, in, out]`, and `experts.down_proj_bias`, `[experts, out]`, which an expert of the
    /// model has as `experts.3.down_proj.weight` and `.bias`.
    fn stacked_experts(&self) -> bool {
        false
    }

    /// Names and metadata of the family in llama.cpp's files, if it has them.
    fn gguf(&self) -> Option<GgufFamily> {
        None
    }
}

impl PartialEq for dyn ModelFamily {
    fn eq(&self, other: &Self) -> bool {
        self.model_type() == other.model_type()
    }
}

/// A family in llama.cpp's files (GGUF).
#[derive(Clone, Copy)]
pub struct GgufFamily {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `true` if it has experts: one architecture may be a family with, and one without.
    pub experts: bool,
    /// `true` if the rows of q and k are permuted, so that rotated values are neighbours (Llama).
    pub permuted: bool,
    /// `true` if a part of each head is rotated: `rope.dimension_count` says how much.
    pub partial_rotary: bool,
    /// Number that the weights of norms have been raised by (Gemma: 1).
    pub norm_offset: f32,
    /// Modules of a layer that have another name than in most files: pairs of llama.cpp's name and
    /// the path in the layer.
    pub modules: &'static [(&'static str, &'static str)],
    /// Parameters of a layer by themselves, in the files with `.weight` after their names: pairs as of
    /// `modules`.
    pub parameters: &'static [(&'static str, &'static str)],
    /// Tensors that are read as metadata, and are no parameters.
    pub extra: &'static [&'static str],
    /// Adds the fields of `config.json` that only this family has.
    pub fields: fn(&GgufKeys<'_>, &mut Map<String, Value>) -> Result<(), LlamaError>,
}

impl GgufFamily {
    /// Creates a family whose tensors are called and stored as llama.cpp does it for most.
    pub const fn new(architecture: &'static str) -> Self {
        Self {
            architecture,
            experts: false,
            permuted: false,
            partial_rotary: false,
            norm_offset: 0.0,
            modules: &[],
            parameters: &[],
            extra: &[],
            fields: |_, _| Ok(()),
        }
    }
}

/// Configuration of a model: the specification of its decoder, from `config.json`.
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
/// assert_eq!((config.layers.len(), config.layers[0].attention.head_dim), (32, 128));
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Model family.
    pub family: &'static dyn ModelFamily,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Context length that the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Decoder layers.
    pub layers: Vec<LayerSpec>,
    /// Rotary position embeddings, each used by the layers that name its index.
    pub ropes: Vec<RopeConfig>,
    /// RMSNorm.
    pub norm: NormSpec,
    /// Factor of the embeddings (Gemma, Granite); 1 in most families.
    pub embedding_multiplier: f64,
    /// Divisor of the logits (Granite); 1 in most families.
    pub logits_scaling: f64,
    /// Soft cap of the logits, `cap · tanh(logits / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// `true` if the output head shares the embedding's weight (tied embeddings).
    pub tie_word_embeddings: bool,
    /// `true` if `quantization_config` declares quantized weights: see
    /// [`stored_format`](Self::stored_format).
    pub quantized: bool,
    /// The whole file, for readers of other fields.
    pub raw: Value,
}

impl LlamaConfig {
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
        let fields = ConfigFields::new(Path::new("config.json"), &self.raw).ok()?;
        stored::format(&fields).ok()?
    }

    /// Returns `true` if the checkpoint has the linear layer at a path in
    /// [`stored_format`](Self::stored_format): if it has one, and `modules_to_not_convert` does not
    /// name the layer or a module around it.
    pub fn is_stored_quantized(&self, path: &str) -> bool {
        let others = &self.raw["quantization_config"]["modules_to_not_convert"];
        let covers = |pattern: &str| {
            let mut parts = path.split('.');
            pattern.split('.').all(|name| parts.next().is_some_and(|p| name == "*" || name == p))
        };
        let mut others = others.as_array().into_iter().flatten().filter_map(Value::as_str);
        self.quantized && !others.any(covers)
    }

    /// Returns `true` if samples of a row may [share](crate::Segments::sharing) tokens: no layer has a window.
    pub fn shares_prompts(&self) -> bool {
        self.windows().iter().all(Option::is_none)
    }

    /// Sliding window of each layer.
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.attention.window).collect()
    }

    /// Sets the size of the vocabulary, also in what is saved as `config.json`.
    pub(crate) fn set_vocab_size(&mut self, tokens: usize) {
        self.vocab_size = tokens;
        let nested = self.raw.get("text_config").is_some_and(Value::is_object);
        let fields = if nested { &mut self.raw["text_config"] } else { &mut self.raw };
        if let Value::Object(fields) = fields {
            fields.insert("vocab_size".into(), tokens.into());
        }
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
}
