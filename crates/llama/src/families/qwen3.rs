//! Qwen 3: Llama with an RMSNorm on each head of q and k.

use super::{
    common::{ConfigDefaults, flag},
    qwen2::set_windows,
};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
};

#[derive(Debug)]
pub(super) struct Qwen3;

impl ModelFamily for Qwen3 {
    fn model_type(&self) -> &'static str {
        "qwen3"
    }

    fn class(&self) -> &'static str {
        "Qwen3ForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            num_key_value_heads: Some(32),
            head_dim: Some(128),
            max_position_embeddings: 32768,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        set_attention(&mut config, fields)?;
        set_windows(&mut config, fields)?;
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily::new("qwen3"))
    }
}

/// Sets norms of the heads, and the biases.
pub(super) fn set_attention(
    config: &mut LlamaConfig,
    fields: &ConfigFields<'_>,
) -> Result<(), LlamaError> {
    let bias = flag(fields, "attention_bias", false)?;
    config.each_layer(|layer| {
        layer.attention.head_norms = true;
        layer.attention.qkv_bias = bias;
        layer.attention.o_bias = bias;
    });
    Ok(())
}
