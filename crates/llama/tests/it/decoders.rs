//! Families that are composed in other ways than Llama, against transformers
//! (testdata/decoders/make.py): logits, loss, and the gradient of every parameter.

use crate::common::*;
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{FloatDType, Gradients, Tensor},
};
use burn_lora_adapter::{Adaptable, AdaptableExt, Init, LoraConfig};
use burn_lora_kernels::pull_back;
use burn_lora_llama::{
    CausalLm, ConfigDefaults, ConfigFields, Keep, Llama, LlamaConfig, LlamaError, ModelFamily,
    Rerun, RopeScaling,
    spec::{FeedForwardSpec, LayerSpec},
};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

pub const FAMILIES: [&str; 7] =
    ["gemma3", "phi3", "phi4_mini", "mixtral", "qwen3_moe", "qwen3_moe_plain", "gpt_oss"];

pub fn folder(family: &str) -> PathBuf {
    golden("decoders").join(family)
}

pub fn load(family: &str) -> Llama {
    let loader = Llama::from_pretrained(folder(family)).family(&Granite);
    loader.dtype(FloatDType::F32).load(&device()).unwrap()
}

/// A family of a crate outside: Llama with four factors.
#[derive(Debug)]
struct Granite;

impl ModelFamily for Granite {
    fn model_type(&self) -> &'static str {
        "granite"
    }

    fn class(&self) -> &'static str {
        "GraniteForCausalLM"
    }

    fn config(&'static self, fields: &ConfigFields<'_>) -> Result<LlamaConfig, LlamaError> {
        let reads = &["residual_multiplier", "logits_scaling"];
        let defaults = ConfigDefaults { reads, ..ConfigDefaults::default() };
        let mut config = LlamaConfig::uniform(self, fields, &defaults)?;
        let factor = |name: &str| Ok::<_, LlamaError>(fields.positive(name)?.unwrap());
        config.embedding_multiplier = factor("embedding_multiplier")?;
        config.logits_scaling = factor("logits_scaling")?;
        let attention = factor("attention_multiplier")?;
        let residual = factor("residual_multiplier")?;
        config.each_layer(|layer| {
            layer.attention.scale = attention as f32;
            layer.residual_multiplier = residual;
        });
        Ok(config)
    }
}

/// Gradients of all parameters, by their names in checkpoints.
struct Read<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    /// Name of the router.
    router: &'a str,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".").replace(".base.", ".").replace("weight.weight", "weight");
        // A field of another name than the layer's path.
        let path = path.replace(".experts.router.", &format!(".mlp.{}.", self.router));
        let path = path.replace(".experts.experts.", ".mlp.experts.");
        let Some(grad) = param.val().grad(self.gradients) else { return };
        self.found.insert(path, vec(grad));
    }
}

/// Gradients of a model's parameters, by the names of a checkpoint, which has some of them in parts,
/// and those of all experts in one.
fn stored(model: &Llama, found: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    let mut grads = BTreeMap::<String, Vec<f32>>::new();
    for tensor in model.config.tensors() {
        let kind = if tensor.name.ends_with(".bias") { "bias" } else { "weight" };
        // A packed weight has none.
        let Some(all) = found.get(&format!("{}.{kind}", tensor.layer)) else { continue };
        let width: usize = tensor.shape[1..].iter().product();
        let rows = &all[tensor.start * width..(tensor.start + tensor.shape[0]) * width];
        let name = model.config.family.stored_name(&tensor.name).into_owned();
        match name.split_once(".experts.").filter(|_| model.config.family.stacked_experts()) {
            None => {
                grads.insert(name, rows.to_vec());
            }
            Some((module, rest)) => {
                // Fewer than ten experts, which are in order.
                let (parameter, suffix) = match kind {
                    "bias" => (rest[2..].trim_end_matches(".bias"), "_bias"),
                    _ => (rest[2..].trim_end_matches(".weight"), ""),
                };
                let stack = grads.entry(format!("{module}.experts.{parameter}{suffix}"));
                let columns = (0..width).flat_map(|at| rows[at..].iter().step_by(width));
                stack.or_default().extend(columns);
            }
        }
    }
    grads
}

/// Compares logits, losses and all gradients of a family.
fn check(family: &str, more: &[&str]) {
    for io in more {
        compare(&load(family), &folder(family).join(io));
    }
    let model = load(family).train().set_require_grad(true);
    let gradients = compare(&model, &folder(family).join("io.safetensors")).backward();
    let router = model.config.layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Experts(experts) => Some(experts.router.name),
        FeedForwardSpec::Gated(_) => None,
    });
    let router = router.unwrap_or_default();
    let mut read = Read { gradients: &gradients, path: vec![], router, found: BTreeMap::new() };
    model.visit(&mut read);
    if model.config.tie_word_embeddings {
        // One parameter, in two places of the graph.
        let head = read.found.remove("lm_head.weight").unwrap();
        let embedding = read.found.get_mut("model.embed_tokens.weight").unwrap();
        embedding.iter_mut().zip(head).for_each(|(sum, head)| *sum += head);
    }
    let found = stored(&model, read.found);
    let expected = tensors(&folder(family).join("grads.safetensors"));
    assert!(found.keys().eq(expected.keys()), "{family}: {:?}", found.keys());
    for (name, (_, expected)) in &expected {
        let found = relative(&found[name], expected);
        assert!(found < 1e-4, "{family}: the gradient of {name} differs by {found}, relatively");
    }
}

/// Compares logits, losses and all gradients of an adapter of a family.
fn check_adapter(family: &str, adapter: &str) {
    let folder = folder(family).join(adapter);
    let mut model = load(family);
    model.load_adapter("default", &folder).unwrap();
    let model = model.train();
    let gradients = compare(&model, &folder.join("io.safetensors")).backward();
    let mut found = BTreeMap::new();
    for (path, layer) in model.layers() {
        let Some(lora) = layer.adapters().lora("default") else { continue };
        for (name, param) in [("lora_A", &lora.lora_a), ("lora_B", &lora.lora_b)] {
            // Of an expert that no token went through.
            let zeros = || vec![0.0; param.val().shape().num_elements()];
            let grad = param.val().grad(&gradients).map_or_else(zeros, vec);
            found.insert(
                format!("base_model.model.{path}.{name}.weight"),
                (param.shape().dims(), grad),
            );
        }
    }
    let found = stacked(found);
    let expected = tensors(&folder.join("grads.safetensors"));
    assert!(found.keys().eq(expected.keys()), "{family}: {:?}", found.keys());
    for (name, (_, expected)) in &expected {
        let found = relative(&found[name], expected);
        assert!(found < 1e-4, "{family}: the gradient of {name} differs by {found}, relatively");
    }

    // Saved again, it is the same.
    let out = tempfile::tempdir().unwrap();
    model.save_adapter("default", out.path()).unwrap();
    let [ours, theirs] = [out.path(), &folder].map(|folder| {
        let settings = std::fs::read(folder.join("adapter_config.json")).unwrap();
        let settings: Value = serde_json::from_slice(&settings).unwrap();
        let names = |field: &str| settings[field].as_array().cloned().unwrap_or_default();
        (tensors(&folder.join("adapter_model.safetensors")), names("target_parameters"))
    });
    assert!(ours == theirs, "{family}");
}

/// Shape and values.
type Matrix = ([usize; 2], Vec<f32>);

/// Gradients as a file of PEFT's has the parameters: those of experts are stacked, A by expert, B by rank.
fn stacked(found: BTreeMap<String, Matrix>) -> BTreeMap<String, Vec<f32>> {
    let mut grads = BTreeMap::new();
    let mut experts: BTreeMap<String, Vec<Matrix>> = BTreeMap::new();
    for (name, grad) in found {
        match name.split_once(".experts.") {
            None => {
                grads.insert(name, grad.1);
            }
            Some((module, rest)) => {
                // Fewer than ten experts, which are in order.
                let (_, rest) = rest.split_once('.').unwrap();
                let inner = if rest.starts_with("gate_up") { "base_layer." } else { "" };
                let (_, rest) = rest.split_once('.').unwrap();
                experts.entry(format!("{module}.experts.{inner}{rest}")).or_default().push(grad);
            }
        }
    }
    for (name, parts) in experts {
        let [rows, columns] = parts[0].0;
        let values = if name.contains("lora_A") {
            parts.into_iter().flat_map(|part| part.1).collect()
        } else {
            let at =
                |row: usize, column: usize| parts.iter().map(move |p| p.1[row * columns + column]);
            (0..rows)
                .flat_map(|row| {
                    (0..columns).flat_map(move |column| at(row, column).collect::<Vec<_>>())
                })
                .collect()
        };
        grads.insert(name, values);
    }
    grads
}

#[test]
fn gemma3_agrees() {
    check("gemma3", &[]);
    check_adapter("gemma3", "lora");
}

#[test]
fn phi3_agrees() {
    check("phi3", &[]);
    check_adapter("phi3", "lora");
    check("phi4_mini", &["io_short.safetensors", "io_padded.safetensors"]);
}

#[test]
fn mixtral_agrees() {
    check("mixtral", &[]);
    check_adapter("mixtral", "lora_experts");
}

#[test]
fn qwen3_moe_agrees() {
    check("qwen3_moe", &[]);
    check_adapter("qwen3_moe", "lora_experts");
    check("qwen3_moe_plain", &[]);
}

#[test]
fn gpt_oss_agrees() {
    check("gpt_oss", &[]);
    check_adapter("gpt_oss", "lora_experts");
    check("gpt_oss_mxfp4", &[]);
    check_adapter("gpt_oss_mxfp4", "lora_experts");
}

#[test]
fn gradients_of_a_layer_that_is_run_again_are_the_same() {
    for family in FAMILIES.into_iter().chain(["granite"]) {
        for adapter in [None, Some(LoraConfig::new(2, 4)), Some(LoraConfig::new(2, 4).dora(true))] {
            let mut model = load(family);
            if let Some(lora) = adapter {
                model.add_adapter("default", &lora.all_linear().init(Init::Random)).unwrap();
            }
            let model = model.train();
            let (tokens, segments, _) = batch_of(&folder(family).join("io.safetensors"), &device());
            let context = model.context(&segments);
            let hidden = model.embed(tokens, &context);
            let grad = hidden.clone().inner() * 0.3 + 0.1;
            for layer in 0..model.depth() {
                let run = |how: Option<Rerun>| {
                    let x = hidden.clone().inner().autodiff().require_grad();
                    let plain = model.valid();
                    let mut sums = BTreeMap::<usize, Vec<f32>>::new();
                    let mut add = |grads: Gradients| {
                        let adapters = model.layers().into_iter();
                        let loras = adapters.filter_map(|(_, l)| l.adapters().lora("default"));
                        let params = loras.flat_map(|lora| [&lora.lora_a, &lora.lora_b]);
                        for (number, param) in params.enumerate() {
                            let Some(grad) = param.val().grad(&grads) else { continue };
                            let grad = vec(grad);
                            let sum = sums.entry(number).or_insert_with(|| vec![0.0; grad.len()]);
                            sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
                        }
                    };
                    let zero = match how {
                        None => pull_back(model.layer(layer, x.clone(), &context), grad.clone()),
                        Some(how) => {
                            let values = x.clone().inner();
                            let (_, kept) = plain.layer_once(layer, values, &context, how);
                            let empty = kept.attention.is_empty() && kept.feed_forward.is_empty();
                            assert!(how.keep != Keep::Inputs || empty);
                            let all = how.keep == Keep::All && model.keeps(layer, &context);
                            assert_eq!(!kept.feed_forward.is_empty(), all, "{family}");
                            let (x, grad) = (x.clone(), grad.clone());
                            model.layer_pull_back(layer, x, &context, grad, kept, how, &mut add)
                        }
                    };
                    let grads = zero.backward();
                    let of_x = vec(x.grad(&grads).unwrap());
                    add(grads);
                    sums.insert(usize::MAX, of_x);
                    sums
                };
                let expected = run(None);
                for keep in [Keep::Inputs, Keep::Outputs, Keep::Attention, Keep::All] {
                    // Gradients of x are added in another order.
                    let found = run(Some(Rerun { keep, tile: None }));
                    // The last tile is smaller.
                    let tiled = run(Some(Rerun { keep, tile: Some(5) }));
                    for (number, values) in &expected {
                        let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
                        for found in [&found[number], &tiled[number]] {
                            let pairs = found.iter().zip(values);
                            let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                            assert!(off < 1e-5 * norm.max(1.0), "{family}, layer {layer}: {off}");
                        }
                    }
                }
            }
        }
    }
}

/// Layers of most families go backward without a graph; not with DoRA, dropout or a trained bias.
#[test]
fn layers_that_keep_all() {
    for family in FAMILIES.into_iter().chain(["granite"]) {
        let context = |model: &Llama| {
            let (_, segments, _) = batch_of(&folder(family).join("io.safetensors"), &device());
            model.context(&segments)
        };
        let keeps = |lora: Option<LoraConfig>| {
            let mut model = load(family);
            if let Some(lora) = lora {
                model.add_adapter("default", &lora.all_linear()).unwrap();
            }
            let (model, context) = (model.clone().train(), context(&model));
            (0..model.depth()).all(|layer| model.keeps(layer, &context))
        };
        let expected = load(family).config.layers.iter().all(LayerSpec::can_keep_all);
        assert_eq!([keeps(None), keeps(Some(LoraConfig::new(2, 4)))], [expected; 2], "{family}");
        assert!(!keeps(Some(LoraConfig::new(2, 4).dora(true))), "{family}");
        assert!(!keeps(Some(LoraConfig::new(2, 4).dropout(0.1))), "{family}");
    }
}

#[test]
fn a_family_of_another_crate_agrees() {
    check("granite", &[]);
}

#[test]
fn defaults_of_gpt_oss() {
    let config = LlamaConfig::from_json(r#"{ "model_type": "gpt_oss" }"#).unwrap();
    let FeedForwardSpec::Experts(experts) = &config.layers[1].feed_forward else { panic!() };
    assert_eq!((config.layers.len(), experts.num_experts, experts.experts_per_token), (36, 128, 4));
    assert_eq!(config.layers[0].attention.window, Some(128));
    assert_eq!(config.layers[1].attention.window, None);
    assert!(matches!(config.ropes[0].scaling, RopeScaling::Yarn { factor: 32.0, .. }));
    let json = r#"{ "model_type": "gpt_oss", "swiglu_alpha": 1.5 }"#;
    assert!(LlamaConfig::from_json(json).unwrap_err().to_string().contains("only 1.702"));
}

#[test]
fn older_keys_mean_the_same() {
    for family in FAMILIES.into_iter().chain(["gpt_oss_mxfp4"]) {
        let new = LlamaConfig::from_file(folder(family).join("config.json")).unwrap();
        let mut old = LlamaConfig::from_file(folder(family).join("config_old.json")).unwrap();
        old.raw = new.raw.clone();
        assert_eq!(old, new, "{family}");
    }
}
