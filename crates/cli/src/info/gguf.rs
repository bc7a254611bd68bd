//! Facts of a GGUF file.

use super::{facts::Facts, model};
use burn_lora::prelude::{Llama, LlamaError};
use burn_lora_io::gguf::{Gguf, TensorInfo, Value};
use serde_json::Value as Json;
use std::{error::Error, fs, path::Path};

/// Reads the facts of a GGUF file.
pub fn facts(path: &Path) -> Result<Facts, Box<dyn Error>> {
    let mut facts = Facts::new("GGUF file");
    let gguf = match Gguf::open(path) {
        Ok(gguf) => gguf,
        Err(error) => {
            facts.loads(Err(error));
            return Ok(facts);
        }
    };
    let text = |key: &str| gguf.get(key).map_or(Json::Null, json);
    let architecture = gguf.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    facts.add("architecture", text("general.architecture"));
    for (name, key) in [
        ("type", "general.type"),
        ("name", "general.name"),
        ("author", "general.author"),
        ("license", "general.license"),
        ("base_model", "general.base_model.0.repo_url"),
        ("quantized_by", "general.quantized_by"),
        ("file_type", "general.file_type"),
        ("adapter_type", "adapter.type"),
        ("adapter_alpha", "adapter.lora.alpha"),
    ] {
        facts.add(name, text(key));
    }
    let loader = Llama::from_pretrained(path);
    let is_adapter = gguf.get("general.type").and_then(Value::as_str) == Some("adapter");
    let loaded = loader.check();
    match &loaded {
        Ok(config) => model::settings(config, &mut facts),
        Err(_) => {
            facts.count("parameters", gguf.tensors().values().map(values).sum());
            for (name, key) in [
                ("layers", "block_count"),
                ("hidden_size", "embedding_length"),
                ("intermediate_size", "feed_forward_length"),
                ("experts", "expert_count"),
                ("heads", "attention.head_count"),
                ("key_heads", "attention.head_count_kv"),
                ("context", "context_length"),
            ] {
                facts.add(name, text(&format!("{architecture}.{key}")));
            }
        }
    }
    let tensors = gguf.tensors().values();
    facts.types(tensors.map(|tensor| (tensor.type_name(), values(tensor), tensor.bytes() as u64)));
    facts.size("bytes", fs::metadata(path).map_or(0, |metadata| metadata.len()));
    for (name, key) in
        [("tokenizer_model", "tokenizer.ggml.model"), ("pre_tokenizer", "tokenizer.ggml.pre")]
    {
        facts.add(name, text(key));
    }
    if !is_adapter {
        facts.tokenizer(path);
    }
    facts.loads(match loaded {
        _ if is_adapter => {
            let reason = "it is an adapter for llama.cpp: load the folder of PEFT's files that it was made from".into();
            Err(LlamaError::Format { path: path.into(), reason })
        }
        loaded => loaded.map(drop),
    });
    Ok(facts)
}

fn values(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().fold(1, |product: u64, size| product.saturating_mul(*size as u64))
}

/// A value of the metadata; of an array its length would say little.
fn json(value: &Value) -> Json {
    match value {
        Value::String(text) => text.clone().into(),
        Value::U64(number) => (*number).into(),
        Value::I64(number) => (*number).into(),
        Value::F32(number) => f64::from(*number).into(),
        Value::F64(number) => (*number).into(),
        Value::Bool(value) => (*value).into(),
        Value::Strings(texts) => texts.iter().take(8).cloned().collect::<Vec<_>>().into(),
        Value::F32s(_) | Value::Ints(..) | Value::Nested => Json::Null,
    }
}
