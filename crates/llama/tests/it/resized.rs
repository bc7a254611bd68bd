//! A vocabulary of another size, and adapters of such models by PEFT and here
//! (testdata/resized/make.py).

use crate::{common::*, golden::loader};
use burn::tensor::{FloatDType, Int, Tensor};
use burn_lora_adapter::{
    Adaptable, AdaptableExt, AdaptedLinear, FrozenLayer, Init, LoraConfig, PackedMerge,
};
use burn_lora_io::collect;
use burn_lora_llama::{Llama, SaveOptions, Segments};
use burn_lora_quant::{EightBitConfig, Format, QuantConfig, StorageFormat};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const BASES: [&str; 2] = ["untied", "tied"];
const ADAPTERS: [&str; 4] = ["lora", "rows", "rows_alone", "whole"];
const OLD: usize = 32;
const NEW: usize = 35;

fn folder(base: &str) -> PathBuf {
    golden("resized").join(base)
}

fn base(name: &str) -> Llama {
    loader(&folder(name)).dtype(FloatDType::F32).load(&device()).unwrap()
}

/// Logits of the reference's tokens.
fn logits(model: &Llama, io: &Path) -> Vec<f32> {
    let io = tensors(io);
    let shape = [io["tokens"].0[0], io["tokens"].0[1]];
    let tokens: Vec<i32> = io["tokens"].1.iter().map(|token| *token as i32).collect();
    let tokens: Tensor<2, Int> = int(tokens, shape, &device());
    vec(model.forward(tokens, &Segments::whole(shape[0], shape[1])))
}

/// Writes tensors of float32, and `tokens` of integers.
fn write(path: &Path, tensors: &Host) {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| match name == "tokens" {
            true => {
                let bytes: Vec<u8> =
                    values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect();
                (name, Dtype::I64, shape.clone(), bytes)
            }
            false => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name, Dtype::F32, shape.clone(), bytes)
            }
        })
        .collect();
    let views = bytes.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        tensors(&folder.join("adapter_model.safetensors")).into_keys().collect();
    names.sort();
    names
}

fn rows(model: &Llama) -> [Vec<f32>; 2] {
    let layers: std::collections::BTreeMap<_, _> = model.layers().into_iter().collect();
    ["model.embed_tokens", "lm_head"].map(|path| {
        let layer = layers[path];
        vec(layer.file_layout(layer.weight()))
    })
}

#[test]
fn new_rows_are_the_mean_that_transformers_draws_around() {
    for name in BASES {
        let mut model = base(name);
        let before = rows(&model);
        assert_eq!(model.resize_token_embeddings(NEW, None).unwrap(), NEW);
        let after = rows(&model);
        let drawn = tensors(&folder(name).join("io.safetensors"));
        for (i, part) in ["embedding", "head"].into_iter().enumerate() {
            let (old, new) = after[i].split_at(before[i].len());
            assert_eq!(old, before[i], "{name}: {part}");
            let width = before[i].len() / OLD;
            let mean: Vec<f32> = (0..width)
                .map(|column| {
                    let column = before[i].iter().skip(column).step_by(width);
                    (column.map(|value| f64::from(*value)).sum::<f64>() / OLD as f64) as f32
                })
                .collect();
            for row in new.chunks(width) {
                assert!(difference(row, &mean) < 1e-6, "{name}: {part}");
            }
            // The deviation of the rows is 0.5; the largest of 96 draws is within five of theirs.
            let noise = difference(new, &drawn[part].1);
            assert!(noise < 5.0 * 3.2e-5 * 0.8, "{name}: {part}: {noise}");
        }
        assert_eq!(model.config.vocab_size, NEW);
        assert_eq!(after[0] == after[1], name == "tied");
        // Smaller again: the first rows.
        model.resize_token_embeddings(OLD, None).unwrap();
        assert_eq!(rows(&model), before, "{name}");
    }
}

#[test]
fn a_resized_model_is_saved_with_its_size() {
    for name in BASES {
        let mut model = base(name);
        assert_eq!(model.resize_token_embeddings(33, Some(8)).unwrap(), 40);
        let saved = tempfile::tempdir().unwrap();
        model.save_pretrained(saved.path(), &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
        let again = Llama::from_pretrained(saved.path()).load(&device()).unwrap();
        assert_eq!(
            (again.config.vocab_size, again.config.tie_word_embeddings),
            (40, name == "tied")
        );
        assert_eq!(rows(&again), rows(&model));
    }
}

#[test]
fn packed_heads_are_packed_again() {
    let formats: [&dyn Fn(&Tensor<2>) -> AdaptedLinear; 2] =
        [&|weight| packed(&QuantConfig::new(Format::Nf4), weight), &|weight| {
            packed(&EightBitConfig::int8(), weight)
        }];
    for format in formats {
        let mut model = base("untied");
        let weight = model.lm_head.weight();
        model.lm_head = format(&weight);
        let (settings, before) =
            (model.lm_head.base.weight.settings(), vec(model.lm_head.weight()));
        model.resize_token_embeddings(NEW, None).unwrap();
        assert!(model.lm_head.is_quantized());
        assert_eq!(model.lm_head.base.weight.settings(), settings);
        assert_eq!(model.lm_head.shape(), [NEW, 16]);
        let after = vec(model.lm_head.weight());
        assert!(difference(&after[..before.len()], &before) < 1e-2);
    }
}

fn packed(format: &dyn StorageFormat, weight: &Tensor<2>) -> AdaptedLinear {
    AdaptedLinear::new(burn_lora_adapter::Base::new(format.store(weight.clone()).unwrap(), None))
}

#[test]
fn what_cannot_be_resized_is_refused() {
    let mut model = base("untied");
    assert!(model.resize_token_embeddings(0, None).unwrap_err().to_string().contains("one token"));
    let lora = LoraConfig::new(2, 4).targets(["q_proj"]).trainable_tokens([3]);
    model.add_adapter("default", &lora).unwrap();
    let error = model.resize_token_embeddings(NEW, None).unwrap_err().to_string();
    assert!(error.contains("`model.embed_tokens` has the adapter `default`"), "{error}");
    assert!(error.contains("resize before"), "{error}");
    assert_eq!(model.config.vocab_size, OLD);
    // Adapters of other layers are in nobody's way.
    let mut model = base("untied");
    model.add_adapter("default", &LoraConfig::new(2, 4).targets(["q_proj"])).unwrap();
    model.resize_token_embeddings(NEW, None).unwrap();
}

#[test]
fn adapters_of_pefts_resized_models_agree() {
    for name in BASES {
        for adapter in ADAPTERS {
            let (what, folder) = (format!("{name}/{adapter}"), folder(name).join(adapter));
            let io = folder.join("io.safetensors");
            let expected = &tensors(&io)["logits"].1;
            // PEFT resized with noise, which is not in a file without the whole layers.
            let mut model = base(name);
            model.load_adapter("default", &folder).unwrap();
            assert_eq!(model.config.vocab_size, NEW, "{what}");
            let found = difference(&logits(&model, &io), expected);
            assert!(found < 1e-5, "{what}: {found}");

            let mut resized = base(name);
            resized.resize_token_embeddings(NEW, None).unwrap();
            resized.load_adapter("default", &folder).unwrap();
            let found = difference(&logits(&resized, &io), expected);
            assert!(found < 1e-5, "{what}, resized before: {found}");

            // Saved again, and merged.
            let again = tempfile::tempdir().unwrap();
            model.save_adapter("default", again.path()).unwrap();
            let mut other = base(name);
            other.load_adapter("default", again.path()).unwrap();
            let found = difference(&logits(&other, &io), expected);
            assert!(found < 1e-5, "{what}, saved again: {found}");
            model.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
            let saved = tempfile::tempdir().unwrap();
            model
                .save_pretrained(saved.path(), &SaveOptions::new().dtype(FloatDType::F32))
                .unwrap();
            let merged = Llama::from_pretrained(saved.path()).load(&device()).unwrap();
            let found = difference(&logits(&merged, &io), expected);
            assert!(found < 1e-5, "{what}, merged: {found}");
        }
    }
}

#[test]
fn a_failed_load_leaves_the_vocabulary() {
    let from = folder("untied").join("rows");
    let broken = tempfile::tempdir().unwrap();
    let mut tensors = tensors(&from.join("adapter_model.safetensors"));
    let name = tensors.keys().find(|name| name.ends_with("q_proj.lora_A.weight")).unwrap().clone();
    tensors.insert(name, (vec![3, 16], vec![0.0; 48]));
    write(&broken.path().join("adapter_model.safetensors"), &tensors);
    fs::copy(from.join("adapter_config.json"), broken.path().join("adapter_config.json")).unwrap();
    let mut model = base("untied");
    let before = rows(&model);
    let error = model.load_adapter("default", broken.path()).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("[3, 16]"), "{error}");
    assert_eq!((model.config.vocab_size, rows(&model)), (OLD, before));

    // Settings alone cannot ask for any memory.
    let text = fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["trainable_token_indices"]["embed_tokens"][2] = (1u64 << 40).into();
    fs::write(broken.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = model.load_adapter("default", broken.path()).unwrap_err().to_string();
    assert!(error.contains("has no token 1099511627776"), "{error}");
}

#[test]
fn a_second_adapter_is_of_the_same_vocabulary() {
    let mut model = base("untied");
    model.load_adapter("first", folder("untied").join("rows")).unwrap();
    model.load_adapter("second", folder("untied").join("lora")).unwrap();
    let mut model = base("untied");
    let first = LoraConfig::new(2, 4).targets(["q_proj"]).trainable_tokens([3]);
    model.add_adapter("first", &first).unwrap();
    let error =
        model.load_adapter("second", folder("untied").join("rows")).unwrap_err().to_string();
    for part in ["`model.embed_tokens` has the adapter `first`", "35 tokens", "32"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!((model.config.vocab_size, model.adapter_names().len()), (OLD, 1));
}

#[test]
fn a_smaller_vocabulary_is_warned_of() {
    let mut model = base("untied");
    model.resize_token_embeddings(40, None).unwrap();
    let from = folder("untied").join("lora");
    let (loaded, warnings) = collect(|| model.load_adapter("default", &from));
    loaded.unwrap();
    assert!(warnings.iter().any(|text| text.contains("35") && text.contains("40")), "{warnings:?}");
    assert_eq!(model.config.vocab_size, NEW);
    let io = from.join("io.safetensors");
    assert!(difference(&logits(&model, &io), &tensors(&io)["logits"].1) < 1e-5);
}

/// New rows that an adapter does not train are in its file; those that it trains are there once.
#[test]
fn files_have_what_another_resized_base_lacks() {
    let new = || (OLD..NEW).collect::<Vec<_>>();
    let lora = || LoraConfig::new(2, 4).targets(["q_proj"]).init(Init::Random);
    let both = [("embed_tokens", new()), ("lm_head", new())];
    let layers = ["lm_head.", "model.embed_tokens."];
    let [head, embedding] = layers.map(|layer| format!("base_model.model.{layer}"));
    let delta = "token_adapter.trainable_tokens_delta";
    for (name, config, expected) in [
        ("untied", lora(), vec![format!("{head}weight"), format!("{embedding}weight")]),
        ("tied", lora(), vec![format!("{embedding}weight")]),
        (
            "untied",
            lora().trainable_tokens_of(both),
            vec![format!("{head}{delta}"), format!("{embedding}{delta}")],
        ),
        ("tied", lora().trainable_tokens(new()), vec![format!("{embedding}{delta}")]),
        (
            "untied",
            lora().trainable_tokens(new()),
            vec![format!("{head}weight"), format!("{embedding}{delta}")],
        ),
        (
            "tied",
            lora().trainable_tokens([5, OLD]),
            vec![
                format!("{embedding}token_adapter.base_layer.weight"),
                format!("{embedding}{delta}"),
            ],
        ),
        (
            "untied",
            lora().targets(["q_proj", "lm_head"]),
            vec![
                format!("{head}base_layer.weight"),
                format!("{head}lora_A.weight"),
                format!("{head}lora_B.weight"),
                format!("{embedding}weight"),
            ],
        ),
        (
            "untied",
            lora().modules_to_save(["embed_tokens", "lm_head"]),
            vec![format!("{head}weight"), format!("{embedding}weight")],
        ),
    ] {
        let mut model = base(name);
        model.resize_token_embeddings(NEW, None).unwrap();
        model.add_adapter("default", &config).unwrap();
        let saved = tempfile::tempdir().unwrap();
        model.save_adapter("default", saved.path()).unwrap();
        let found: Vec<_> =
            names(saved.path()).into_iter().filter(|name| !name.contains("q_proj")).collect();
        assert_eq!(found, expected, "{name}");
        let io = folder(name).join("lora/io.safetensors");
        let mut again = base(name);
        again.load_adapter("default", saved.path()).unwrap();
        assert!(difference(&logits(&again, &io), &logits(&model, &io)) < 1e-6, "{name}");
    }
    // A model of the size it was loaded with has nothing to add.
    let mut model = base("untied");
    model.resize_token_embeddings(NEW, None).unwrap();
    model.resize_token_embeddings(OLD, None).unwrap();
    model.add_adapter("default", &lora()).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    assert!(names(saved.path()).iter().all(|name| name.contains("q_proj")));
}

#[test]
fn all_linear_layers_beside_rows_are_loaded_again() {
    let mut model = base("untied");
    let rows = [("embed_tokens", vec![3]), ("lm_head", vec![3])];
    model
        .add_adapter("default", &LoraConfig::new(2, 4).all_linear().trainable_tokens_of(rows))
        .unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    base("untied").load_adapter("default", saved.path()).unwrap();
}

#[test]
fn llama_cpp_gets_no_part_of_such_an_adapter() {
    for (config, part) in [
        (
            LoraConfig::new(2, 4).targets(["q_proj"]).trainable_tokens([OLD]),
            "rows of `model.embed_tokens`",
        ),
        (LoraConfig::new(2, 4).targets(["q_proj"]), "a weight of its own"),
    ] {
        let mut model = base("untied");
        model.resize_token_embeddings(OLD + 1, None).unwrap();
        model.add_adapter("default", &config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let errors = [
            model.export_adapter("default", folder.path().join("a")).unwrap_err().to_string(),
            model
                .save_adapter_gguf("default", folder.path().join("a.gguf"))
                .unwrap_err()
                .to_string(),
        ];
        for error in errors {
            assert!(error.contains(part) && error.contains("merge it instead"), "{error}");
        }
    }
}

#[test]
fn a_classifier_keeps_its_classes() {
    let load = || Llama::from_pretrained(folder("untied")).load_classifier(NEW, &device()).unwrap();
    let (mut model, _) = collect(load);
    let lora = LoraConfig::new(2, 4).targets(["q_proj"]).modules_to_save(["score"]);
    model.resize_for_adapter(NEW + 1).unwrap();
    model.add_adapter("default", &lora).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save_adapter("default", saved.path()).unwrap();
    let (mut again, _) = collect(load);
    again.load_adapter("default", saved.path()).unwrap();
    assert_eq!((again.llama.config.vocab_size, again.num_labels()), (NEW + 1, NEW));
}

/// Loads an adapter of ours onto a base that transformers has resized, and a merged model.
const SCRIPT: &str = r#"
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
base, adapter, merged, io, size = sys.argv[1:]
io = load_file(io)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model.resize_token_embeddings(int(size))
peft = PeftModel.from_pretrained(model, adapter).eval()
alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
assert alone.config.vocab_size == int(size)
with torch.no_grad():
    for name, found in [("peft", peft(io["tokens"]).logits), ("merged", alone(io["tokens"]).logits)]:
        difference = (found - io["logits"].view_as(found)).abs().max().item()
        assert difference < 1e-5, (name, difference)
        print(name, difference)
"#;

#[test]
#[ignore = "needs BURN_LORA_PYTHON, a Python with transformers and peft"]
fn peft_loads_our_adapters_of_resized_models() {
    let python = std::env::var("BURN_LORA_PYTHON").expect("BURN_LORA_PYTHON names a Python");
    let new = || (OLD..NEW).collect::<Vec<_>>();
    let lora = || LoraConfig::new(2, 4).targets(["q_proj", "v_proj"]).init(Init::Random);
    let both = || [("embed_tokens", new()), ("lm_head", new())];
    for (name, config, size) in [
        ("untied", lora(), NEW),
        ("tied", lora(), NEW),
        ("untied", lora().trainable_tokens_of(both()), NEW),
        ("tied", lora().trainable_tokens(new()), NEW),
        ("untied", lora().trainable_tokens(new()), NEW),
        ("untied", lora().trainable_tokens_of(both()), 64),
        ("tied", lora().trainable_tokens([5, OLD]), 64),
        ("untied", lora().modules_to_save(["embed_tokens", "lm_head"]), NEW),
        ("tied", lora().modules_to_save(["embed_tokens", "lm_head"]), NEW),
        ("untied", lora().targets(["embed_tokens", "lm_head"]), NEW),
    ] {
        let mut model = base(name);
        model.resize_token_embeddings(size, None).unwrap();
        model.add_adapter("default", &config).unwrap();
        let out = tempfile::tempdir().unwrap();
        let [adapter, merged, io] =
            ["adapter", "merged", "io.safetensors"].map(|n| out.path().join(n));
        // Rows that differ from those of the base.
        for (_, layer) in model.layers_mut() {
            let update =
                layer.adapters_mut().update_mut::<burn_lora_adapter::TrainableTokens>("default");
            if let Some(rows) = update {
                let delta = rows.trainable_tokens_delta.clone();
                rows.trainable_tokens_delta = delta.map(|rows| rows * 3.0 + 0.1);
            }
        }
        model.save_adapter("default", &adapter).unwrap();
        let reference = folder(name).join("lora/io.safetensors");
        // From the files: a head with tied embeddings follows rows that were changed above.
        let mut model = base(name);
        model.load_adapter("default", &adapter).unwrap();
        assert!(model.config.vocab_size <= size);
        let mut model = base(name);
        model.resize_token_embeddings(size, None).unwrap();
        model.load_adapter("default", &adapter).unwrap();
        let tokens = tensors(&reference)["tokens"].clone();
        let values = logits(&model, &reference);
        let shape = vec![values.len()];
        write(&io, &Host::from([("tokens".into(), tokens), ("logits".into(), (shape, values))]));
        model.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
        model.save_pretrained(&merged, &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
        let mut command = Command::new(&python);
        command.args(["-c", SCRIPT]).arg(folder(name)).args([&adapter, &merged, &io]);
        let ran = command.arg(size.to_string()).output().unwrap();
        let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(ran.status.success(), "{name}: {config:?}: {}", said[1]);
        println!("{name} {size}: {}", said[0].replace('\n', " "));
    }
}
