//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused projections, partial rotary positions, LongRoPE.

use super::common::{ConfigDefaults, window};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    gguf::{GgufKeys, LONG_DIVISORS, SHORT_DIVISORS},
    spec::GateUp,
};

use serde_json::{Map, Value, json};

#[derive(Debug)]
pub(super) struct Phi3;

impl ModelFamily for Phi3 {
    fn model_type(&self) -> &'static str {
        "phi3"
    }

    fn class(&self) -> &'static str {
        "Phi3ForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            vocab_size: Some(32_064),
            hidden_size: Some(3072),
            intermediate_size: Some(8192),
            num_hidden_layers: Some(32),
            num_attention_heads: Some(32),
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            original_max_position_embeddings: Some(4096),
            reads: &["partial_rotary_factor"],
            ..ConfigDefaults::default()
        };
        // Dropout of a block's output, which no model of the family has.
        fields.equals("resid_pdrop", 0.0)?;
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        let window = window(fields, None)?;
        config.each_layer(|layer| {
            layer.attention.fused = true;
            layer.attention.window = window;
            layer.feed_forward.mlp_mut().gate_up = GateUp::Fused;
        });
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily {
            partial_rotary: true,
            modules: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
            extra: &[LONG_DIVISORS, SHORT_DIVISORS],
            fields: gguf_fields,
            ..GgufFamily::new("phi3")
        })
    }
}

/// Fields that llama.cpp has under other names, and LongRoPE's factors, which are tensors there.
fn gguf_fields(keys: &GgufKeys<'_>, raw: &mut Map<String, Value>) -> Result<(), LlamaError> {
    let window = keys.integer("attention.sliding_window")?.filter(|window| *window > 0);
    raw.insert("sliding_window".into(), window.map_or(Value::Null, Value::from));
    let original = keys.integer("rope.scaling.original_context_length")?;
    if let Some(original) = original {
        raw.insert("original_max_position_embeddings".into(), original.into());
    }
    if let (Some(long), Some(short)) = (keys.floats(LONG_DIVISORS)?, keys.floats(SHORT_DIVISORS)?) {
        let mut scaling =
            json!({ "rope_type": "longrope", "long_factor": long, "short_factor": short });
        if let Some(factor) = keys.number("rope.scaling.attn_factor")? {
            scaling["attention_factor"] = factor.into();
        }
        raw.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}
