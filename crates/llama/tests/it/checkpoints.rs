//! Checkpoints of families that are composed in other ways than Llama: reading, quantizing and saving them.

use crate::{
    common::*,
    decoders::{FAMILIES, folder, load},
};
use burn::tensor::{DType, FloatDType, TensorData};
use burn_lora_adapter::Adaptable;
use burn_lora_llama::{Llama, LlamaConfig, LlamaError, RopeScaling, SaveOptions, Source};
use burn_lora_quant::QuantConfig;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

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
    compare(&again, &folder.join("io.safetensors"));
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
        compare(&again.unwrap(), &folder(family).join("io.safetensors"));
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
        compare(&model, &folder(family).join("io.safetensors"));
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

/// A source of one's own, under the names of checkpoints.
struct InMemory(BTreeMap<String, TensorData>);

impl Source for InMemory {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(|data| &data.shape()[..])
    }

    fn path(&self, _name: &str) -> &Path {
        Path::new("memory")
    }

    fn bytes(&self, name: &str) -> usize {
        self.0[name].as_bytes().len()
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        Ok(self.0[name].clone())
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        vec![self.0[name].dtype()]
    }
}

/// Whatever a family does with the names and the shapes of its checkpoints.
#[test]
fn a_source_of_ones_own_is_any_checkpoint() {
    for family in FAMILIES {
        let config = LlamaConfig::from_file(folder(family).join("config.json")).unwrap();
        let tensors = tensors(&folder(family).join("model.safetensors")).into_iter();
        let tensors = tensors.map(|(name, (shape, values))| (name, TensorData::new(values, shape)));
        let loader = Llama::from_pretrained("memory").dtype(FloatDType::F32);
        let model = loader.load_from(&InMemory(tensors.collect()), &config, &device());
        compare(&model.unwrap(), &folder(family).join("io.safetensors"));
    }
}
