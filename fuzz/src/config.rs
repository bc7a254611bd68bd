//! `config.json`, and the plan of memory that is made from it alone.

use crate::settings;
use burn_lora::prelude::*;
use serde_json::json;
use std::str::from_utf8;

pub(crate) fn run(data: &[u8]) {
    let Ok(Ok(config)) = from_utf8(data).map(LlamaConfig::from_json) else { return };
    for (rope, length) in
        config.ropes.iter().flat_map(|rope| [0, 1, 100_000].map(|length| (rope, length)))
    {
        let (frequencies, _) = rope.frequencies(length);
        assert_eq!(frequencies.len(), rope.dim / 2);
    }
    let _ = config.eos_token_ids();
    let lora = LoraConfig::new(8, 16).all_linear();
    if let Ok(plan) = MemoryPlan::new(&config).quantize(QuantConfig::nf4()).adapter(&lora) {
        let plan = plan.train(&TrainConfig::new(1e-4)).length(512);
        let _ = (plan.to_string(), plan.max_batch(24 << 30), plan.max_length(24 << 30));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, "attention_bias": true,
        "mlp_bias": true, "eos_token_id": [1, 2], "head_dim": 16});
    let yarn = json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.8, "attention_factor": 1.1,
        "original_max_position_embeddings": 64}, "sliding_window": 16, "use_sliding_window": true,
        "max_window_layers": 1, "layer_types": ["full_attention"]});
    let mistral = json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "sliding_window": 8, "rope_scaling": {"type": "linear", "factor": 2.0}});
    let qwen3 = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8,
        "layer_types": ["sliding_attention"], "sliding_window": 4, "use_sliding_window": true,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
    let packed = json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true,
        "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
        "bnb_4bit_compute_dtype": "float32"}, "torch_dtype": "bfloat16"});
    let gemma3 = json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "layer_types": ["sliding_attention"], "query_pre_attn_scalar": 16, "sliding_window": 4,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4}}, "final_logit_softcapping": 30.0});
    let factors = json!([1.0, 2.0, 3.0, 4.0]);
    let phi3 = json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "head_dim": 16,
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16, "rope_scaling":
        {"type": "longrope", "short_factor": factors, "long_factor": factors}});
    [json!({}), llama3, yarn, mistral, qwen3, packed, gemma3, phi3]
        .map(|fields| settings(fields).into())
        .into()
}
