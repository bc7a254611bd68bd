//! Qwen 3 with experts in all layers, or in some.

use super::{
    common::{ConfigDefaults, EXPERT_COUNTS, flag, set_experts, window},
    qwen3::set_attention,
};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    gguf::GgufKeys,
    spec::RouterWeights,
};

use serde_json::{Map, Value};

#[derive(Debug)]
pub(super) struct Qwen3Moe;

impl ModelFamily for Qwen3Moe {
    fn model_type(&self) -> &'static str {
        "qwen3_moe"
    }

    fn class(&self) -> &'static str {
        "Qwen3MoeForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            vocab_size: Some(151_936),
            hidden_size: Some(2048),
            intermediate_size: Some(6144),
            num_hidden_layers: Some(24),
            num_attention_heads: Some(32),
            num_key_value_heads: Some(4),
            max_position_embeddings: 32_768,
            reads: &EXPERT_COUNTS,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        set_attention(&mut config, fields)?;
        if flag(fields, "use_sliding_window", false)? {
            let window = window(fields, Some(4096))?;
            config.each_layer(|layer| layer.attention.window = window);
        }
        let width = fields.get("moe_intermediate_size")?.unwrap_or(768);
        if !(1..=1 << 28).contains(&width) {
            return Err(fields.wrong("moe_intermediate_size", width, "expected a size from 1"));
        }
        let dense: Vec<usize> = fields.get("mlp_only_layers")?.unwrap_or_default();
        let step = fields.get("decoder_sparse_step")?.unwrap_or(1);
        if step == 0 {
            return Err(fields.wrong("decoder_sparse_step", step, "expected a number from 1"));
        }
        let weights = match flag(fields, "norm_topk_prob", false)? {
            true => RouterWeights::NormalizedSoftmax,
            false => RouterWeights::Softmax,
        };
        set_experts(&mut config, fields, [128, 8], width, weights, |index: usize| {
            !dense.contains(&index) && (index + 1).is_multiple_of(step)
        })?;
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        let fields = |keys: &GgufKeys<'_>, raw: &mut Map<String, Value>| {
            raw.insert("num_experts".into(), keys.required("expert_count")?.into());
            raw.insert("num_experts_per_tok".into(), keys.required("expert_used_count")?.into());
            let width = keys.required("expert_feed_forward_length")?;
            raw.insert("moe_intermediate_size".into(), width.into());
            // llama.cpp does it always.
            raw.insert("norm_topk_prob".into(), true.into());
            Ok(())
        };
        Some(GgufFamily { experts: true, fields, ..GgufFamily::new("qwen3moe") })
    }
}
