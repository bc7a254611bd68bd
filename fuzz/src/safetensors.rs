//! The folder of a model: `config.json`, an index, and a file of tensors.

use crate::{files, folder, input, model, read, settings};
use burn_lora::prelude::*;
use serde_json::json;

pub(crate) fn run(data: &[u8]) {
    let [config, index, tensors] = files(data);
    // With an index the tensors are those of a shard.
    let name = if index.is_empty() { "model.safetensors" } else { "a.safetensors" };
    let folder = folder(
        "model",
        &[("config.json", config), ("model.safetensors.index.json", index), (name, tensors)],
    );
    let loader = Llama::from_pretrained(&folder);
    let loader =
        if data.len().is_multiple_of(2) { loader.quantize(QuantConfig::nf4()) } else { loader };
    let _ = loader.load(&Device::flex());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let small = json!({"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8});
    let untied = json!({"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8,
        "attention_bias": true, "tie_word_embeddings": false});
    let mut all = vec![];
    for fields in [small.clone(), untied] {
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let folder = folder("saved", &[]);
            let saved = model(fields.clone());
            saved.save_pretrained(&folder, &SaveOptions::new().dtype(dtype)).unwrap();
            let tensors = read(&folder, "model.safetensors");
            all.push(input([settings(fields.clone()).into_bytes(), vec![], tensors.clone()]));
            let length = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
            let header: serde_json::Value = serde_json::from_slice(&tensors[8..length]).unwrap();
            let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
            let map: serde_json::Map<_, _> =
                names.map(|name| (name.clone(), "a.safetensors".into())).collect();
            let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
            all.push(input([settings(fields.clone()).into_bytes(), index.into_bytes(), tensors]));
        }
    }
    all
}
