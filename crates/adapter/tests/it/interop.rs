//! Adapters as PEFT and its users make them: what loads besides A and B, and what is refused by name.

use crate::{common::*, files::changed};
use burn::{
    module::Module,
    nn::LinearConfig,
    tensor::{Device, Tensor},
};
use burn_lora_adapter::{
    AdaptableExt, AdaptedEmbedding, AdaptedLinear, Base, Bias, Combine, Init, LoraConfig, adaptable,
};
use burn_lora_io::collect;
use serde_json::{Value, json};
use std::fs;

const HEAD: &str = "base_model.model.lm_head.weight";
const EMBEDDING: &str = "base_model.model.model.embed_tokens.weight";

/// Loads the golden `lora_qv` with changes; what it says as an error, or the warnings.
fn load(
    model: &mut Tiny,
    settings: impl FnOnce(&mut Value),
    change: impl FnOnce(&mut Host),
) -> Result<Vec<String>, String> {
    let out = changed(&golden("gqa").join("lora_qv"), settings, change);
    let (loaded, warnings) = collect(|| model.load_adapter("default", &out));
    loaded.map(|_| warnings).map_err(|error| error.to_string())
}

/// A base's weight of the golden model, changed a little.
fn weight(name: &str, by: f32) -> (Vec<usize>, Vec<f32>) {
    let (shape, values) = tensors(&golden("gqa").join("model.safetensors"))[name].clone();
    (shape, values.into_iter().map(|value| value + by).collect())
}

/// `save_embedding_layers=True`, or a base of which more was trained.
#[test]
fn whole_weights_of_the_base_are_loaded_and_saved_again() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let warnings = load(
        &mut model,
        |_| {},
        |file| {
            file.insert(HEAD.into(), weight("lm_head.weight", 0.25));
            file.insert(EMBEDDING.into(), weight("model.embed_tokens.weight", 0.0));
            file.insert(
                "base_model.model.model.norm.weight".into(),
                weight("model.norm.weight", 0.5),
            );
        },
    );
    assert_eq!(warnings, Ok(vec![]));
    let base = Tiny::load("gqa", &device);
    let change = |path: &str| {
        let change = layer(&model, path).weight() - layer(&base, path).weight();
        (vec(change.clone().min())[0], vec(change.max())[0])
    };
    let near = |(min, max): (f32, f32), by: f32| (min - by).abs() < 1e-6 && (max - by).abs() < 1e-6;
    assert!(near(change("lm_head"), 0.25), "{:?}", change("lm_head"));
    assert!(near(change("model.norm"), 0.5), "{:?}", change("model.norm"));
    assert_eq!(change("model.embed_tokens"), (0.0, 0.0));

    // What differs from the base is in the file again, what does not is not; and so after combining.
    model.combine_adapters("both", &[("default", 1.0)], &Combine::cat()).unwrap();
    for name in ["default", "both"] {
        let out = folder();
        model.save_adapter(name, &out).unwrap();
        let file = tensors(&out.path().join("adapter_model.safetensors"));
        assert!(file.contains_key(HEAD) && !file.contains_key(EMBEDDING), "{name}");
        assert_eq!(file["base_model.model.model.norm.weight"].0, [64]);
        let mut again = Tiny::load("gqa", &device);
        again.load_adapter("again", &out).unwrap();
        let expected = model.forward(tokens(&device));
        let worst = max_difference(again.forward(tokens(&device)), expected);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
    let error = model.export_adapter("default", folder()).unwrap_err().to_string();
    assert!(error.contains("lm_head") || error.contains("norm"), "{error}");
}

/// Other adapters run with the base that one has changed: it is said.
#[test]
fn a_base_that_others_use_is_not_replaced_in_silence() {
    let mut model = Tiny::load("gqa", &device());
    model.add_adapter("first", &LoraConfig::new(2, 4).targets(["up_proj"])).unwrap();
    let warnings = load(
        &mut model,
        |_| {},
        |file| {
            file.insert(HEAD.into(), weight("lm_head.weight", 0.25));
        },
    );
    let warnings = warnings.unwrap();
    assert!(warnings[0].contains("`lm_head`: first will run with it"), "{warnings:?}");
}

#[derive(Module, Debug)]
struct Tied {
    embed_tokens: AdaptedEmbedding,
    up_proj: AdaptedLinear,
    lm_head: AdaptedLinear,
}
adaptable!(Tied { embed_tokens, up_proj, lm_head });

fn tied(device: &Device) -> Tied {
    let values = |shape: [usize; 2]| {
        let count = (shape[0] * shape[1]) as i64;
        Tensor::arange(0..count, device).float().reshape(shape).sin()
    };
    let embed_tokens = AdaptedEmbedding::new(values([12, 8]));
    let weight = embed_tokens.weight.clone();
    Tied {
        embed_tokens,
        up_proj: AdaptedLinear::dense(values([8, 8]), None),
        lm_head: AdaptedLinear::new(Base::from_params(weight, None)),
    }
}

#[test]
fn a_tied_head_stays_tied_unless_the_file_has_another() {
    let device = device();
    let out = folder();
    let mut model = tied(&device);
    model.add_adapter("default", &LoraConfig::new(2, 4).targets(["up_proj"])).unwrap();
    model.save_adapter("default", &out).unwrap();
    let key = |name: &str| format!("base_model.model.{name}.weight");
    let (one, two) = ((vec![12, 8], vec![0.5f32; 96]), (vec![12, 8], vec![0.25f32; 96]));
    for (embedding, head, still) in [
        (Some(&one), None, true),
        (None, Some(&one), true),
        (Some(&one), Some(&one), true),
        (Some(&one), Some(&two), false),
    ] {
        let file = changed(
            out.path(),
            |_| {},
            |file| {
                file.extend(embedding.map(|weight| (key("embed_tokens"), weight.clone())));
                file.extend(head.map(|weight| (key("lm_head"), weight.clone())));
            },
        );
        let mut model = tied(&device);
        let (loaded, warnings) = collect(|| model.load_adapter("default", &file));
        loaded.unwrap();
        let weight = model.lm_head.base.weight.dense().unwrap();
        assert_eq!(weight.id == model.embed_tokens.weight.id, still);
        assert_eq!(warnings.len(), usize::from(!still), "{warnings:?}");
        let found = vec(weight.val())[0];
        assert_eq!(found, head.or(embedding).unwrap().1[0]);
        assert_eq!(vec(model.embed_tokens.weight.val())[0], 0.5);
        let again = folder();
        model.save_adapter("default", &again).unwrap();
        let file = tensors(&again.path().join("adapter_model.safetensors"));
        assert!(file.contains_key(&key("embed_tokens")) && file.contains_key(&key("lm_head")));
    }

    let mut model = tied(&device);
    model.add_adapter("default", &LoraConfig::new(2, 4).targets(["lm_head"])).unwrap();
    let error = model.export_adapter("default", &out).unwrap_err().to_string();
    assert!(error.contains("`lm_head` is the embedding, too"), "{error}");
}

/// Tokens were added to the base that the adapter was trained on.
#[test]
fn another_vocabulary_is_named() {
    let rows = |count: usize| (vec![count, 64], vec![0.5f32; count * 64]);
    let says = |error: String| {
        let parts = ["131", "128", "vocabulary", "resize_token_embeddings(131)"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    for key in [HEAD, EMBEDDING] {
        let mut model = Tiny::load("gqa", &device());
        let loaded = load(&mut model, |_| {}, |file| drop(file.insert(key.into(), rows(131))));
        says(loaded.unwrap_err());
        assert!(model.adapter_names().is_empty());
    }
    let mut model = Tiny::load("gqa", &device());
    let listed = |config: &mut Value| config["modules_to_save"] = json!(["embed_tokens"]);
    says(
        load(&mut model, listed, |file| drop(file.insert(EMBEDDING.into(), rows(131))))
            .unwrap_err(),
    );
    // An update of the embedding, and of the head.
    for (target, key, shape) in [
        ("embed_tokens", "base_model.model.model.embed_tokens.lora_embedding_A", vec![4, 131]),
        ("lm_head", "base_model.model.lm_head.lora_B.weight", vec![131, 4]),
    ] {
        let out = folder();
        let mut model = Tiny::load("gqa", &device());
        model.add_adapter("default", &LoraConfig::new(4, 8).targets([target])).unwrap();
        model.save_adapter("default", &out).unwrap();
        let larger = (shape, vec![0.5; 4 * 131]);
        let out = changed(out.path(), |_| {}, |file| drop(file.insert(key.into(), larger)));
        says(Tiny::load("gqa", &device()).load_adapter("default", &out).unwrap_err().to_string());
    }
    // A wrong width is no vocabulary.
    let mut model = Tiny::load("gqa", &device());
    let wide = (vec![128, 65], vec![0.5f32; 128 * 65]);
    let error = load(&mut model, |_| {}, |file| drop(file.insert(HEAD.into(), wide))).unwrap_err();
    assert!(error.contains("[128, 65]") && !error.contains("vocabulary"), "{error}");
}

#[derive(Module, Debug)]
struct Two {
    up: AdaptedLinear,
    down: AdaptedLinear,
}
adaptable!(Two { up, down });

fn two(device: &Device) -> Two {
    Two {
        up: LinearConfig::new(6, 8).init(device).into(),
        down: LinearConfig::new(8, 6).init(device).into(),
    }
}

/// The bias of the base beside that of a copy, as `bias="all"` writes it, and other names of the same.
#[test]
fn biases_beside_copies_and_under_old_names() {
    let device = device();
    let mut model = two(&device);
    let lora = LoraConfig::new(2, 4).targets(["up"]).modules_to_save(["down"]).bias(Bias::All);
    model.add_adapter("default", &lora).unwrap();
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    let key = |name: &str| format!("base_model.model.{name}");
    let written = changed(
        out.path(),
        |_| {},
        |file| {
            let own = file[&key("down.bias")].clone();
            file.insert(key("down.modules_to_save.bias"), own);
            file.insert(key("down.original_module.bias"), (vec![6], vec![0.5; 6]));
            // As it was when an adapted layer was a linear layer itself.
            let bias = file.remove(&key("up.base_layer.bias")).unwrap();
            file.insert(key("up.bias"), bias);
        },
    );
    let mut again = two(&device);
    again.load_adapter("default", &written).unwrap();
    assert_eq!(vec(again.down.base.bias.as_ref().unwrap().val()), [0.5; 6]);
    assert_eq!(
        vec(again.up.base.bias.as_ref().unwrap().val()),
        vec(model.up.base.bias.as_ref().unwrap().val())
    );
    again.save_adapter("default", &out).unwrap();
    let file = tensors(&out.path().join("adapter_model.safetensors"));
    assert_eq!(file[&key("down.original_module.bias")].1, [0.5; 6]);

    let other = |file: &mut Host| {
        file.insert(key("down.modules_to_save.bias"), (vec![6], vec![0.25; 6]));
    };
    let error = two(&device).load_adapter("default", changed(out.path(), |_| {}, other));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("are the same tensor, and differ"), "{error}");
}

/// PEFT up to 0.19.1 looked for the trained biases under another name than it gave them.
#[test]
fn biases_that_peft_left_out_are_those_of_the_base() {
    let device = device();
    let out = folder();
    let mut model = two(&device);
    let lora = LoraConfig::new(2, 4).targets(["up", "down"]);
    model.add_adapter("default", &lora.clone().bias(Bias::LoraOnly)).unwrap();
    model.save_adapter("default", &out).unwrap();
    let without = changed(out.path(), |_| {}, |file| file.retain(|key, _| !key.ends_with(".bias")));
    let mut again = two(&device);
    let (loaded, warnings) = collect(|| again.load_adapter("default", &without));
    loaded.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("PEFT up to 0.19.1 left them out"));
    // One of two is no such file.
    let one = changed(
        out.path(),
        |_| {},
        |file| {
            file.remove("base_model.model.down.base_layer.bias").unwrap();
        },
    );
    let error = two(&device).load_adapter("default", &one).unwrap_err().to_string();
    assert!(error.contains("down.base_layer.bias") && error.contains("missing"), "{error}");
}

/// Nothing is lost where the model has no biases; where it has, they would be.
#[test]
fn biases_in_an_export() {
    let lora = LoraConfig::new(2, 4).targets(["up_proj"]).bias(Bias::All);
    let mut model = Tiny::load("gqa", &device());
    model.add_adapter("default", &lora).unwrap();
    model.export_adapter("default", folder()).unwrap();
    let mut model = two(&device());
    model.add_adapter("default", &lora.targets(["up"])).unwrap();
    let error = model.export_adapter("default", folder()).unwrap_err().to_string();
    assert!(error.contains("bias of `up`"), "{error}");
}

/// How an adapter started is history, but for what it took out of the base.
#[test]
fn starts_are_repeated_only_where_the_base_changed() {
    let device = device();
    let init = |name: &str| {
        let name = name.to_owned();
        move |config: &mut Value| config["init_lora_weights"] = name.into()
    };
    let plain = {
        let mut model = Tiny::load("gqa", &device);
        load(&mut model, |_| {}, |_| {}).unwrap();
        model.forward(tokens(&device))
    };
    for name in ["gaussian", "eva", "orthogonal"] {
        let mut model = Tiny::load("gqa", &device);
        assert_eq!(load(&mut model, init(name), |_| {}), Ok(vec![]), "{name}");
        assert_eq!(max_difference(model.forward(tokens(&device)), plain.clone()), 0.0, "{name}");
    }
    let mut model = Tiny::load("gqa", &device);
    let warnings = load(&mut model, init("mica"), |_| {}).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("mica"), "{warnings:?}");
    assert_eq!(max_difference(model.forward(tokens(&device)), plain.clone()), 0.0);

    for name in ["pissa", "olora", "loftq"] {
        let mut model = Tiny::load("gqa", &device);
        load(&mut model, init(name), |_| {}).unwrap();
        assert!(max_difference(model.forward(tokens(&device)), plain.clone()) > 1e-3, "{name}");
    }
    // A random decomposition of another program cannot be repeated; nor can one without end.
    for name in ["pissa_niter_4", "pissa_niter_100000000", "pissa_niter_999999999999"] {
        let mut model = Tiny::load("gqa", &device);
        let error = load(&mut model, init(name), |_| {}).unwrap_err();
        assert!(error.contains("adapter_config.json") && error.contains("pissa_niter"), "{error}");
        assert!(model.adapter_names().is_empty());
    }
    let mut model = Tiny::load("gqa", &device);
    let error = load(&mut model, init("pissa_niter_4"), |_| {}).unwrap_err();
    assert!(error.contains("path_initial_model_for_weight_conversion"), "{error}");
    let endless = |config: &mut Value| {
        config["init_lora_weights"] = "loftq".into();
        config["loftq_config"] = json!({ "loftq_iter": 1_000_000_000 });
    };
    let error = load(&mut model, endless, |_| {}).unwrap_err();
    assert!(error.contains("adapter_config.json") && error.contains("1000000000"), "{error}");
}

/// PEFT writes the base of an adapted head as it became: it is not changed a second time.
#[test]
fn a_base_in_the_file_is_not_changed_again() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 8).targets(["lm_head"]).init(Init::Pissa);
    model.add_adapter("default", &lora).unwrap();
    let out = folder();
    model.save_adapter_as_is("default", &out).unwrap();
    let rest = vec(layer(&model, "lm_head").weight());
    let key = "base_model.model.lm_head.base_layer.weight";
    let insert = |file: &mut Host| drop(file.insert(key.into(), (vec![128, 64], rest)));
    let out = changed(out.path(), |_| {}, insert);
    let mut again = Tiny::load("gqa", &device);
    again.load_adapter("default", &out).unwrap();
    let expected = model.forward(tokens(&device));
    assert_eq!(max_difference(again.forward(tokens(&device)), expected), 0.0);
}

/// LoftQ's packed base is the same when it is made again, in as many rounds.
#[test]
fn the_base_of_loftq_is_repeated() {
    let device = device();
    let config = burn_lora_quant::QuantConfig::nf4();
    for iterations in [1, 3] {
        let mut model = Tiny::load("gqa", &device);
        let lora =
            LoraConfig::new(4, 8).targets(["q_proj"]).init(Init::Loftq { iterations, config });
        model.add_adapter("default", &lora).unwrap();
        let out = folder();
        model.save_adapter("default", &out).unwrap();
        let mut again = Tiny::load("gqa", &device);
        again.load_adapter("default", &out).unwrap();
        let path = "model.layers.1.self_attn.q_proj";
        let codes = |model: &Tiny| layer(model, path).packed().unwrap().to_packed();
        assert_eq!(codes(&again), codes(&model), "{iterations} rounds");
    }
}

/// What names nothing and changes nothing is passed over, as in PEFT; what may change something is
/// not.
#[test]
fn names_of_a_file_that_match_nothing() {
    let mut model = Tiny::load("gqa", &device());
    let more = |config: &mut Value| {
        config["target_modules"] = json!(["q_proj", "v_proj", "fused_qkv"]);
    };
    assert_eq!(load(&mut model, more, |_| {}), Ok(vec![]));
    for (field, value, part) in [
        ("exclude_modules", json!(["nope"]), "exclude_modules: `nope`"),
        ("alpha_pattern", json!({ "nope": 12 }), "alpha_pattern: `nope`"),
        ("rank_pattern", json!({ "nope": 4 }), "rank_pattern: `nope`"),
        ("layers_to_transform", json!([0, 1, 2, 9]), "layers_to_transform: `9`"),
    ] {
        let mut model = Tiny::load("gqa", &device());
        let warnings = load(&mut model, |config| config[field] = value, |_| {}).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(part), "{field}: {warnings:?}");
    }
    let mut model = Tiny::load("gqa", &device());
    let other = |config: &mut Value| config["target_modules"] = json!(["nope"]);
    let error = load(&mut model, other, |_| {}).unwrap_err();
    assert!(error.contains("adapter_config.json"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named() {
    let key = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight";
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut model = Tiny::load("gqa", &device());
        let broken = |file: &mut Host| file.get_mut(key).unwrap().1[7] = value;
        let error = load(&mut model, |_| {}, broken).unwrap_err();
        let named = error.contains("adapter_model.safetensors") && error.contains(key);
        assert!(named && error.contains(&value.to_string()), "{error}");
    }
}

/// `adapter_model.bin`, which PEFT wrote before 0.7, and still does on request.
#[test]
fn files_of_pytorch_are_read() {
    let device = device();
    let updates = |folder: &str| {
        let mut model = Tiny::load("gqa", &device);
        model.load_adapter("default", golden(folder)).unwrap();
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
            .map(|path| vec(layer(&model, path).adapters().lora("default").unwrap().delta_weight()))
    };
    let expected = updates("gqa/lora_qv");
    assert!(expected[0].iter().any(|value| *value != 0.0));
    assert_eq!(updates("torch/lora"), expected);
    assert_eq!(updates("torch/lora_legacy"), expected);
    for (found, expected) in
        updates("torch/lora_bf16").iter().flatten().zip(expected.iter().flatten())
    {
        assert!((found - expected).abs() < 1e-3 + 0.02 * expected.abs(), "{found}, {expected}");
    }
}

/// Folders that hold something else than an adapter of these days.
#[test]
fn other_folders_say_what_they_are() {
    let out = folder();
    let mut model = Tiny::load("gqa", &device());
    let mut load = || model.load_adapter("default", &out).unwrap_err().to_string();
    fs::write(out.path().join("config.json"), "{}").unwrap();
    assert!(load().contains("it is the folder of a model"));
    fs::create_dir(out.path().join("style")).unwrap();
    let config = golden("gqa").join("lora_qv/adapter_config.json");
    fs::copy(&config, out.path().join("style/adapter_config.json")).unwrap();
    assert!(load().contains("there are adapters in it: style"));

    fs::copy(&config, out.path().join("adapter_config.json")).unwrap();
    assert!(load().contains("adapter_model.safetensors"));
    // A program that would remove a file.
    fs::write(out.path().join("adapter_model.bin"), "cos\nremove\n(S'adapter_config.json'\ntR.")
        .unwrap();
    let error = load();
    assert!(error.contains("adapter_model.bin") && error.contains("torch.save"), "{error}");
    fs::copy(golden("torch").join("expanded.bin"), out.path().join("adapter_model.bin")).unwrap();
    let error = load();
    assert!(error.contains("its tensors would take 4294967296 bytes"), "{error}");

    let text = fs::read_to_string(&config).unwrap();
    for (value, part) in [("NaN", "NaN is no number"), ("-Infinity", "Infinity is no number")] {
        let text = text.replace("\"lora_alpha\": 12", &format!("\"lora_alpha\": {value}"));
        assert!(text.contains(value));
        fs::write(out.path().join("adapter_config.json"), &text).unwrap();
        let error = load();
        let named = error.contains("adapter_config.json") && error.contains("`lora_alpha`");
        assert!(named && error.contains(part), "{error}");
    }
}
