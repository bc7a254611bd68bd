//! gpt-oss: experts in all layers, attention with sinks, a window in every second layer.

use super::common::{ConfigDefaults, EXPERT_COUNTS, flag, set_experts, sliding_layers, window};
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    fields::ConfigFields,
    gguf::GgufKeys,
    rope::RopeScaling,
    spec::{FeedForwardSpec, GateUp, RouterSpec, RouterWeights},
};
use burn_lora_kernels::Activation;
use serde_json::{Map, Value};

#[derive(Debug)]
pub(super) struct GptOss;

impl ModelFamily for GptOss {
    fn model_type(&self) -> &'static str {
        "gpt_oss"
    }

    fn class(&self) -> &'static str {
        "GptOssForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let defaults = ConfigDefaults {
            vocab_size: Some(201_088),
            hidden_size: Some(2880),
            intermediate_size: Some(2880),
            num_hidden_layers: Some(36),
            num_attention_heads: Some(64),
            num_key_value_heads: Some(8),
            head_dim: Some(64),
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            rope_theta: 150_000.0,
            reads: &EXPERT_COUNTS,
            ..ConfigDefaults::default()
        };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        if !fields.has("rope_parameters") && !fields.has("rope_scaling") {
            config.ropes[0].scaling = YARN;
        }
        set_attention(&mut config, fields)?;

        let weights = RouterWeights::SoftmaxOfChosen;
        let width = config.layers[0].feed_forward.mlp().intermediate_size;
        set_experts(&mut config, fields, [128, 4], width, weights, |_| true)?;
        // Of the activation; `hidden_act` is not read.
        fields.equals("swiglu_alpha", 1.702)?;
        let limit = fields.positive("swiglu_limit")?.unwrap_or(7.0);
        config.each_layer(|layer| {
            let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward else {
                unreachable!("all layers have experts")
            };
            experts.router = RouterSpec { name: "router", bias: true, weights };
            experts.mlp.gate_up = GateUp::Interleaved;
            experts.mlp.bias = true;
            experts.mlp.activation = Activation::QuickGelu;
            experts.mlp.limit = Some(limit);
        });
        Ok(config)
    }

    fn stacked_experts(&self) -> bool {
        true
    }

    fn gguf(&self) -> Option<GgufFamily> {
        Some(GgufFamily {
            experts: true,
            modules: &[
                ("post_attention_norm", "post_attention_layernorm"),
                ("ffn_gate_inp", "mlp.router"),
            ],
            parameters: &[("attn_sinks", "self_attn.sinks")],
            fields: gguf_fields,
            ..GgufFamily::new("gpt-oss")
        })
    }
}

/// Fields that llama.cpp has under other names, and those that all models of the family have alike.
fn gguf_fields(keys: &GgufKeys<'_>, raw: &mut Map<String, Value>) -> Result<(), LlamaError> {
    raw.insert("num_local_experts".into(), keys.required("expert_count")?.into());
    raw.insert("num_experts_per_tok".into(), keys.required("expert_used_count")?.into());
    raw.insert("sliding_window".into(), keys.required("attention.sliding_window")?.into());
    if let Some(Value::Object(scaling)) = raw.get_mut("rope_scaling") {
        scaling.insert("truncate".into(), false.into());
    }
    Ok(())
}

/// Scaling of rotary positions where `config.json` has none.
const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 32.0,
    original: 4096.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: false,
    attention_factor: None,
    mscale: None,
    mscale_all_dim: None,
};

/// Sets sinks, biases and windows.
fn set_attention(config: &mut LlamaConfig, fields: &ConfigFields<'_>) -> Result<(), LlamaError> {
    let bias = flag(fields, "attention_bias", true)?;
    let window = window(fields, Some(128))?;
    let count = config.layers.len();
    let sliding = sliding_layers(fields, count, |layer| layer % 2 == 0)?;
    for (layer, sliding) in config.layers.iter_mut().zip(sliding) {
        layer.attention.sinks = true;
        layer.attention.qkv_bias = bias;
        layer.attention.o_bias = bias;
        layer.attention.window = window.filter(|_| sliding);
    }
    Ok(())
}
