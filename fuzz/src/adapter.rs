//! An adapter in PEFT's files, onto a small model: loaded, written, merged.

use crate::{files, folder, input, model, read};
use burn_lora::prelude::*;
use serde_json::json;
use std::sync::LazyLock;

fn base() -> Llama {
    static MODEL: LazyLock<Llama> = LazyLock::new(|| {
        model(json!({"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8,
            "attention_bias": true, "tie_word_embeddings": false}))
    });
    MODEL.clone()
}

pub(crate) fn run(data: &[u8]) {
    let [config, tensors] = files(data);
    let folder = folder(
        "adapter",
        &[("adapter_config.json", config), ("adapter_model.safetensors", tensors)],
    );
    let mut model = base();
    if model.load_adapter("default", &folder).is_ok() {
        let _ = model.save_adapter("default", folder.join("written"));
        let _ = model.export_adapter("default", folder.join("plain"));
        let _ = model.merge_and_unload(PackedMerge::Dense(FloatDType::F32));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let lora = LoraConfig::new(2, 4);
    let all = [
        lora.clone().all_linear(),
        lora.clone().targets(["q_proj", "down_proj"]).dora(true).rslora(true),
        lora.clone().targets(["v_proj"]).modules_to_save(["lm_head"]).bias(Bias::LoraOnly),
        lora.clone().all_linear().init(Init::Pissa),
        lora.targets(["embed_tokens", "k_proj"]),
    ];
    let seed = |lora: LoraConfig| {
        let mut model = base();
        model.add_adapter("default", &lora).unwrap();
        let folder = folder("written", &[]);
        model.save_adapter_as_is("default", &folder).unwrap();
        let config = read(&folder, "adapter_config.json");
        input([config, read(&folder, "adapter_model.safetensors")])
    };
    all.map(seed).into()
}
