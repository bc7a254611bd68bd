//! GGUF files that models are saved as: read again, they are the same model. llama.cpp itself reads them
//! in `scripts/llama_cpp.py`; what blocks hold is tested beside the code that makes them.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, LoraConfig, PackedMerge};
use burn_lora_llama::{GgufType, Llama, Segments, Tokenizer};
use burn_lora_quant::QuantConfig;
use serde_json::json;
use std::{fs, path::Path};

/// A byte-level tokenizer of 30 tokens, of which one ends texts.
fn tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let letters = ('a'..='z').chain(['Ġ']).enumerate();
    let mut vocabulary: serde_json::Map<_, _> =
        letters.map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    vocabulary.insert("ab".into(), json!(27));
    vocabulary.insert("abc".into(), json!(28));
    let end = json!({
        "id": 29, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let json = json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "truncation": null, "padding": null,
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["ab", "c"]],
            "byte_fallback": false, "fuse_unk": false, "ignore_merges": false, "dropout": null,
            "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        },
    });
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({ "eos_token": "<|end|>", "chat_template": "{{ messages[0].content }}" });
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_pretrained(folder.path()).unwrap()
}

fn load(path: &Path) -> Llama {
    Llama::from_pretrained(path).dtype(FloatDType::F32).load(&device()).unwrap()
}

/// A model with another value in `config.json`, and without biases if it is `attention_bias`.
fn changed(variant: &str, field: &str, value: serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = fs::read(golden(variant).join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json[field] = value;
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let bytes = fs::read(golden(variant).join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept =
        tensors.iter().filter(|(name, _)| field != "attention_bias" || !name.ends_with(".bias"));
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(kept, None, &file).unwrap();
    folder
}

/// Logits of some tokens.
fn logits(model: &Llama) -> Vec<f32> {
    let ids: Vec<i32> = (0..24).map(|i| i * 7 % 29).collect();
    let tokens = burn::tensor::Tensor::<1, burn::tensor::Int>::from_ints(&ids[..], &device());
    let tokens = tokens.reshape([1, 24]);
    vec(model.forward(tokens, &Segments::whole(1, 24)))
}

#[test]
fn what_is_saved_is_read_again() {
    for variant in [
        "gqa",
        "llama3",
        "families/llama_bias",
        "families/linear",
        "families/yarn",
        "families/qwen2",
        "decoders/gemma3_gguf/model.gguf",
        "decoders/mixtral",
        "decoders/qwen3_moe_gguf/model.gguf",
        "decoders/phi3",
        "decoders/phi4_mini",
        "decoders/gpt_oss",
        "decoders/gpt_oss_mxfp4",
    ] {
        check(variant, load(&golden(variant)));
    }
    let plain = changed("families/qwen3", "attention_bias", json!(false));
    check("qwen3 without biases", load(plain.path()));
}

/// Logits of a model that is saved in some types.
fn check(variant: &str, model: Llama) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap();
    let again = load(&path);
    let (own, found) = (logits(&model), logits(&again));
    assert!(difference(&own, &found) < 2e-5, "{variant}: {}", difference(&own, &found));
    assert_eq!(again.config.tie_word_embeddings, model.config.tie_word_embeddings);
    for kind in [GgufType::BF16, GgufType::F16, GgufType::Q8_0] {
        model.save_gguf(&path, &tokenizer(), kind).unwrap();
        let found = relative(&logits(&load(&path)), &own);
        assert!(found < 0.1, "{variant}, {}: {found}", kind.name());
    }
}

#[test]
fn what_has_no_place_in_the_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refused = |variant: &str| {
        let model = load(&golden(variant));
        model.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap_err().to_string()
    };
    // A window that llama.cpp's Qwen 2 has not.
    for variant in ["families/qwen2_window", "families/dynamic", "decoders/qwen3_moe"] {
        let error = refused(variant);
        assert!(error.contains("no place for a setting"), "{error}");
        assert!(error.contains("convert_hf_to_gguf.py"), "{error}");
        assert!(error.contains("model.gguf") && !path.exists(), "{error}");
    }
    // llama.cpp's Qwen 3 has no bias of `o_proj`.
    assert!(refused("families/qwen3").contains("no bias of `o_proj`"));
    // All models of the family have these alike.
    for (field, value) in [("swiglu_limit", json!(5.0)), ("sliding_window", json!(null))] {
        let model = load(changed("decoders/gpt_oss", field, value).path());
        let error = model.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap_err();
        assert!(!path.exists(), "{error}");
    }
    let model = load(&golden("gqa"));
    let error = model.save_gguf(&path, &tokenizer(), GgufType::Mxfp4).unwrap_err().to_string();
    assert!(error.contains("MXFP4 is a type of experts") && !path.exists(), "{error}");
    let mut model = load(&golden("gqa"));
    model.add_adapter("default", &LoraConfig::new(2, 4).targets(["q_proj"])).unwrap();
    let error = model.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap_err().to_string();
    assert!(error.contains("merge_and_unload"), "{error}");
}

#[test]
fn packed_and_merged_models_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut model = Llama::from_pretrained(golden("gqa"))
        .quantize(QuantConfig::nf4().double_quant(true))
        .load(&device())
        .unwrap();
    model.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap();
    assert!(difference(&logits(&model), &logits(&load(&path))) < 2e-4);
    let mut dense = load(&golden("gqa"));
    dense.load_adapter("default", golden("gqa/lora_qv")).unwrap();
    let expected = logits(&dense);
    dense.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
    dense.save_gguf(&path, &tokenizer(), GgufType::F32).unwrap();
    assert!(difference(&expected, &logits(&load(&path))) < 1e-4);
    model.load_adapter("default", golden("gqa/lora_qv")).unwrap();
}

/// Rows of 64 and 160 values are no blocks of 256.
#[test]
fn other_types_where_rows_are_no_blocks() {
    use burn_lora_io::gguf::Gguf;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model = load(&golden("gqa"));
    for (kind, rows, head, most) in [
        (GgufType::Q4K, "Q5_0", "Q8_0", 0.15),
        (GgufType::Q6K, "Q8_0", "Q8_0", 0.05),
        (GgufType::Q4_0, "Q4_0", "Q8_0", 0.3),
    ] {
        model.save_gguf(&path, &tokenizer(), kind).unwrap();
        let found = relative(&logits(&load(&path)), &logits(&model));
        assert!(found > 0.0 && found < most, "{}: {found}", kind.name());
        let file = Gguf::open(&path).unwrap();
        let type_of = |name: &str| file.tensors()[name].type_name();
        assert_eq!(type_of("blk.0.ffn_down.weight"), rows, "{}", kind.name());
        assert_eq!(type_of("output.weight"), head, "{}", kind.name());
        assert_eq!(type_of("blk.0.attn_norm.weight"), "F32");
    }
}

/// Experts that were in MXFP4 keep their values; gate and up, and the biases, are tensors of their own.
#[test]
fn gpt_oss_keeps_its_experts() {
    use burn_lora_io::gguf::Gguf;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model = load(&golden("decoders/gpt_oss_mxfp4"));
    model.save_gguf(&path, &tokenizer(), GgufType::Mxfp4).unwrap();
    let file = Gguf::open(&path).unwrap();
    let info = |name: &str| {
        let tensor = &file.tensors()[name];
        (tensor.type_name(), tensor.shape.clone())
    };
    let tensors = ["ffn_gate_exps.weight", "ffn_up_exps.bias", "attn_sinks.weight"];
    let [gate, up, sinks] = tensors.map(|name| info(&format!("blk.1.{name}")));
    let experts = model.config.layers[0].feed_forward.mlp().intermediate_size;
    assert_eq!(gate, ("MXFP4".to_owned(), vec![4, experts, model.config.hidden_size]));
    assert_eq!((up, sinks), (("F32".into(), vec![4, experts]), ("F32".into(), vec![4])));
    assert_eq!(info("blk.1.attn_q.weight").0, "Q8_0");
    let again = load(&path);
    let weight = |model: &Llama, name: &str| {
        let path = format!("model.layers.1.mlp.experts.2.{name}");
        let layer = model.layers().into_iter().find(|(own, _)| *own == path).unwrap().1;
        (vec(layer.weight()), layer.bias().map(|bias| vec(bias.val())))
    };
    for name in ["gate_up_proj", "down_proj"] {
        assert_eq!(weight(&model, name), weight(&again, name), "{name}");
    }
    // Without the half of a tensor.
    let mut bytes = fs::read(&path).unwrap();
    let name = b"blk.1.ffn_up_exps.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + 6] = b'x';
    fs::write(&path, bytes).unwrap();
    let error = Llama::from_pretrained(&path).load(&device()).unwrap_err().to_string();
    assert!(error.contains("layers.1.mlp.experts.0.gate_up_proj.weight"), "{error}");
}

#[test]
fn the_tokenizer_comes_back_and_rows_without_a_token_are_unused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (model, own) = (load(&golden("gqa")), tokenizer());
    model.save_gguf(&path, &own, GgufType::Q4K).unwrap();
    let found = relative(&logits(&load(&path)), &logits(&model));
    assert!(found > 0.0 && found < 0.15, "{found}");
    let read = Tokenizer::from_pretrained(&path).unwrap();
    for text in ["abc ab a", "the end<|end|> of it", "", "zzz  abcabc"] {
        assert_eq!(read.encode(text, true).unwrap(), own.encode(text, true).unwrap(), "{text}");
    }
    assert_eq!((read.vocab_size(), read.eos_token_ids()), (128, &[29][..]));
    assert_eq!(read.chat_template().unwrap().source(), "{{ messages[0].content }}");
    // More tokens than rows.
    let model = load(&golden("families/qwen2"));
    let large = Tokenizer::from_pretrained("../../testdata/tokenizer").unwrap();
    let error = model.save_gguf(&path, &large, GgufType::F32).unwrap_err().to_string();
    assert!(error.contains("rows for 64 tokens"), "{error}");
}

/// The scaling of every layer is in the file, and the rows of q are llama.cpp's.
#[test]
fn an_adapter_is_saved_alone() {
    use burn_lora_io::gguf::Gguf;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.gguf");
    for case in ["lora_all", "rslora", "patterns"] {
        let mut model = load(&golden("gqa"));
        model.load_adapter("default", golden("gqa").join(case)).unwrap();
        let written = model.save_adapter_gguf("default", &path);
        if let Err(error) = &written {
            // Of all layers, one is the head.
            assert!(case != "rslora" && error.to_string().contains("lm_head"), "{case}: {error}");
            continue;
        }
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.get("general.type").and_then(|value| value.as_str()), Some("adapter"));
        assert_eq!(file.get("adapter.type").and_then(|value| value.as_str()), Some("lora"));
        let alpha = file.get("adapter.lora.alpha").and_then(|value| value.as_f64()).unwrap();
        let values = |name: &str| {
            let tensor = file.tensors().get(name)?;
            let bytes = file.data(tensor).as_chunks().0.iter();
            let values: Vec<f32> = bytes.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Some((tensor.shape.clone(), values))
        };
        let mut checked = 0;
        for (layer, (module, projection, heads)) in (0..2).flat_map(|layer| {
            [("attn_q", "q_proj", Some(4)), ("attn_v", "v_proj", None)]
                .map(|module| (layer, module))
        }) {
            let name = format!("blk.{layer}.{module}.weight");
            let Some((a_shape, a)) = values(&format!("{name}.lora_a")) else { continue };
            let (b_shape, b) = values(&format!("{name}.lora_b")).unwrap();
            let (rank, width, out) = (a_shape[0], a_shape[1], b_shape[0]);
            assert_eq!(b_shape[1], rank);
            let path = format!("model.layers.{layer}.self_attn.{projection}");
            let layers = model.layers();
            let own = layers.iter().find(|(name, _)| *name == path).unwrap().1;
            let delta =
                own.adapters().get("default").unwrap().update().delta(FloatDType::F32).unwrap();
            let delta = vec(own.file_layout(delta));
            let mut largest = 0f32;
            for row in 0..out {
                // Row of ours: the halves of a head are interleaved there.
                let own_row = heads.map_or(row, |heads: usize| {
                    let size = out / heads;
                    let (head, at) = (row / size, row % size);
                    head * size + at % 2 * (size / 2) + at / 2
                });
                for column in 0..width {
                    let product: f32 =
                        (0..rank).map(|r| b[row * rank + r] * a[r * width + column]).sum();
                    let found = product * alpha as f32 / rank as f32;
                    largest = largest.max((found - delta[own_row * width + column]).abs());
                }
            }
            assert!(largest < 1e-5, "{case}, {name}: {largest}");
            checked += 1;
        }
        assert!(checked > 0, "{case}");
    }
}
