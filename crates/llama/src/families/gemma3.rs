//! Gemma 3: norms around each block, two rotary tables, layers with a sliding window.

use super::common::{ConfigDefaults, flag, sliding_layers, window};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    gguf::GgufKeys,
    rope::{RopeConfig, RopeScaling},
    spec::NormPlacement,
};
use burn_lora_kernels::Activation;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Gemma 3, text only.
#[derive(Debug)]
pub(super) struct Gemma3;

/// Gemma 3 with a vision tower, of which the language model is read.
#[derive(Debug)]
pub(super) struct Gemma3Multimodal;

/// Index of the rotary table of layers that see all keys, and of those with a window.
const FULL: usize = 0;
const SLIDING: usize = 1;

impl ModelFamily for Gemma3 {
    fn model_type(&self) -> &'static str {
        "gemma3_text"
    }

    fn class(&self) -> &'static str {
        "Gemma3ForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            vocab_size: Some(262_208),
            hidden_size: Some(2304),
            intermediate_size: Some(9216),
            num_hidden_layers: Some(26),
            num_attention_heads: Some(8),
            num_key_value_heads: Some(4),
            head_dim: Some(256),
            max_position_embeddings: 131_072,
            tie_word_embeddings: true,
            activation_field: "hidden_activation",
            activation: Activation::GeluTanh,
            reads: &["final_logit_softcapping", "rope_parameters"],
            ..ConfigDefaults::default()
        };
        fields.equals("use_bidirectional_attention", false)?;
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        config.norm.offset = 1.0;
        config.embedding_multiplier = (config.hidden_size as f64).sqrt();
        config.final_logit_softcapping = fields.positive("final_logit_softcapping")?;
        let attention_bias = flag(fields, "attention_bias", false)?;
        let scalar = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
        let window = window(fields, Some(4096))?;
        let count = config.layers.len();
        let pattern = fields.get("sliding_window_pattern")?.unwrap_or(6).max(1);
        let by_pattern = |layer: usize| !(layer + 1).is_multiple_of(pattern);
        let sliding = sliding_layers(fields, count, by_pattern)?;
        for (layer, sliding) in config.layers.iter_mut().zip(sliding) {
            layer.norms = NormPlacement::Around;
            let attention = &mut layer.attention;
            attention.scale = scalar.powf(-0.5) as f32;
            attention.head_norms = true;
            attention.qkv_bias = attention_bias;
            attention.o_bias = attention_bias;
            attention.window = window.filter(|_| sliding);
            attention.rope = if sliding { SLIDING } else { FULL };
        }
        let head_dim = config.layers[0].attention.head_dim;
        config.ropes = ropes(fields, head_dim, config.max_position_embeddings)?;
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily {
            norm_offset: 1.0,
            modules: &[
                ("post_attention_norm", "post_attention_layernorm"),
                ("ffn_norm", "pre_feedforward_layernorm"),
                ("post_ffw_norm", "post_feedforward_layernorm"),
            ],
            fields: gguf_fields,
            ..GgufFamily::new("gemma3")
        })
    }

    fn tensor_name<'a>(&self, stored: &'a str) -> Option<Cow<'a, str>> {
        // Of models with a vision tower: names of several versions of transformers.
        let vision = ["vision_tower.", "multi_modal_projector."];
        let bare = stored.strip_prefix("model.").unwrap_or(stored);
        if vision.into_iter().any(|part| bare.starts_with(part)) {
            return None;
        }
        let text = ["model.language_model.", "language_model.model."];
        let text = text.into_iter().find_map(|prefix| stored.strip_prefix(prefix));
        match (text, stored.strip_prefix("language_model.lm_head.")) {
            (Some(name), _) => Some(Cow::Owned(format!("model.{name}"))),
            (None, Some(name)) => Some(Cow::Owned(format!("lm_head.{name}"))),
            (None, None) => Some(Cow::Borrowed(stored)),
        }
    }
}

impl ModelFamily for Gemma3Multimodal {
    fn model_type(&self) -> &'static str {
        "gemma3"
    }

    fn class(&self) -> &'static str {
        "Gemma3ForConditionalGeneration"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let missing = || fields.wrong("text_config", "missing", "the model needs it");
        // What is saved is the language model alone.
        Gemma3.config(&fields.object("text_config")?.ok_or_else(missing)?)
    }
}

/// Fields that llama.cpp has under other names, or in its code.
fn gguf_fields(keys: &GgufKeys<'_>, raw: &mut Map<String, Value>) -> Result<(), LlamaError> {
    let [hidden, heads] =
        ["embedding_length", "attention.head_count"].map(|key| keys.required(key));
    let (hidden, heads) = (hidden?, heads?);
    let head_dim = keys.integer("attention.key_length")?.unwrap_or(hidden / heads.max(1));
    // That of the model with 27 billion parameters, which has 62 layers, is the mean width.
    let scalar = if keys.required("block_count")? == 62 { hidden / heads.max(1) } else { head_dim };
    raw.remove("hidden_act");
    raw.insert("query_pre_attn_scalar".into(), scalar.into());
    raw.insert("sliding_window_pattern".into(), 6.into());
    let window = keys.integer("attention.sliding_window")?;
    raw.insert("sliding_window".into(), window.map_or(Value::Null, Value::from));
    if let Some(theta) = keys.number("rope.freq_base_swa")? {
        raw.insert("rope_local_base_freq".into(), theta.into());
    }
    if let Some(cap) = keys.number("final_logit_softcapping")? {
        raw.insert("final_logit_softcapping".into(), cap.into());
    }
    Ok(())
}

/// Reads the two rotary tables: newer files have the parameters of each type of layer.
fn ropes(
    fields: &ConfigFields<'_>,
    head_dim: usize,
    max_positions: usize,
) -> Result<Vec<RopeConfig>, LlamaError> {
    let rope =
        |theta| RopeConfig { theta, dim: head_dim, max_positions, scaling: RopeScaling::Default };
    let newer = fields.object("rope_parameters")?;
    let by_type =
        newer.filter(|newer| newer.has("full_attention") || newer.has("sliding_attention"));
    if let Some(by_type) = by_type {
        let read = |name: &str, theta| {
            let parameters = by_type.object(name)?;
            let given = parameters.as_ref().map(|fields| fields.positive("rope_theta"));
            let theta = given.transpose()?.flatten().unwrap_or(theta);
            rope(theta).with_parameters(fields, "rope_parameters", parameters.as_ref(), None)
        };
        return Ok(vec![read("full_attention", 1e6)?, read("sliding_attention", 1e4)?]);
    }
    let full = fields.positive("rope_theta")?.unwrap_or(1e6);
    let local = fields.positive("rope_local_base_freq")?.unwrap_or(1e4);
    let scaling = fields.object("rope_scaling")?;
    Ok(vec![
        rope(full).with_parameters(fields, "rope_scaling", scaling.as_ref(), None)?,
        rope(local),
    ])
}
