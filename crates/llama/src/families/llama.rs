//! Llama 1 to 3.3, and models published as Llama (TinyLlama, SmolLM2).

use super::common::{ConfigDefaults, flag};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
};

#[derive(Debug)]
pub(super) struct Llama;

impl ModelFamily for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn class(&self) -> &'static str {
        "LlamaForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let mut config = LlamaConfig::uniform(self, fields, &ConfigDefaults::default())?;
        let (attention_bias, mlp_bias) =
            (flag(fields, "attention_bias", false)?, flag(fields, "mlp_bias", false)?);
        config.each_layer(|layer| {
            layer.attention.qkv_bias = attention_bias;
            layer.attention.o_bias = attention_bias;
            layer.feed_forward.mlp_mut().bias = mlp_bias;
        });
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily { permuted: true, ..GgufFamily::new("llama") })
    }
}
