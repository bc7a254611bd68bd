//! Facts of a model's folder.

use super::facts::Facts;
use burn_lora::{llama::spec::FeedForwardSpec, prelude::*};
use burn_lora_io::{FileError, TensorHeader, escaped, shards::weight_files, tensor_headers};
use indicatif::HumanCount;
use serde_json::{Value, json};
use std::{error::Error, path::Path};

/// Reads the facts of a model's folder; of one that was `downloaded` the weights need not be there.
pub fn facts(folder: &Path, downloaded: bool) -> Result<Facts, Box<dyn Error>> {
    let mut facts = Facts::new("model");
    let path = folder.join("config.json");
    let raw: Value = match burn_lora_io::read(&path) {
        Ok(json) => {
            serde_json::from_slice(&json).map_err(|error| format!("{}: {error}", path.display()))?
        }
        Err(_) => Value::Null,
    };
    facts.field(&raw, "architectures");
    let config = LlamaConfig::from_file(&path);
    match &config {
        Ok(config) => settings(config, &mut facts),
        Err(_) => stated(&raw, &mut facts),
    }
    facts.add("dtype", raw.get("dtype").or(raw.get("torch_dtype")).cloned().unwrap_or_default());
    if !raw["quantization_config"].is_null() {
        quantization(&raw["quantization_config"], &mut facts);
    }
    let files = weight_files(folder).unwrap_or_default();
    let missing = downloaded && !files.iter().all(|file| file.exists());
    if missing || (downloaded && files.is_empty()) {
        facts.add("weights", "not downloaded");
        facts.tokenizer(folder);
        facts.loads(config.map(drop));
        return Ok(facts);
    }
    match files.iter().map(|file| tensor_headers(file)).collect::<Result<Vec<_>, FileError>>() {
        Ok(tensors) => weights(&tensors.concat(), files.len(), &mut facts),
        Err(error) => facts.warn(&error.to_string()),
    }
    facts.tokenizer(folder);
    facts.loads(Llama::from_pretrained(folder).check().map(drop));
    Ok(facts)
}

fn weights(tensors: &[TensorHeader], files: usize, facts: &mut Facts) {
    if files == 0 {
        return;
    }
    facts.tensors(tensors);
    facts.add("files", files);
    facts.size("bytes", tensors.iter().map(|tensor| tensor.bytes).sum());
}

/// Facts of a configuration that is supported.
pub fn settings(config: &LlamaConfig, facts: &mut Facts) {
    facts.add("family", config.family.model_type());
    let values = |shape: &[usize]| shape.iter().map(|size| *size as u64).product::<u64>();
    facts.count("parameters", config.tensors().iter().map(|tensor| values(&tensor.shape)).sum());
    facts.add("layers", config.layers.len());
    facts.add("hidden_size", config.hidden_size);
    let Some(layer) = config.layers.first() else { return };
    let (attention, feed_forward) = (&layer.attention, &layer.feed_forward);
    facts.add("intermediate_size", feed_forward.mlp().intermediate_size);
    if let FeedForwardSpec::Experts(experts) = feed_forward {
        let (all, chosen) = (experts.num_experts, experts.experts_per_token);
        facts.add_as("experts", all, format!("{all}, of which a token goes through {chosen}"));
    }
    let (heads, of_keys, width) = (attention.num_heads, attention.num_kv_heads, attention.head_dim);
    facts.add_as(
        "heads",
        json!({ "queries": heads, "keys": of_keys, "width": width }),
        format!("{heads}, {of_keys} of keys and values, {width} wide"),
    );
    facts.count("vocabulary", config.vocab_size as u64);
    facts.count("context", config.max_position_embeddings as u64);
    let windows = config.windows();
    if let Some(window) = windows.iter().flatten().next() {
        let (count, all) = (windows.iter().flatten().count(), windows.len());
        let text = format!("{} tokens in {count} of {all} layers", HumanCount(*window as u64));
        facts.add_as("window", *window, text);
    }
    facts.add("tied_embeddings", config.tie_word_embeddings);
}

/// What a configuration says that is not supported.
fn stated(raw: &Value, facts: &mut Facts) {
    // Of a model of several parts, that of text.
    let text = if raw["text_config"].is_object() { &raw["text_config"] } else { raw };
    for (name, field) in [
        ("family", "model_type"),
        ("layers", "num_hidden_layers"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("heads", "num_attention_heads"),
        ("key_heads", "num_key_value_heads"),
        ("vocabulary", "vocab_size"),
        ("context", "max_position_embeddings"),
    ] {
        facts.add(name, text[field].clone());
    }
}

/// How the weights are stored quantized.
fn quantization(settings: &Value, facts: &mut Facts) {
    let method = settings["quant_method"].as_str().unwrap_or("bitsandbytes");
    let on = |name: &str| settings[name] == json!(true);
    let mut text = escaped(method).to_string();
    if on("load_in_4bit") {
        let kind = settings["bnb_4bit_quant_type"].as_str().unwrap_or("fp4");
        let double = if on("bnb_4bit_use_double_quant") { ", double quantization" } else { "" };
        text += &format!(", 4 bits, {}{double}", escaped(kind));
    } else if on("load_in_8bit") {
        text += ", 8 bits";
    } else if let Some(bits) = settings["bits"].as_u64() {
        text += &format!(", {bits} bits");
    }
    facts.add_as("quantization", settings.clone(), text);
}
