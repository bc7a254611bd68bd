//! Methods beside LoRA against peft: logits, loss, every gradient, files, merging
//! (testdata/methods/make.py).

use crate::{
    common::*,
    golden::{check, loader},
};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{FloatDType, Gradients, Tensor},
};
use burn_lora_adapter::{
    Adaptable, AdaptableExt, FrozenLayer, LoraConfig, PackedMerge, Selection, Targets,
    TrainableTokensConfig, VeraConfig,
};
use burn_lora_llama::Llama;
use std::collections::{BTreeMap, BTreeSet};

const CASES: [(&str, &str); 7] = [
    ("gqa", "vera"),
    ("gqa", "vera_key"),
    ("gqa", "tokens"),
    ("llama3", "tokens"),
    ("llama3", "lora_tokens"),
    ("gqa", "lora_tokens"),
    ("gqa", "lorafa"),
];

fn load(variant: &str, case: &str) -> Llama {
    let mut model = loader(&golden(variant)).load(&device()).unwrap();
    model.load_adapter("default", golden("methods").join(variant).join(case)).unwrap();
    model
}

/// Gradients of the parameters of an update, by field.
struct Grads<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: BTreeMap<String, (ParamId, Option<Vec<f32>>)>,
}

impl ModuleVisitor for Grads<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.grads).map(vec);
        self.found.insert(self.path.join("."), (param.id, grad));
    }
}

#[test]
fn methods_agree() {
    for (variant, case) in CASES {
        let mut model = load(variant, case).train();
        if case == "lorafa" {
            model.freeze_a("default").unwrap();
        }
        let (what, folder) =
            (format!("{variant}/{case}"), golden("methods").join(variant).join(case));
        let io = folder.join("io.safetensors");
        let grads = check(&model, &golden(variant), &io, &device(), &what).backward();
        let io = tensors(&io);
        // A parameter that layers share has a part of its gradient at each.
        let (mut sums, mut names) = (BTreeMap::<ParamId, Vec<f32>>::new(), vec![]);
        for (path, layer) in model.layers() {
            let Some(adapter) = layer.adapters().get("default") else { continue };
            let mut found = Grads { path: vec![], grads: &grads, found: BTreeMap::new() };
            adapter.update().visit(&mut found);
            for (id, grad) in found.found.values() {
                let Some(grad) = grad else { continue };
                let sum = sums.entry(*id).or_insert_with(|| vec![0.0; grad.len()]);
                sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
            }
            for tensor in adapter.tensors().iter().filter(|tensor| tensor.is_trained()) {
                let name = format!("grad.base_model.model.{path}.{}", tensor.keys[0]);
                names.push((name, found.found[tensor.field].0));
            }
        }
        let mut compared = BTreeSet::new();
        for (name, id) in names {
            let Some(grad) = sums.get(&id) else { continue };
            let found = relative(grad, &io[&name].1);
            assert!(found < 1e-4, "{what}: {name} differs by {found}");
            compared.insert(name);
        }
        let expected = io.keys().filter(|name| name.starts_with("grad.")).cloned().collect();
        assert_eq!(compared, expected, "{what}");
    }
}

/// What is saved has the names, the shapes and the values that PEFT wrote, and its settings.
#[test]
fn files_of_methods_are_those_of_peft() {
    for (variant, case) in CASES {
        let folder = golden("methods").join(variant).join(case);
        let model = load(variant, case);
        let out = tempfile::tempdir().unwrap();
        model.save_adapter("default", out.path()).unwrap();
        let read = |folder: &std::path::Path| tensors(&folder.join("adapter_model.safetensors"));
        assert_eq!(read(out.path()), read(&folder), "{variant}/{case}");
        let settings = |folder: &std::path::Path| {
            let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
            serde_json::from_str::<BTreeMap<String, serde_json::Value>>(&text).unwrap()
        };
        let (ours, theirs) = (settings(out.path()), settings(&folder));
        for name in ours.keys().chain(theirs.keys()) {
            // A string that a regular expression matches, and names that it matched.
            if name != "target_modules" {
                assert_eq!(ours.get(name), theirs.get(name), "{variant}/{case}: {name}");
            }
        }
    }
}

#[test]
fn methods_merge_and_unmerge() {
    for (variant, case) in CASES {
        let mut model = load(variant, case);
        let (tokens, segments, _) = batch(variant, &device());
        let logits = |model: &Llama| vec(model.forward(tokens.clone(), &segments));
        let weights = |model: &Llama| -> Vec<f32> {
            model.layers().into_iter().flat_map(|(_, layer)| vec(layer.weight())).collect()
        };
        let (adapted, before) = (logits(&model), weights(&model));
        model.merge(PackedMerge::Dense(FloatDType::F32)).unwrap();
        let found = difference(&logits(&model), &adapted);
        assert!(found < 1e-4, "{variant}/{case}: merged, logits differ by {found}");
        let tied = |model: &Llama| {
            let id = |layer: &dyn FrozenLayer| layer.weight_param().map(|param| param.id);
            id(&model.model.embed_tokens) == id(&model.lm_head)
        };
        assert_eq!(tied(&model), variant == "llama3", "{variant}/{case}: tied after a merge");
        model.unmerge();
        let found = difference(&weights(&model), &before);
        assert!(found < 1e-6, "{variant}/{case}: unmerged, weights differ by {found}");
        assert_eq!(tied(&model), variant == "llama3", "{variant}/{case}: tied after unmerging");
        assert!(difference(&logits(&model), &adapted) < 1e-4, "{variant}/{case}: unmerged");
        model.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
        assert!(difference(&logits(&model), &adapted) < 1e-4, "{variant}/{case}: unloaded");
    }
}

/// A new adapter draws the matrices that PEFT draws.
#[test]
fn projections_are_drawn_as_in_peft() {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    let vera = VeraConfig {
        r: 6,
        target_modules: Some(Targets::from(["q_proj", "v_proj", "down_proj"])),
        ..Default::default()
    };
    model.add_adapter("default", &vera).unwrap();
    let out = tempfile::tempdir().unwrap();
    model.save_adapter("default", out.path()).unwrap();
    let read = |folder: &std::path::Path| tensors(&folder.join("adapter_model.safetensors"));
    let (ours, theirs) = (read(out.path()), read(&golden("methods/gqa/vera")));
    for name in ["base_model.vera_A", "base_model.vera_B"] {
        assert_eq!(ours[name].0, theirs[name].0, "{name}");
        assert!(ours[name].1 == theirs[name].1, "{name}");
    }
    // It starts as its base, and A and B are in memory once.
    let (tokens, segments, _) = batch("gqa", &device());
    let run = |model: &Llama| vec(model.forward(tokens.clone(), &segments));
    let base = model.with_selection(Selection::base(), run).unwrap();
    assert_eq!(run(&model), base);
    let [q, v, down] = [64 + 6, 32 + 6, 64 + 6];
    let summary = model.summary();
    assert_eq!(summary.trainable, 3 * (q + v + down));
    assert_eq!(summary.adapter_bytes, 4 * (summary.trainable + 6 * 160 + 64 * 6));
}

/// Each row of a batch has its own adapter, of any method.
#[test]
fn rows_may_have_other_methods() {
    let mut model = load("gqa", "vera");
    for case in ["tokens", "lora_tokens", "lorafa"] {
        model.load_adapter(case, golden("methods/gqa").join(case)).unwrap();
    }
    let (tokens, segments, _) = batch("gqa", &device());
    let of = |model: &Llama, row: usize| {
        let logits = model.forward(tokens.clone(), &segments);
        vec(logits.narrow(0, row, 1))
    };
    let names = ["tokens", "default", "lora_tokens"];
    let mixed: Vec<_> = (0..3)
        .map(|row| model.with_selection(Selection::rows(names), |m| of(m, row)).unwrap())
        .collect();
    for (row, name) in names.into_iter().enumerate() {
        let alone = model.with_selection(Selection::adapters([name]), |m| of(m, row)).unwrap();
        assert!(difference(&mixed[row], &alone) < 1e-5, "{name}");
    }
}

#[test]
fn what_a_method_cannot_do_is_said() {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    let error = |result: Result<_, burn_lora_adapter::AdapterError>| match result {
        Ok(()) => panic!("it works"),
        Err(error) => error.to_string(),
    };
    let tokens = |list: &[usize]| TrainableTokensConfig {
        token_indices: list.to_vec(),
        ..Default::default()
    };
    for (list, expected) in [
        (vec![], "TrainableTokensConfig: token_indices is empty"),
        (vec![3, 4, 3], "token 3 is there twice"),
        (vec![3, 128], "it has no token 128: its vocabulary has 128 tokens"),
    ] {
        let found = error(model.add_adapter("x", &tokens(&list)).map(drop));
        assert!(found.contains(expected), "{found}");
    }
    let vera = |names: &[&str]| VeraConfig {
        target_modules: Some(Targets::Names(names.iter().map(|n| (*n).to_owned()).collect())),
        ..Default::default()
    };
    let found = error(model.add_adapter("x", &vera(&["embed_tokens"])).map(drop));
    assert!(found.contains("VeRA adapts linear layers only"), "{found}");
    let found = error(model.add_adapter("x", &VeraConfig { r: 0, ..vera(&["q_proj"]) }).map(drop));
    assert!(found.contains("VeraConfig: r is 0"), "{found}");
    let both = LoraConfig::new(2, 4).targets(["embed_tokens", "q_proj"]).trainable_tokens([5]);
    let found = error(model.add_adapter("x", &both).map(drop));
    assert!(found.contains("in target_modules and in trainable_token_indices"), "{found}");

    model.add_adapter("one", &tokens(&[3, 4])).unwrap();
    model.add_adapter("two", &tokens(&[4, 5])).unwrap();
    let found = error(model.select(Selection::adapters(["one", "two"])));
    assert!(found.contains("both train token 4"), "{found}");
    let out = tempfile::tempdir().unwrap();
    let found = error(model.export_adapter("one", out.path()));
    assert!(found.contains("knows TRAINABLE_TOKENS: merge it instead"), "{found}");
}
