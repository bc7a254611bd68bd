//! Families that are composed in other ways than Llama, against transformers
//! (testdata/decoders/make.py): logits, loss, and the gradient of every parameter.

use crate::common::*;
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{FloatDType, Gradients, Tensor, activation::log_softmax},
};
use burn_lora_adapter::{Adaptable, AdaptableExt, BASE, Init, LoraConfig, Selection};
use burn_lora_llama::{Llama, LlamaConfig, RopeScaling, SaveOptions, spec::FeedForwardSpec};
use burn_lora_quant::QuantConfig;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

const FAMILIES: [&str; 7] =
    ["gemma3", "phi3", "phi4_mini", "mixtral", "qwen3_moe", "qwen3_moe_plain", "gpt_oss"];

fn folder(family: &str) -> PathBuf {
    golden("decoders").join(family)
}

fn load(family: &str) -> Llama {
    Llama::from_pretrained(folder(family)).dtype(FloatDType::F32).load(&device()).unwrap()
}

/// Runs the batch of a file, compares its logits and its loss, and returns the loss.
fn run(model: &Llama, path: &Path) -> Tensor<1> {
    let (tokens, segments, labels) = batch_of(path, &device());
    let io = tensors(path);
    let logits = model.forward(tokens, &segments);

    let [_, length, vocabulary] = logits.dims();
    let mask = &io["attention_mask"].1;
    let real = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(vocabulary).zip(mask).filter(|(_, mask)| **mask != 0.0);
        rows.flat_map(|(row, _)| row.iter().copied()).collect()
    };
    let found = difference(&real(&vec(logits.clone())), &real(&io["logits"].1));
    assert!(found < 1e-4, "{}: logits differ by {found}", path.display());

    let targets = (0..labels.len() - 1).filter(|at| at % length != length - 1).filter_map(|at| {
        let target = usize::try_from(labels[at + 1]).ok()?;
        Some((at * vocabulary + target) as i32)
    });
    let targets: Vec<i32> = targets.collect();
    let count = targets.len();
    let log = log_softmax(logits, 2).reshape([-1]);
    let loss = -log.select(0, int(targets, [count], &device())).mean();
    let found = (vec(loss.clone())[0] - io["loss"].1[0]).abs();
    assert!(found < 1e-5, "{}: the loss differs by {found}", path.display());
    loss
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
        run(&load(family), &folder(family).join(io));
    }
    let model = load(family).train().set_require_grad(true);
    let gradients = run(&model, &folder(family).join("io.safetensors")).backward();
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
    let gradients = run(&model, &folder.join("io.safetensors")).backward();
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

/// Experts in MXFP4 stay as they are stored, whatever else is quantized; saved, they are dense.
#[test]
fn mxfp4_stays() {
    let folder = folder("gpt_oss_mxfp4");
    let loader = Llama::from_pretrained(&folder).dtype(FloatDType::F32);
    let model = loader.clone().load(&device()).unwrap();
    let mxfp4 = model.config.stored_format().unwrap();
    let quantized = loader.quantize(QuantConfig::nf4()).load(&device()).unwrap();
    for ((path, a), (_, b)) in model.layers().into_iter().zip(quantized.layers()) {
        let expert = path.contains(".experts.");
        assert_eq!(a.is_quantized(), expert, "{path}");
        assert_eq!(b.is_quantized(), expert || path.contains("_proj"), "{path}");
        let stored = model.config.is_stored_quantized(&path);
        assert!(stored == expert || path.ends_with("norm"), "{path}");
    }
    let experts = |model: &Llama| {
        let mixture = model.model.layers[0].experts.as_ref().unwrap().experts[3].clone();
        [mixture.gate_up_proj.unwrap(), mixture.down_proj].map(|layer| layer.base.weight)
    };
    for (a, b) in experts(&model).iter().zip(&experts(&quantized)) {
        assert_eq!(mxfp4.bytes(a.shape()), a.bytes());
        assert_eq!(vec(a.dequantize(FloatDType::F32)), vec(b.dequantize(FloatDType::F32)));
    }

    let out = tempfile::tempdir().unwrap();
    model.save_pretrained(out.path(), &SaveOptions::new()).unwrap();
    let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device()).unwrap();
    assert!(!again.config.quantized);
    run(&again, &folder.join("io.safetensors"));
}

/// Damaged stacks and scales are named.
#[test]
fn stacks_that_do_not_fit_are_refused() {
    let changed = |family: &str, name: &str, shape: Vec<usize>, byte: Option<u8>| {
        let out = tempfile::tempdir().unwrap();
        let config = folder(family).join("config.json");
        std::fs::copy(config, out.path().join("config.json")).unwrap();
        let file = std::fs::read(folder(family).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let view = file.tensor(name).unwrap();
        let size: usize = view.data().len() / view.shape().iter().product::<usize>();
        let mut data = view.data()[..shape.iter().product::<usize>() * size].to_vec();
        if let Some(byte) = byte {
            data[5] = byte;
        }
        let new = safetensors::tensor::TensorView::new(view.dtype(), shape, &data).unwrap();
        let all = file.iter().map(|(other, view)| {
            (other.to_owned(), if other == name { new.clone() } else { view })
        });
        let path = out.path().join("model.safetensors");
        safetensors::serialize_to_file(all.collect::<Vec<_>>(), None, &path).unwrap();
        let error = Llama::from_pretrained(out.path()).load(&device()).unwrap_err().to_string();
        assert!(error.contains("safetensors"), "{error}");
        error
    };
    let experts = "model.layers.1.mlp.experts";
    let down = format!("{experts}.down_proj");
    for shape in [vec![3, 16, 32], vec![4, 16 * 32]] {
        let error = changed("gpt_oss", &down, shape, None);
        assert!(error.contains(&format!("`{down}` is [")), "{error}");
    }
    let error = changed("gpt_oss", &down, vec![4, 15, 32], None);
    assert!(
        error.contains("experts.0.down_proj.weight` is [32, 15], expected [32, 16]"),
        "{error}"
    );
    let scales = format!("{experts}.gate_up_proj_scales");
    let error = changed("gpt_oss_mxfp4", &scales, vec![4, 192, 2], Some(255));
    assert!(
        error.contains("experts.0.gate_up_proj.weight`: the scale of block 5 is 255"),
        "{error}"
    );
    let error = changed("gpt_oss_mxfp4", &scales, vec![4, 190, 2], None);
    assert!(error.contains("[190, 2], expected [192, 2]"), "{error}");
    let blocks = format!("{experts}.gate_up_proj_blocks");
    let error = changed("gpt_oss_mxfp4", &blocks, vec![4, 192, 2, 8], None);
    assert!(error.contains("[192, 2, 8], expected [192, 2, 16]"), "{error}");
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

/// What is saved has the names that it was read under, and the same logits.
#[test]
fn saved_models_are_the_same() {
    for family in FAMILIES {
        let model = load(family);
        let out = tempfile::tempdir().unwrap();
        let options = SaveOptions::new().dtype(FloatDType::F32);
        model.save_pretrained(out.path(), &options).unwrap();
        let [found, expected] = [out.path().to_owned(), folder(family)]
            .map(|folder| tensors(&folder.join("model.safetensors")));
        assert!(found.keys().eq(expected.keys()), "{family}: {:?}", found.keys());
        assert!(found == expected, "{family}");
        let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device());
        run(&again.unwrap(), &folder(family).join("io.safetensors"));
    }
}

/// Quantized on loading, the decoder's linear layers are packed, and no others.
#[test]
fn linear_layers_are_quantized() {
    for family in FAMILIES {
        let loader = Llama::from_pretrained(folder(family)).quantize(QuantConfig::nf4());
        let model = loader.load(&device()).unwrap();
        let quantizable: BTreeSet<_> =
            model.config.tensors().into_iter().filter(|t| t.quantizable).map(|t| t.layer).collect();
        for (path, layer) in model.layers() {
            assert_eq!(layer.is_quantized(), quantizable.contains(&path), "{family}: {path}");
        }
    }
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

/// A model of its own, or the text part of one with a vision tower, under each name that such files
/// have had.
#[test]
fn the_text_part_of_a_multimodal_model_is_read() {
    let text = folder("gemma3");
    let expected = load("gemma3");
    let tensors = std::fs::read(text.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    let json: Value =
        serde_json::from_slice(&std::fs::read(text.join("config.json")).unwrap()).unwrap();
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": json, "vision_config": {},
    });
    for prefix in ["language_model.model.", "model.language_model."] {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("config.json"), config.to_string()).unwrap();
        let mut named: Vec<_> =
            tensors.iter().map(|(name, view)| (name.replacen("model.", prefix, 1), view)).collect();
        let (_, some) = tensors.iter().next().unwrap();
        named.push(("vision_tower.patch.weight".into(), some.clone()));
        named.push(("model.multi_modal_projector.weight".into(), some));
        safetensors::serialize_to_file(named, None, &other.path().join("model.safetensors"))
            .unwrap();
        let found = Llama::from_pretrained(other.path()).load(&device()).unwrap();
        assert_eq!(found.config, expected.config, "{prefix}");
        let [a, b] = [&found, &expected].map(|model| vec(model.model.embed_tokens.weight.val()));
        assert_eq!(a, b, "{prefix}");
    }
}

/// llama.cpp's names and metadata mean the same model.
#[test]
fn gguf_files_agree() {
    for family in ["gemma3_gguf", "phi4_mini", "mixtral", "qwen3_moe_gguf"] {
        let loader = Llama::from_pretrained(folder(family).join("model.gguf"));
        let model = loader.dtype(FloatDType::F32).load(&device()).unwrap();
        run(&model, &folder(family).join("io.safetensors"));
        let theirs = LlamaConfig::from_file(folder(family).join("config.json")).unwrap();
        // Metadata are float32.
        let rounded = |mut config: LlamaConfig| {
            for rope in &mut config.ropes {
                if let RopeScaling::LongRope { attention_factor, .. } = &mut rope.scaling {
                    *attention_factor = f64::from(*attention_factor as f32);
                }
            }
            LlamaConfig { raw: Value::Null, ..config }
        };
        assert_eq!(rounded(model.config), rounded(theirs), "{family}");
    }
}

/// What PEFT cannot do with experts is refused, and what names none of them.
#[test]
fn settings_for_experts_are_checked() {
    let lora =
        || LoraConfig::new(2, 4).targets(["o_proj"]).target_parameters(["experts.down_proj"]);
    let error = |family: &str, lora: LoraConfig| {
        load(family).add_adapter("default", &lora).unwrap_err().to_string()
    };
    assert!(error("mixtral", lora().dropout(0.1)).contains("dropout"));
    assert!(error("mixtral", lora().dora(true)).contains("DoRA"));
    assert!(error("phi3", lora()).contains("the model has no experts"));
    let wrong = error("mixtral", lora().target_parameters(["experts.up_proj"]));
    assert!(wrong.contains("model.layers.0.mlp.experts.down_proj"), "{wrong}");

    // As in PEFT, experts are none of `all-linear`, and the router is neither.
    let mut model = load("mixtral");
    let report = model.add_adapter("default", &LoraConfig::new(2, 4).all_linear()).unwrap();
    assert!(report.adapted.iter().all(|path| path.contains("self_attn")), "{report:?}");
}

/// Rows of a batch with other adapters each, on experts too, have what each has alone.
#[test]
fn rows_may_have_other_adapters() {
    let mut model = load("mixtral");
    model.load_adapter("theirs", folder("mixtral").join("lora_experts")).unwrap();
    let lora = LoraConfig::new(2, 4).targets(["o_proj"]).target_parameters(["experts.down_proj"]);
    model.add_adapter("ours", &lora.init(Init::Random)).unwrap();
    let (tokens, segments, _) = batch_of(&folder("mixtral").join("io.safetensors"), &device());
    let run = |selection: Selection| {
        let segments = segments.clone().with_adapters(model.activate(selection).unwrap());
        model.forward(tokens.clone(), &segments)
    };
    let rows = ["ours", BASE, "theirs"];
    let mixed = run(Selection::rows(rows));
    for (row, name) in rows.into_iter().enumerate() {
        let alone = match name {
            BASE => run(Selection::base()),
            name => run(Selection::adapters([name])),
        };
        let [found, expected] = [&mixed, &alone].map(|all| vec(all.clone().narrow(0, row, 1)));
        assert!(difference(&found, &expected) < 1e-5, "{name}");
    }
}
