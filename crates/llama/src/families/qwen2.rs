//! Qwen 2 and 2.5: Llama with biases on q, k and v, and a sliding window in some layers.

use super::common::{ConfigDefaults, flag, sliding_layers, window};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
};

#[derive(Debug)]
pub(super) struct Qwen2;

impl ModelFamily for Qwen2 {
    fn model_type(&self) -> &'static str {
        "qwen2"
    }

    fn class(&self) -> &'static str {
        "Qwen2ForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            num_key_value_heads: Some(32),
            max_position_embeddings: 32768,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        // Whatever the file says.
        config.each_layer(|layer| layer.attention.qkv_bias = true);
        set_windows(&mut config, fields)?;
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily::new("qwen2"))
    }
}

/// Sets the sliding windows: of the layers that `layer_types` says, or else of those from
/// `max_window_layers` on.
pub(super) fn set_windows(
    config: &mut LlamaConfig,
    fields: &ConfigFields<'_>,
) -> Result<(), LlamaError> {
    let used = flag(fields, "use_sliding_window", false)?;
    let window = if used { window(fields, Some(4096))? } else { None };
    let first = fields.get("max_window_layers")?.unwrap_or(28);
    let from_first = |layer| layer >= first && window.is_some();
    let sliding = sliding_layers(fields, config.layers.len(), from_first)?;
    if window.is_none() && sliding.contains(&true) {
        let reason = "`sliding_window` does not give its length";
        return Err(fields.wrong("layer_types", "sliding_attention", reason));
    }
    for (layer, sliding) in config.layers.iter_mut().zip(sliding) {
        layer.attention.window = window.filter(|_| sliding);
    }
    Ok(())
}
