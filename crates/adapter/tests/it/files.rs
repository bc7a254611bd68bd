//! PEFT's files: goldens there and back, and what is wrong with bad ones.

use crate::common::*;
use burn::tensor::DType;
use burn_lora_adapter::{
    Adaptable, AdaptableExt, AdapterError, Bias, Init, LoraConfig, PackedMerge, Selection,
};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::{collections::HashMap, fs, path::Path};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn goldens_there_and_back() {
    for (variant, case) in VARIANTS.iter().flat_map(|v| CASES.map(|c| (v, c))) {
        let golden = golden(variant).join(case);
        let mut model = Tiny::load(variant, &device());
        model.load_adapter("default", &golden).unwrap();
        let out = folder();
        model.save_adapter("default", &out).unwrap();

        let file = "adapter_model.safetensors";
        let (found, expected) = (tensors(&out.path().join(file)), tensors(&golden.join(file)));
        assert!(found == expected, "{variant}/{case}: keys, shapes or values differ");
        let file = "adapter_config.json";
        let (found, expected) = (json(&out.path().join(file)), json(&golden.join(file)));
        assert_eq!(found, expected, "{variant}/{case}");
    }
}

#[test]
fn written_config_is_byte_for_byte_pefts() {
    let golden = golden("gqa").join("lora_all");
    let mut model = Tiny::load("gqa", &device());
    model.load_adapter("default", &golden).unwrap();
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    let text = |folder: &Path| fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    assert_eq!(text(out.path()), text(&golden));
    // PyTorch's loaders ask for the format.
    let bytes = fs::read(out.path().join("adapter_model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

/// peft-rs and axolotl-rs wrote `lora_A.default.weight`, which PEFT ignores with a warning.
#[test]
fn keys_hold_no_adapter_name() {
    let mut model = Tiny::load("gqa", &device());
    let lora = LoraConfig::new(4, 12).targets(["q_proj"]).dora(true);
    model.add_adapter("style", &lora).unwrap();
    let out = folder();
    model.save_adapter("style", &out).unwrap();
    let file = tensors(&out.path().join("adapter_model.safetensors"));
    let first: Vec<_> = file.keys().take(3).map(String::as_str).collect();
    let p = "base_model.model.model.layers.0.self_attn.q_proj";
    let expected = [
        format!("{p}.lora_A.weight"),
        format!("{p}.lora_B.weight"),
        format!("{p}.lora_magnitude_vector"),
    ];
    assert_eq!(first, expected);
    assert_eq!(file.len(), 9);
    assert!(!file.keys().any(|key| key.contains("style")));
}

#[test]
fn half_precision_files_load() {
    let golden = golden("gqa").join("lora_qv");
    let exact = tensors(&golden.join("adapter_model.safetensors"));
    for dtype in [Dtype::F16, Dtype::BF16] {
        let out = folder();
        fs::copy(golden.join("adapter_config.json"), out.path().join("adapter_config.json"))
            .unwrap();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = exact
            .iter()
            .map(|(name, (shape, values))| {
                let bytes = values.iter().flat_map(|&value| match dtype {
                    Dtype::F16 => f16::from_f32(value).to_le_bytes(),
                    _ => bf16::from_f32(value).to_le_bytes(),
                });
                (name.clone(), shape.clone(), bytes.collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(out.path().join("adapter_model.safetensors"), file).unwrap();

        let mut model = Tiny::load("gqa", &device());
        model.load_adapter("default", &out).unwrap();
        let path = "model.layers.2.self_attn.v_proj";
        let lora = layer(&model, path).adapters().lora("default").unwrap();
        assert_eq!(lora.lora_a.val().dtype(), DType::F32);
        let expected = &exact[&format!("base_model.model.{path}.lora_A.weight")].1;
        let worst = difference(&vec(lora.lora_a.val()), expected);
        assert!(worst > 0.0 && worst < 2e-3, "{dtype}: {worst}");
    }
}

/// Everything that an adapter can hold besides A and B of linear layers.
#[test]
fn saved_modules_and_embeddings() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 12)
        .targets(["q_proj", "embed_tokens"])
        .modules_to_save(["lm_head", "norm"])
        .init(Init::Random);
    let report = model.add_adapter("default", &lora).unwrap();
    assert_eq!(
        report.to_string(),
        "q_proj: 3 layers, embed_tokens: 1 layer, lm_head: 1 layer, norm: 1 layer"
    );
    train_copies(&mut model, "default");
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    let file = tensors(&out.path().join("adapter_model.safetensors"));
    let shape = |key: &str| file[&format!("base_model.model.{key}")].0.clone();
    assert_eq!(shape("model.embed_tokens.lora_embedding_A"), [4, 128]);
    assert_eq!(shape("model.embed_tokens.lora_embedding_B"), [64, 4]);
    assert_eq!(shape("lm_head.weight"), [128, 64]);
    assert_eq!(shape("model.norm.weight"), [64]);
    assert_eq!(file.len(), 2 * 4 + 2);

    let expected = model.forward(tokens(&device));
    let mut again = Tiny::load("gqa", &device);
    again.load_adapter("other", &out).unwrap();
    assert_eq!(max_difference(again.forward(tokens(&device)), expected.clone()), 0.0);
    let base = again.with_selection(Selection::base(), |m| m.forward(tokens(&device))).unwrap();
    assert!(max_difference(base, expected) > 1e-2);
}

/// A copy of an adapter, with changes.
pub fn changed(
    adapter: &Path,
    settings: impl FnOnce(&mut Value),
    change: impl FnOnce(&mut Host),
) -> tempfile::TempDir {
    let mut config = json(&adapter.join("adapter_config.json"));
    settings(&mut config);
    let mut file = tensors(&adapter.join("adapter_model.safetensors"));
    change(&mut file);
    let out = folder();
    fs::write(out.path().join("adapter_config.json"), config.to_string()).unwrap();
    let views = file.iter().map(|(name, (shape, values))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    let bytes = safetensors::serialize(views, None::<HashMap<_, _>>).unwrap();
    fs::write(out.path().join("adapter_model.safetensors"), bytes).unwrap();
    out
}

/// PEFT adds the base's own weight where an embedding or the head is adapted.
#[test]
fn files_with_base_weights_load() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 12).targets(["lm_head", "embed_tokens"]).init(Init::Random);
    model.add_adapter("default", &lora).unwrap();
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    let base = tensors(&golden("gqa").join("model.safetensors"));
    let out = changed(
        out.path(),
        |_| {},
        |file| {
            for layer in ["lm_head", "model.embed_tokens"] {
                let (shape, values) = base[&format!("{layer}.weight")].clone();
                let values = values.into_iter().map(|value| value + 0.125).collect();
                file.insert(format!("base_model.model.{layer}.base_layer.weight"), (shape, values));
            }
        },
    );
    let mut again = Tiny::load("gqa", &device);
    again.load_adapter("default", &out).unwrap();
    for path in ["lm_head", "model.embed_tokens"] {
        let change = layer(&again, path).weight() - layer(&model, path).weight();
        assert!(max_difference(change.clone(), change.ones_like() * 0.125) < 1e-6, "{path}");
    }
}

/// A start that only the settings tell of: ranks that a weight has no room for.
#[test]
fn impossible_residuals_are_errors() {
    let mut model = Tiny::load("gqa", &device());
    model.add_adapter("a", &LoraConfig::new(65, 130).targets(["q_proj"])).unwrap();
    let out = folder();
    model.save_adapter("a", &out).unwrap();
    let config = out.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("\"init_lora_weights\": true", "\"init_lora_weights\": \"olora\"");
    fs::write(&config, text).unwrap();
    let error = model.load_adapter("b", &out).unwrap_err().to_string();
    assert!(error.contains("at most 64"), "{error}");
    assert_eq!(model.adapter_names(), ["a"]);
}

#[test]
fn trained_biases() {
    use burn::{module::Module, nn::LinearConfig};
    use burn_lora_adapter::{AdaptedLinear, adaptable};
    #[derive(Module, Debug)]
    struct Two {
        up: AdaptedLinear,
        down: AdaptedLinear,
    }
    adaptable!(Two { up, down });
    let device = device();
    let two = || Two {
        up: LinearConfig::new(6, 8).init(&device).into(),
        down: LinearConfig::new(8, 6).init(&device).into(),
    };
    for (bias, expected) in [
        (Bias::All, vec!["down.bias", "up.base_layer.bias"]),
        (Bias::LoraOnly, vec!["up.base_layer.bias"]),
    ] {
        let mut model = two();
        model.add_adapter("default", &LoraConfig::new(2, 6).targets(["up"]).bias(bias)).unwrap();
        assert_eq!(model.param_groups("default").unwrap().bias.len(), expected.len());
        let out = folder();
        model.save_adapter("default", &out).unwrap();
        let file = tensors(&out.path().join("adapter_model.safetensors"));
        let biases = file.keys().filter_map(|key| key.strip_prefix("base_model.model."));
        let biases: Vec<_> = biases.filter(|key| key.ends_with("bias")).collect();
        assert_eq!(biases, expected);
        let mut again = two();
        again.load_adapter("default", &out).unwrap();
        let bias = |model: &Two| vec(model.up.base.bias.as_ref().unwrap().val());
        assert_eq!(bias(&again), bias(&model));
    }
}

/// A residual adapter is saved as one that fits the weight as it was.
#[test]
fn residual_adapters_convert() {
    for (init, rslora) in [(Init::Pissa, false), (Init::Olora, true), (Init::PissaNiter(4), false)]
    {
        let device = device();
        let mut model = Tiny::load("gqa", &device);
        let lora = LoraConfig::new(4, 12)
            .targets(["q_proj", "down_proj"])
            .rank_pattern([("down_proj", 2)])
            .alpha_pattern([("q_proj", 10)])
            .init(init.clone())
            .rslora(rslora);
        model.add_adapter("default", &lora).unwrap();
        let before = model.forward(tokens(&device));
        for (_, layer) in model.layers_mut() {
            if let Some(lora) = layer.adapters_mut().lora_mut("default") {
                lora.lora_b = lora.lora_b.clone().map(|b| b * 1.5);
            }
        }
        let trained = model.forward(tokens(&device));
        let change = max_difference(before, trained.clone());
        assert!(change > 2e-3, "{change}");

        let (plain, raw, exported) = (folder(), folder(), folder());
        model.save_adapter("default", &plain).unwrap();
        model.export_adapter("default", &exported).unwrap();
        model.save_adapter_as_is("default", &raw).unwrap();
        let config = json(&plain.path().join("adapter_config.json"));
        assert_eq!(config["r"], 8);
        assert_eq!(config["rank_pattern"]["down_proj"], 4);
        assert_eq!(config["init_lora_weights"], true);
        assert_eq!(json(&raw.path().join("adapter_config.json"))["init_lora_weights"], init.name());
        for (what, file) in [("plain", &plain), ("raw", &raw), ("exported", &exported)] {
            let mut again = Tiny::load("gqa", &device);
            again.load_adapter("default", file).unwrap();
            let worst = max_difference(again.forward(tokens(&device)), trained.clone());
            assert!(worst < 1e-5, "{init:?}, {what}: {worst}");
        }
    }
}

/// Ranks, rank-stabilised scaling and patterns, for programs that know none of them.
#[test]
fn export_is_the_same_model() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 6)
        .targets(["q_proj", "o_proj", "up_proj"])
        .rslora(true)
        .rank_pattern([("o_proj", 6)])
        .alpha_pattern([("up_proj", 20)])
        .init(Init::Random);
    model.add_adapter("default", &lora).unwrap();
    let expected = model.forward(tokens(&device));
    let out = folder();
    model.export_adapter("default", &out).unwrap();

    let config = json(&out.path().join("adapter_config.json"));
    assert_eq!(config["use_rslora"], false);
    assert_eq!(
        (&config["r"], &config["rank_pattern"], &config["alpha_pattern"]),
        (&6.into(), &serde_json::json!({}), &serde_json::json!({}))
    );
    for (name, (shape, _)) in tensors(&out.path().join("adapter_model.safetensors")) {
        assert_eq!(shape[usize::from(name.contains("lora_B"))], 6, "{name}");
    }
    let mut again = Tiny::load("gqa", &device);
    again.load_adapter("default", &out).unwrap();
    let worst = max_difference(again.forward(tokens(&device)), expected);
    assert!(worst < 1e-4, "{worst}");

    // rsLoRA alone folds into alpha, and no value changes.
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 6).targets(["q_proj"]).rslora(true).init(Init::Random);
    model.add_adapter("default", &lora).unwrap();
    let plain = folder();
    model.export_adapter("default", &out).unwrap();
    model.save_adapter("default", &plain).unwrap();
    let file = "adapter_model.safetensors";
    assert!(tensors(&out.path().join(file)) == tensors(&plain.path().join(file)));
    assert_eq!(json(&out.path().join("adapter_config.json"))["lora_alpha"], 12);
}

#[test]
fn export_refuses_with_a_reason() {
    let refused = |lora: LoraConfig| {
        let mut model = Tiny::load("gqa", &device());
        model.add_adapter("default", &lora).unwrap();
        model.export_adapter("default", folder()).unwrap_err().to_string()
    };
    let lora = || LoraConfig::new(4, 12).targets(["q_proj"]);
    assert!(refused(lora().dora(true)).contains("DoRA"));
    assert!(refused(lora().modules_to_save(["lm_head"])).contains("lm_head"));
    assert!(refused(lora().targets(["embed_tokens"])).contains("embedding"));
}

/// The golden file with some tensors changed, loaded.
fn damaged(change: impl FnOnce(&mut Host)) -> AdapterError {
    let out = changed(&golden("gqa").join("lora_qv"), |_| {}, change);
    let mut model = Tiny::load("gqa", &device());
    let error = model.load_adapter("default", &out).unwrap_err();
    assert!(model.adapter_names().is_empty(), "nothing changes before all is checked");
    error
}

#[test]
fn bad_files_are_named() {
    let p = "base_model.model.model.layers.1.self_attn.v_proj";
    let key = format!("{p}.lora_A.weight");
    let error = damaged(|file| drop(file.remove(&key))).to_string();
    assert!(error.contains(&key) && error.contains("missing"), "{error}");

    let error = damaged(|file| {
        let tensor = file[&key].clone();
        file.insert("base_model.model.model.extra.lora_A.weight".into(), tensor);
    });
    let error = error.to_string();
    assert!(error.contains("model.extra.lora_A") && error.contains("unexpected"), "{error}");

    let error = damaged(|file| {
        let tensor = file.remove(&key).unwrap();
        file.insert(format!("{p}.lora_A.default.weight"), tensor);
    });
    assert!(error.to_string().contains("no adapter's name"), "{error}");

    let error = damaged(|file| file.get_mut(&key).unwrap().0 = vec![2, 128]).to_string();
    assert!(error.contains("[2, 128]") && error.contains("[4, 64]"), "{error}");
}

#[test]
fn bad_folders_are_named() {
    let mut model = Tiny::load("gqa", &device());
    let mut load = |folder: &Path| model.load_adapter("default", folder).unwrap_err().to_string();
    let out = folder();
    let config = out.path().join("adapter_config.json");
    assert!(load(out.path()).contains("adapter_config.json"));
    fs::write(&config, "{\"r\": ").unwrap();
    assert!(load(out.path()).contains("line 1"));
    for (text, part) in [
        (r#"{"peft_type": "IA3", "target_modules": ["q_proj"]}"#, "IA3"),
        (r#"{"use_qalora": true, "target_modules": ["q_proj"]}"#, "use_qalora"),
        (r#"{"init_lora_weights": "corda", "target_modules": ["q_proj"]}"#, "corda"),
    ] {
        fs::write(&config, text).unwrap();
        assert!(load(out.path()).contains(part), "{part}");
    }
    fs::copy(golden("gqa").join("lora_qv/adapter_config.json"), &config).unwrap();
    let path = out.path().join("adapter_model.safetensors");
    let whole = fs::read(golden("gqa").join("lora_qv/adapter_model.safetensors")).unwrap();
    for length in [0, 4, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = load(out.path());
        assert!(error.contains("adapter_model.safetensors"), "{length}: {error}");
    }
    fs::write(&config, r#"{"target_modules": ["q_proj"], "r": 0}"#).unwrap();
    fs::write(&path, &whole).unwrap();
    assert!(load(out.path()).contains("r is 0"));
}

/// A reader finds the old files or the new ones.
#[test]
fn files_are_replaced_whole() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    model.add_adapter("default", &LoraConfig::new(4, 12).targets(["q_proj"])).unwrap();
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    model.save_adapter("default", &out).unwrap();
    let mut names: Vec<_> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(out.path().join(&names[0])).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
    let file = out.path().join("file");
    fs::write(&file, "").unwrap();
    let error = model.save_adapter("default", &file).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

/// all-linear is written as names, as PEFT does.
#[test]
fn all_linear_is_written_as_names() {
    let mut model = Tiny::load("gqa", &device());
    let report = model.add_adapter("default", &LoraConfig::new(4, 12).all_linear()).unwrap();
    assert_eq!(report.adapted.len(), 21);
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    let names = &json(&out.path().join("adapter_config.json"))["target_modules"];
    let expected = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    assert_eq!(*names, serde_json::json!(expected));
    Tiny::load("gqa", &device()).load_adapter("default", &out).unwrap();
}

#[test]
fn merged_weights_are_pefts() {
    for (variant, case) in VARIANTS.iter().flat_map(|v| CASES.map(|c| (v, c))) {
        let golden = golden(variant).join(case);
        let mut model = Tiny::load(variant, &device());
        model.load_adapter("default", &golden).unwrap();
        let report = model.merge_and_unload(PackedMerge::Requantize).unwrap();
        assert_eq!(report.max, 0.0, "float32 is stored as it is");
        assert!(model.adapter_names().is_empty());
        let expected = tensors(&golden.join("merged.safetensors"));
        assert!(expected.len() >= 3);
        for (name, (_, expected)) in expected {
            let weight = layer(&model, name.strip_suffix(".weight").unwrap()).weight();
            let worst = difference(&vec(weight), &expected);
            assert!(worst <= 1e-6, "{variant}/{case} {name}: {worst:e}");
        }
    }
}
