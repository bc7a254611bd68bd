//! Adapters for vLLM. Its own code reads them in `scripts/vllm_adapters.py`; here are its rules.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{AdaptableExt, Init, LoraConfig};
use burn_lora_llama::Llama;
use safetensors::SafeTensors;
use serde_json::Value;
use std::{fs, path::Path};

fn load(variant: &str, lora: &LoraConfig) -> Llama {
    let loader = Llama::from_pretrained(golden(variant)).dtype(FloatDType::F32);
    let mut model = loader.load(&device()).unwrap();
    model.add_adapter("default", lora).unwrap();
    model
}

fn lora(rank: usize, targets: &[&str]) -> LoraConfig {
    LoraConfig::new(rank, 2 * rank).targets(targets.iter().copied())
}

/// Layers of an exported folder, by the rules of vLLM 0.33.0: `parse_fine_tuned_lora_name` (`vllm/lora/utils.py`),
/// `check_unexpected_modules` (`lora_model.py`) and `validate_legal` (`peft_helper.py`).
fn read(folder: &Path, most: usize, layers: &[&str]) -> Vec<String> {
    let settings = fs::read(folder.join("adapter_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    for field in ["r", "lora_alpha", "target_modules"] {
        assert!(!settings[field].is_null(), "{field}");
    }
    assert!(settings["r"].as_u64().unwrap() as usize <= most);
    assert_eq!(settings["bias"], "none");
    let init = &settings["init_lora_weights"];
    assert!(
        !init.is_string() || ["gaussian", "eva", "orthogonal"].contains(&init.as_str().unwrap())
    );
    let unset = |field: &str| match &settings[field] {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    for field in [
        "modules_to_save",
        "use_dora",
        "lora_bias",
        "alora_invocation_tokens",
        "layer_replication",
        "use_qalora",
    ] {
        assert!(unset(field), "{field}: {}", settings[field]);
    }
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let mut found = vec![];
    for name in SafeTensors::deserialize(&bytes).unwrap().names() {
        let name = name.strip_prefix("base_model.model.").expect(name);
        let name = name.strip_suffix(".weight").expect(name);
        let (module, part) = name.rsplit_once('.').unwrap();
        assert!(["lora_A", "lora_B"].contains(&part), "{name}");
        let last = module.rsplit('.').next().unwrap();
        assert!(layers.contains(&last) && !module.contains(".experts"), "{name}");
        found.push(module.to_owned());
    }
    found.sort();
    found.dedup();
    found
}

/// Layers of vLLM's classes: their `packed_modules_mapping`, `o_proj`, `down_proj`, and `embedding_modules`.
const SEPARATE: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj", "down_proj"];

#[test]
fn vllm_takes_what_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let linear = ["q_proj", "v_proj", "o_proj", "down_proj"];
    let odd = lora(4, &linear)
        .rslora(true)
        .rank_pattern([("q_proj", 12)])
        .alpha_pattern([("v_proj", 3.0)]);
    let pissa = lora(4, &linear).init(Init::Pissa);
    for (variant, lora, most, layers) in [
        ("gqa", odd, 16, SEPARATE.to_vec()),
        ("gqa", pissa, 8, SEPARATE.to_vec()),
        ("gqa", lora(1, &["lm_head", "q_proj"]), 1, [&SEPARATE[..], &["lm_head"]].concat()),
        ("families/qwen2", lora(33, &["gate_proj", "up_proj"]), 64, SEPARATE.to_vec()),
        (
            "decoders/phi3",
            lora(300, &["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]),
            320,
            vec!["qkv_proj", "gate_up_proj", "o_proj", "down_proj"],
        ),
        ("decoders/gpt_oss", lora(8, &["q_proj", "o_proj"]), 8, SEPARATE.to_vec()),
    ] {
        let model = load(variant, &lora);
        assert_eq!(model.export_adapter_for_vllm("default", &out).unwrap(), most, "{variant}");
        assert!(read(&out, most, &layers).len() > 1, "{variant}");
    }
}

#[test]
fn what_vllm_refuses_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (variant, lora, part) in [
        (
            "families/mistral",
            lora(2, &["lm_head"]),
            "`lm_head`, which vLLM's LoRA has not for mistral",
        ),
        ("families/qwen2", lora(2, &["lm_head"]), "for qwen2"),
        ("decoders/gpt_oss", lora(2, &["lm_head"]), "for gpt_oss"),
        ("gqa", lora(513, &["q_proj"]), "rank 513, and vLLM loads up to 512"),
        ("gqa", lora(2, &["q_proj"]).dora(true), "DoRA"),
        ("gqa", lora(2, &["embed_tokens"]), "`model.embed_tokens` is an embedding"),
        (
            "decoders/mixtral",
            lora(2, &["q_proj"]).target_parameters(["mlp.experts.down_proj"]),
            "is of an expert",
        ),
        (
            "gqa",
            lora(2, &["q_proj"]).modules_to_save(["norm"]),
            "it trains `model.layers.0.input_layernorm` whole",
        ),
    ] {
        let model = load(variant, &lora);
        let error = model.export_adapter_for_vllm("default", &out).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("merge it instead"), "{variant}: {error}");
        assert!(!out.exists(), "{variant}");
    }
}
