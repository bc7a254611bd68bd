//! Models that stay packed when they are saved, as bitsandbytes has them.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, PackedMerge};
use burn_lora_llama::{Llama, SaveOptions};
use burn_lora_quant::{PackedWeight, QuantConfig, codec::Packed};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

fn codes(model: &Llama) -> BTreeMap<String, Packed> {
    let layers = model.layers().into_iter().filter_map(|(path, layer)| {
        let packed = layer.base()?.weight.downcast_ref::<PackedWeight>()?.to_packed().unwrap();
        Some((path, packed))
    });
    layers.collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_packed_model_is_saved_with_its_codes() {
    let device = device();
    for (config, double) in [
        (QuantConfig::nf4().double_quant(true), true),
        (QuantConfig::nf4().block_size(128), false),
        (QuantConfig::fp4(), false),
    ] {
        let loader = Llama::from_pretrained(golden("gqa")).quantize(config).dtype(FloatDType::F32);
        let model = loader.load(&device).unwrap();
        let (tokens, segments, _) = batch("gqa", &device);
        let logits = |model: &Llama| vec(model.forward(tokens.clone(), &segments));
        let out = tempfile::tempdir().unwrap();
        // In many shards, then in one.
        for limit in [20_000, usize::MAX] {
            let options = SaveOptions::new().dtype(FloatDType::F32).packed(true);
            model.save_pretrained(out.path(), &options.max_shard_bytes(limit)).unwrap();
            let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32);
            let again = again.load(&device).unwrap();
            assert_eq!(codes(&again), codes(&model));
            assert_eq!(logits(&again), logits(&model));
        }
        let bytes = fs::metadata(out.path().join("model.safetensors")).unwrap().len();
        let dense = fs::metadata(golden("gqa").join("model.safetensors")).unwrap().len();
        assert!(bytes < dense, "{bytes} bytes, and {dense} of the dense model");
        let settings = json(&out.path().join("config.json"))["quantization_config"].clone();
        assert_eq!(settings["bnb_4bit_use_double_quant"], double);
        assert_eq!(settings["quant_method"], "bitsandbytes");
        assert_eq!(settings["llm_int8_skip_modules"], serde_json::json!(["lm_head"]));

        // Without the option it is dense, and no config says otherwise.
        model.save_pretrained(out.path(), &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
        assert!(json(&out.path().join("config.json")).get("quantization_config").is_none());
        let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32);
        assert!(codes(&again.load(&device).unwrap()).is_empty());
    }
}

#[test]
fn other_formats_are_decoded() {
    let device = device();
    let out = tempfile::tempdir().unwrap();
    let loader = Llama::from_pretrained(golden("gqa")).quantize(QuantConfig::mxfp4());
    let model = loader.dtype(FloatDType::F32).load(&device).unwrap();
    let options = SaveOptions::new().dtype(FloatDType::F32).packed(true);
    model.save_pretrained(out.path(), &options).unwrap();
    assert!(json(&out.path().join("config.json")).get("quantization_config").is_none());
    let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device).unwrap();
    let (tokens, segments, _) = batch("gqa", &device);
    let logits = |model: &Llama| vec(model.forward(tokens.clone(), &segments));
    assert!(difference(&logits(&again), &logits(&model)) < 1e-4);
}

#[test]
fn a_merged_model_stays_packed() {
    let device = device();
    let out = tempfile::tempdir().unwrap();
    let loader = Llama::from_pretrained(golden("llama3")).quantize(QuantConfig::nf4());
    let mut model = loader.dtype(FloatDType::F32).load(&device).unwrap();
    model.load_adapter("default", golden("llama3").join("lora_all")).unwrap();
    let before = codes(&model);
    let report = model.merge_and_unload(PackedMerge::Requantize).unwrap();
    assert!(report.kept < 1.0, "{report}");
    model.save_pretrained(out.path(), &SaveOptions::new().packed(true)).unwrap();
    let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device).unwrap();
    assert_eq!(codes(&again), codes(&model));
    assert_ne!(codes(&again), before);
    // Its head is tied: transformers would pack it if it were not named.
    let settings = json(&out.path().join("config.json"))["quantization_config"].clone();
    assert_eq!(settings["llm_int8_skip_modules"], serde_json::json!(["lm_head"]));
}
