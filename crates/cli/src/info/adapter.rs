//! Facts of an adapter's folder.

use super::facts::Facts;
use burn_lora::adapter::saved_method;
use burn_lora_io::{FileError, tensor_headers};
use serde_json::{Value, json};
use std::{error::Error, io::ErrorKind, path::Path};

/// Files of the tensors, in PEFT's order.
const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Settings that are shown under PEFT's names, if they are on.
const SETTINGS: [&str; 16] = [
    "use_dora",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "bias",
    "init_lora_weights",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "peft_version",
];

/// Reads the facts of an adapter's folder.
pub fn facts(folder: &Path) -> Result<Facts, Box<dyn Error>> {
    let mut facts = Facts::new("adapter");
    let path = folder.join("adapter_config.json");
    let json = burn_lora_io::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let raw: Value =
        serde_json::from_slice(&json).map_err(|error| format!("{}: {error}", path.display()))?;
    let kind = raw["peft_type"].as_str().unwrap_or("LORA");
    facts.add("method", kind);
    facts.add("rank", raw["r"].clone());
    if kind == "LORA" {
        facts.add("alpha", raw["lora_alpha"].clone());
        facts.add("dropout", raw["lora_dropout"].clone());
        scale(&raw, &mut facts);
    }
    SETTINGS.iter().for_each(|name| facts.field(&raw, name));
    let new_tokens = match &raw["trainable_token_indices"] {
        Value::Array(tokens) => tokens.len(),
        Value::Object(layers) => layers.values().filter_map(Value::as_array).map(Vec::len).sum(),
        _ => 0,
    };
    if new_tokens > 0 {
        facts.add("trained_tokens", new_tokens);
    }
    let tensors = TENSORS.iter().map(|name| folder.join(name)).find(|path| path.exists());
    let tensors = match &tensors {
        Some(path) => tensor_headers(path),
        None => {
            Err(FileError::Io { path: folder.join(TENSORS[0]), source: ErrorKind::NotFound.into() })
        }
    };
    if let Ok(tensors) = &tensors {
        // VeRA's random matrices are not trained, and parts of the base are not the adapter's.
        let frozen = [".base_layer.", "original_module.", "base_model.vera_"];
        let trained =
            tensors.iter().filter(|tensor| !frozen.iter().any(|part| tensor.name.contains(part)));
        facts.count("parameters", trained.map(|tensor| tensor.values()).sum());
        facts.tensors(tensors);
        facts.size("bytes", tensors.iter().map(|tensor| tensor.bytes).sum());
    }
    if ["tokenizer.json", "tokenizer.model"].iter().any(|name| folder.join(name).is_file()) {
        facts.tokenizer(folder);
    }
    match (saved_method(folder), tensors) {
        (Err(error), _) => facts.loads(Err(error)),
        (Ok(_), tensors) => facts.loads(tensors.map(drop)),
    }
    Ok(facts)
}

/// Factor of the update: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
fn scale(raw: &Value, facts: &mut Facts) {
    let stabilized = raw["use_rslora"] == json!(true);
    facts.add("rslora", stabilized);
    let (Some(rank), Some(alpha)) = (raw["r"].as_f64(), raw["lora_alpha"].as_f64()) else { return };
    if rank > 0.0 {
        let scale = alpha / if stabilized { rank.sqrt() } else { rank };
        facts.add_as("scale", scale, format!("{}", (scale * 1e4).round() / 1e4));
    }
}
