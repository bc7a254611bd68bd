//! Adapters for `peft_check.py`, which loads them in Python: `PEFT_CHECK=FOLDER` says where to.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{
    Adaptable, AdaptableExt, AdaptedLayer, Combine, Init, LoraConfig, Method, PackedMerge,
    Selection, Targets, TrainableTokensConfig, VeraConfig,
};
use burn_lora_quant::QuantConfig;
use safetensors::{Dtype, tensor::TensorView};
use std::path::Path;

/// The weights of all layers, as a checkpoint names them.
fn write_weights(model: &Tiny, path: &Path) {
    let weights: Vec<(String, Vec<usize>, Vec<f32>)> = model
        .layers()
        .into_iter()
        .map(|(path, layer): (_, &dyn AdaptedLayer)| {
            let weight = layer.file_layout(layer.weight());
            (format!("{path}.weight"), layer.file_shape(), vec(weight))
        })
        .collect();
    let views = weights.iter().map(|(name, shape, values)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes an adapter, and the weights that it makes when merged.
fn write(mut model: Tiny, name: &str, folder: &Path, export: bool) {
    if export {
        model.export_adapter(name, folder).unwrap();
    } else {
        model.save_adapter(name, folder).unwrap();
    }
    model.select(Selection::adapters([name])).unwrap();
    model.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
    write_weights(&model, &folder.join("merged_model.safetensors"));
}

/// Writes a new adapter of a method.
fn write_new(variant: &str, case: &str, method: &(impl Method + Clone), out: &Path) {
    let mut model = Tiny::load(variant, &device());
    model.add_adapter("default", method).unwrap();
    write(model, "default", &out.join(variant).join(case), false);
}

#[test]
fn write_what_python_reads() {
    let own = folder();
    let out = std::env::var("PEFT_CHECK").map_or(own.path().to_owned(), Into::into);
    let device = device();
    let lora =
        || LoraConfig::new(4, 10).targets(["q_proj", "o_proj", "down_proj"]).init(Init::Random);
    for variant in VARIANTS {
        let load = || Tiny::load(variant, &device);
        let folder = out.join(variant);
        for case in CASES {
            let mut model = load();
            model.load_adapter("default", golden(variant).join(case)).unwrap();
            write(model, "default", &folder.join(case), false);
        }
        let patterns = lora().rank_pattern([("o_proj", 6)]).alpha_pattern([("q_proj", 3.5)]);
        let cases = [
            ("new_plain", lora(), false),
            ("new_all_linear", lora().all_linear().rslora(true), false),
            ("new_regex", lora().targets_regex(r".*layers\.0.*(?:q|v)_proj").dora(true), false),
            ("new_layers", lora().layers([1]).exclude(["layers.0.self_attn.o_proj"]), false),
            ("new_embedding", lora().targets(["embed_tokens", "v_proj"]), false),
            ("new_embedding_dora", lora().targets(["embed_tokens", "v_proj"]).dora(true), false),
            ("new_saved", lora().modules_to_save(["model.norm", "lm_head"]), false),
            ("new_pissa", lora().init(Init::Pissa), false),
            ("new_olora", lora().init(Init::Olora).rslora(true), false),
            ("new_pissa_dora", lora().init(Init::Pissa).dora(true), false),
            ("export_patterns", patterns.clone().rslora(true), true),
            ("new_patterns", patterns, false),
        ];
        for (case, lora, export) in cases {
            let mut model = load();
            model.add_adapter("default", &lora).unwrap();
            for (_, layer) in model.layers_mut() {
                let copies = layer.adapters_mut().saved_mut("default");
                copies.for_each(|copy| copy.weight = copy.weight.clone().map(|w| w * 1.2 - 0.01));
                if let Some(lora) = layer.adapters_mut().lora_mut("default") {
                    // Trained, so to speak.
                    lora.lora_b = lora.lora_b.clone().map(|b| b * 0.4 + 0.01);
                    lora.lora_a = lora.lora_a.clone().map(|a| a * 0.9 - 0.01);
                    lora.magnitude = lora.magnitude.take().map(|m| m.map(|m| m * 1.1));
                }
            }
            write(model, "default", &folder.join(case), export);
        }
        let mut model = load();
        model.add_adapter("a", &lora()).unwrap();
        model.add_adapter("b", &lora().targets(["q_proj"]).seed(1)).unwrap();
        model.combine_adapters("cat", &[("a", 0.6), ("b", -0.3)], &Combine::cat()).unwrap();
        write(model, "cat", &folder.join("combined"), false);
    }
    for variant in VARIANTS {
        let vera = VeraConfig {
            r: 6,
            target_modules: Some(Targets::AllLinear),
            init_weights: false,
            ..Default::default()
        };
        let key = VeraConfig { save_projection: false, projection_prng_key: 11, ..vera.clone() };
        let tokens = TrainableTokensConfig {
            token_indices: vec![7, 48],
            init_weights: false,
            ..Default::default()
        };
        write_new(variant, "new_vera", &vera, &out);
        write_new(variant, "new_vera_key", &key, &out);
        write_new(variant, "new_tokens", &tokens, &out);
        let beside = lora().trainable_tokens_of([("embed_tokens", vec![11]), ("lm_head", vec![3])]);
        write_new(variant, "new_lora_tokens", &beside, &out);
    }
    // Codes that PEFT's QLoRA would have: its output is compared with the packed base's here.
    let mut packed = Tiny::load("gqa", &device);
    packed.quantize_base(&QuantConfig::nf4().double_quant(true)).unwrap();
    packed.add_adapter("default", &lora()).unwrap();
    packed.save_adapter("default", out.join("gqa/new_qlora")).unwrap();
    assert!(out.join("llama3/combined/merged_model.safetensors").is_file());
}
