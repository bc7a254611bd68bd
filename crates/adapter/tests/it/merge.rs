//! Adding updates to the weights, and taking them out again.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, Base, Init, LoraConfig, PackedMerge, Selection};
use burn_lora_quant::QuantConfig;

fn adapted(dora: bool) -> Tiny {
    let mut model = Tiny::load("gqa", &device());
    let lora = LoraConfig::new(4, 10).all_linear().init(Init::Random).dora(dora);
    model.add_adapter("a", &lora).unwrap();
    model.add_adapter("b", &lora.clone().targets(["q_proj", "up_proj"]).seed(5)).unwrap();
    for (_, layer) in model.layers_mut() {
        for name in ["a", "b"] {
            if let Some(lora) = layer.adapters_mut().lora_mut(name) {
                lora.lora_b = lora.lora_b.clone().map(|b| b * 0.3);
                lora.magnitude = lora.magnitude.take().map(|m| m.map(|m| m * 1.1));
            }
        }
    }
    model
}

#[test]
fn merging_keeps_the_output_and_unmerging_the_base() {
    let run = |model: &Tiny| model.forward(tokens(&device()));
    for dora in [false, true] {
        let mut model = adapted(dora);
        let (adapted, weight) = (run(&model), layer(&model, "model.layers.2.mlp.up_proj").weight());
        let report = model.merge(PackedMerge::Requantize).unwrap();
        assert_eq!((report.layers.len(), report.max), (21, 0.0));
        let worst = max_difference(run(&model), adapted.clone());
        assert!(worst < 1e-4, "dora {dora}: {worst}");
        // Merged means merged: what would add twice is refused.
        for error in [
            model.merge(PackedMerge::Requantize).map(drop).unwrap_err(),
            model.select(Selection::base()).unwrap_err(),
            model.delete_adapter("a").unwrap_err(),
            model.add_adapter("c", &LoraConfig::new(2, 5).all_linear()).map(drop).unwrap_err(),
            model.load_adapter("c", golden("gqa").join("lora_qv")).map(drop).unwrap_err(),
            model.dequantize_base(FloatDType::F32).unwrap_err(),
        ] {
            assert!(error.to_string().contains("call unmerge first"), "{error}");
        }
        model.unmerge();
        let worst = max_difference(layer(&model, "model.layers.2.mlp.up_proj").weight(), weight);
        assert!(worst < 1e-6, "{worst}");
        assert!(max_difference(run(&model), adapted) < 1e-4);
    }
}

/// Several adapters merge to what they compute together, DoRA among them and in any order.
#[test]
fn several_adapters_merge() {
    let run = |model: &Tiny| model.forward(tokens(&device()));
    let path = "model.layers.0.self_attn.q_proj";
    for (dora, names) in
        [(false, ["a", "b"]), (true, ["a", "b"]), (true, ["plain", "a"]), (true, ["a", "plain"])]
    {
        let mut model = adapted(dora);
        let plain = LoraConfig::new(2, 5).targets(["q_proj"]).init(Init::Random);
        model.add_adapter("plain", &plain).unwrap();
        let weight = layer(&model, path).weight();
        model.select(Selection::adapters(names)).unwrap();
        let both = run(&model);
        model.merge(PackedMerge::Requantize).unwrap();
        let worst = max_difference(run(&model), both.clone());
        assert!(worst < 1e-5, "{names:?}, dora {dora}: {worst}");
        model.unmerge();
        assert!(max_difference(layer(&model, path).weight(), weight) < 1e-6, "{names:?}");
        model.merge_and_unload(PackedMerge::Requantize).unwrap();
        assert!(model.adapter_names().is_empty());
        assert!(max_difference(run(&model), both) < 1e-5);
    }
}

#[test]
fn packed_bases() {
    let run = |model: &Tiny| model.forward(tokens(&device()));
    let path = "model.layers.1.mlp.up_proj";
    for dora in [false, true] {
        let mut model = adapted(dora);
        model.quantize_base(&QuantConfig::nf4().double_quant(true)).unwrap();
        let (expected, codes) = (run(&model), layer(&model, path).packed().unwrap().to_packed());

        let report = model.merge(PackedMerge::Dense(FloatDType::F32)).unwrap();
        assert_eq!((report.max, report.kept), (0.0, 1.0));
        assert!(layer(&model, path).packed().is_none());
        let worst = max_difference(run(&model), expected.clone());
        assert!(worst < 1e-4, "dora {dora}: {worst}");
        model.unmerge();
        assert_eq!(layer(&model, path).packed().unwrap().to_packed(), codes, "exactly");
        assert_eq!(max_difference(run(&model), expected.clone()), 0.0);

        let four = model.merge(PackedMerge::Requantize).unwrap();
        assert!(layer(&model, path).packed().is_some());
        assert!(four.mean > 1e-3 && four.max > four.mean && four.max < 0.2, "{four}");
        assert!(four.kept < 1.0, "{four}");
        let worst = four.layers.iter().map(|layer| layer.max).fold(0.0, f64::max);
        assert_eq!(worst, four.max);
        assert!(four.to_string().contains("21 layers"), "{four}");
        model.unmerge();
        assert_eq!(layer(&model, path).packed().unwrap().to_packed(), codes);

        // Smaller blocks cost less.
        let small = PackedMerge::RequantizeAs(QuantConfig::nf4().block_size(32));
        assert!(model.merge_and_unload(small).unwrap().mean < four.mean);
        assert!(model.adapter_names().is_empty());
    }
    let mut model = adapted(false);
    model.quantize_base(&QuantConfig::nf4()).unwrap();
    let bad = PackedMerge::RequantizeAs(QuantConfig::nf4().block_size(48));
    assert!(model.merge(bad).is_err());
}

/// What is kept, against a sum over the weights on the host.
#[test]
fn a_merge_says_what_it_keeps() {
    let path = "model.layers.1.mlp.up_proj";
    let host = |model: &Tiny| vec(layer(model, path).weight().reshape([-1]));
    for (scale, warned) in [(0.02, true), (20.0, false)] {
        let mut model = adapted(false);
        model.quantize_base(&QuantConfig::nf4().block_size(32)).unwrap();
        for (_, layer) in model.layers_mut() {
            for name in ["a", "b"] {
                if let Some(lora) = layer.adapters_mut().lora_mut(name) {
                    lora.lora_b = lora.lora_b.clone().map(|b| b * scale);
                }
            }
        }
        let before = host(&model);
        model.merge(PackedMerge::Dense(FloatDType::F32)).unwrap();
        let exact = host(&model);
        model.unmerge();
        let (report, warnings) = burn_lora_io::collect(|| model.merge(PackedMerge::Requantize));
        let (report, stored) = (report.unwrap(), host(&model));
        let norm = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let expected = (1.0 - norm(&stored, &exact) / norm(&exact, &before)).max(0.0);
        let found = report.layers.iter().find(|layer| layer.path == path).unwrap().kept;
        assert!((found - expected).abs() < 1e-4, "{found}, and {expected} by the sum");
        assert_eq!(warnings.len(), usize::from(warned), "{report}: {warnings:?}");
        if warned {
            assert!(report.kept < 0.9 && warnings[0].contains("of the update"), "{report}");
        } else {
            assert!(report.kept > 0.9, "{report}");
        }
    }
}

#[test]
fn copies_take_the_place_of_their_bases() {
    let run = |model: &Tiny| model.forward(tokens(&device()));
    let mut model = Tiny::load("gqa", &device());
    let lora = LoraConfig::new(4, 10).targets(["q_proj"]).init(Init::Random);
    let lora = lora.modules_to_save(["lm_head", "embed_tokens", "norm"]);
    model.add_adapter("default", &lora).unwrap();
    let untrained = run(&model);
    train_copies(&mut model, "default");
    let expected = run(&model);
    assert!(max_difference(untrained, expected.clone()) > 1e-2);
    model.merge_and_unload(PackedMerge::Requantize).unwrap();
    assert!(max_difference(run(&model), expected) < 1e-4);
    assert_eq!(model.summary().adapter_bytes, 0);
}

#[test]
fn broken_adapters_do_not_merge() {
    let mut model = adapted(false);
    let before = layer(&model, "model.layers.0.self_attn.q_proj").weight();
    for (path, layer) in model.layers_mut() {
        if path == "model.layers.2.self_attn.q_proj" {
            let lora = layer.adapters_mut().lora_mut("a").unwrap();
            lora.lora_b = lora.lora_b.clone().map(|b| b * f32::INFINITY);
        }
    }
    let error = model.merge(PackedMerge::Requantize).unwrap_err().to_string();
    assert!(error.contains("layers.2.self_attn.q_proj") && error.contains("`a`"), "{error}");
    assert_eq!(
        max_difference(layer(&model, "model.layers.0.self_attn.q_proj").weight(), before),
        0.0
    );
    model.select(Selection::base()).unwrap();
    assert!(model.merge(PackedMerge::Requantize).unwrap_err().to_string().contains("no adapter"));
}

/// The sum of what is stored, in float32 or more, rounded to the nearest of what is stored then.
#[test]
fn merged_weights_are_rounded_once() {
    use half::{bf16, f16};
    let path = "model.layers.1.mlp.down_proj";
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        let mut model = adapted(false);
        for (_, layer) in model.layers_mut() {
            let weight = layer.weight().cast(dtype);
            if let Some(base) = layer.base_mut() {
                *base = Base::dense(weight, None);
            }
        }
        let stored = vec(layer(&model, path).weight());
        let lora = layer(&model, path).adapters().lora("a").unwrap();
        let [a, b] = [vec(lora.lora_a.val()), vec(lora.lora_b.val())];
        let (rank, width) = (lora.rank(), layer(&model, path).shape()[1]);
        let scaling = lora.scaling();
        let exact = stored.iter().enumerate().map(|(at, weight)| {
            let (row, column) = (at / width, at % width);
            let sum: f64 = (0..rank)
                .map(|i| f64::from(b[row * rank + i]) * f64::from(a[i * width + column]))
                .sum();
            f64::from(*weight) + scaling * sum
        });
        let nearest: Vec<f32> = exact
            .map(|value| match dtype {
                FloatDType::BF16 => bf16::from_f64(value).to_f32(),
                FloatDType::F16 => f16::from_f64(value).to_f32(),
                _ => value as f32,
            })
            .collect();
        model.merge_and_unload(PackedMerge::Dense(dtype)).unwrap();
        let merged = vec(layer(&model, path).weight());
        let others = merged.iter().zip(&nearest).filter(|(a, b)| a != b).count();
        // A sum in float32 may fall on the other side of a tie.
        assert!(others * 1000 <= nearest.len(), "{dtype:?}: {others} of {}", nearest.len());
    }
}
