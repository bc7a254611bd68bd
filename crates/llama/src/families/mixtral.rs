//! Mixtral: Mistral with experts.

use super::common::{ConfigDefaults, EXPERT_COUNTS, set_experts, window};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    gguf::GgufKeys,
    spec::RouterWeights,
};
use serde_json::{Map, Value};
use std::borrow::Cow;

#[derive(Debug)]
pub(super) struct Mixtral;

/// Names of checkpoints, and those of the model.
const NAMES: [(&str, &str); 4] = [
    (".block_sparse_moe.", ".mlp."),
    (".w1.weight", ".gate_proj.weight"),
    (".w2.weight", ".down_proj.weight"),
    (".w3.weight", ".up_proj.weight"),
];

impl ModelFamily for Mixtral {
    fn model_type(&self) -> &'static str {
        "mixtral"
    }

    fn class(&self) -> &'static str {
        "MixtralForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            vocab_size: Some(32_000),
            hidden_size: Some(4096),
            intermediate_size: Some(14_336),
            num_hidden_layers: Some(32),
            num_attention_heads: Some(32),
            num_key_value_heads: Some(8),
            max_position_embeddings: 4096 * 32,
            rms_norm_eps: 1e-5,
            rope_theta: 1e6,
            reads: &EXPERT_COUNTS,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        let window = window(fields, None)?;
        config.each_layer(|layer| layer.attention.window = window);
        let width = config.layers[0].feed_forward.mlp().intermediate_size;
        let weights = RouterWeights::NormalizedSoftmax;
        set_experts(&mut config, fields, [8, 2], width, weights, |_| true)?;
        Ok(config)
    }

    fn gguf(&self) -> Option<GgufFamily> {
        let fields = |keys: &GgufKeys<'_>, raw: &mut Map<String, Value>| {
            raw.insert("num_local_experts".into(), keys.required("expert_count")?.into());
            raw.insert("num_experts_per_tok".into(), keys.required("expert_used_count")?.into());
            Ok(())
        };
        Some(GgufFamily { permuted: true, experts: true, fields, ..GgufFamily::new("llama") })
    }

    fn tensor_name<'a>(&self, stored: &'a str) -> Option<Cow<'a, str>> {
        let renamed = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
        Some(Cow::Owned(NAMES.iter().fold(stored.to_owned(), renamed)))
    }

    fn stored_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        if !name.contains(".mlp.") {
            return Cow::Borrowed(name);
        }
        let renamed = |name: String, (to, from): &(&str, &str)| name.replace(from, to);
        Cow::Owned(NAMES.iter().fold(name.to_owned(), renamed))
    }
}
