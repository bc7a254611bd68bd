//! Mistral: Llama with a sliding window.

use super::common::{ConfigDefaults, window};
use crate::{
    config::{LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
};

#[derive(Debug)]
pub(super) struct Mistral;

impl ModelFamily for Mistral {
    fn model_type(&self) -> &'static str {
        "mistral"
    }

    fn class(&self) -> &'static str {
        "MistralForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            num_key_value_heads: Some(8),
            max_position_embeddings: 4096 * 32,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        let window = window(fields, Some(4096))?;
        config.each_layer(|layer| layer.attention.window = window);
        Ok(config)
    }
}
