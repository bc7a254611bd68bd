//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused projections, partial rotary positions, LongRoPE.

use super::common::{ConfigDefaults, window};
use crate::{
    config::{LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    spec::GateUp,
};

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
}
