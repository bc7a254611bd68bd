//! The other families and each kind of rotary scaling, against transformers (testdata/families.py).

use crate::common::*;
use burn::tensor::{FloatDType, activation::log_softmax};
use burn_lora_llama::{Family, Llama, LlamaConfig};
use serde_json::Value;
use std::path::PathBuf;

fn folder(family: &str) -> PathBuf {
    golden("families").join(family)
}

/// Logits of the tokens that are not padding, and the loss.
fn check(family: &str, file: &str) {
    let device = device();
    let path = folder(family).join(file);
    let (tokens, segments, labels) = batch_of(&path, &device);
    let io = tensors(&path);
    let model =
        Llama::from_pretrained(folder(family)).dtype(FloatDType::F32).load(&device).unwrap();
    let logits = model.forward(tokens, &segments);

    let [_, length, vocabulary] = logits.dims();
    let mask = &io["attention_mask"].1;
    let real = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(vocabulary).zip(mask).filter(|(_, mask)| **mask != 0.0);
        rows.flat_map(|(row, _)| row.iter().copied()).collect()
    };
    let found = difference(&real(&vec(logits.clone())), &real(&io["logits"].1));
    assert!(found < 1e-4, "{family}/{file}: logits differ by {found}");

    let log = vec(log_softmax(logits, 2));
    let losses = (0..labels.len() - 1).filter(|at| at % length != length - 1).filter_map(|at| {
        let target = usize::try_from(labels[at + 1]).ok()?;
        Some(-f64::from(log[at * vocabulary + target]))
    });
    let losses: Vec<f64> = losses.collect();
    let loss = (losses.iter().sum::<f64>() / losses.len() as f64) as f32;
    let found = (loss - io["loss"].1[0]).abs();
    assert!(found < 1e-5, "{family}/{file}: the loss differs by {found}");
}

#[test]
fn mistral_agrees() {
    check("mistral", "io.safetensors");
}

#[test]
fn qwen2_agrees() {
    check("qwen2", "io.safetensors");
    check("qwen2_window", "io.safetensors");
}

#[test]
fn qwen3_agrees() {
    check("qwen3", "io.safetensors");
}

#[test]
fn llama_with_biases_agrees() {
    check("llama_bias", "io.safetensors");
}

#[test]
fn scaled_rotary_embeddings_agree() {
    for family in ["llama3", "yarn", "yarn_factor", "yarn_mscale", "linear"] {
        check(family, "io.safetensors");
    }
}

#[test]
fn dynamic_rotary_embeddings_agree() {
    for file in ["io.safetensors", "io_short.safetensors", "io_padded.safetensors"] {
        check("dynamic", file);
    }
}

#[test]
fn older_keys_mean_the_same() {
    let folders = std::fs::read_dir(golden("families")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut compared = 0;
    for folder in folders {
        let new = LlamaConfig::from_file(folder.join("config.json")).unwrap();
        let mut old = LlamaConfig::from_file(folder.join("config_old.json")).unwrap();
        old.raw = new.raw.clone();
        assert_eq!(old, new, "{}", folder.display());
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn frequencies_of_real_models() {
    let json = std::fs::read(golden("families").join("rope.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&json).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let config = LlamaConfig::from_json(&case["config"].to_string()).unwrap();
        let length = case["length"].as_u64().unwrap();
        let what = format!("{} at {length}", case["name"]);
        let (found, factor) = config.rope.frequencies(length as usize);
        let expected = case["frequencies"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{what}");
        assert!((f64::from(factor) - case["factor"].as_f64().unwrap()).abs() < 1e-6, "{what}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().unwrap();
            let error = (f64::from(*found) / expected - 1.0).abs();
            assert!(error < 3e-6, "{what}: {found} is no {expected} (frequency {i})");
        }
    }
}

/// A config with some more fields.
fn config(family: &str, more: &str) -> LlamaConfig {
    let json = format!(
        r#"{{ "model_type": "{family}", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
              "num_hidden_layers": 2, "num_attention_heads": 4 {more} }}"#
    );
    LlamaConfig::from_json(&json).unwrap()
}

#[test]
fn defaults_are_those_of_transformers() {
    let mistral = config("mistral", "");
    assert_eq!(mistral.windows, [Some(4096); 2]);
    assert_eq!(mistral.max_position_embeddings, 131072);
    assert_eq!(config("mistral", r#", "sliding_window": null"#).windows, [None; 2]);
    assert_eq!(config("qwen2", "").windows, [None; 2]);
    let all = r#", "use_sliding_window": true, "max_window_layers": 0"#;
    assert_eq!(config("qwen2", all).windows, [Some(4096); 2]);
    let qwen3 = config("qwen3", "");
    assert_eq!((qwen3.family, qwen3.head_dim), (Family::Qwen3, 128));
    // These have no such biases, whatever the file says.
    assert!(!config("qwen3", r#", "mlp_bias": true"#).mlp_bias);
    assert!(!config("qwen2", r#", "attention_bias": true"#).o_bias);
}

#[test]
fn scaling_that_was_added_by_hand_keeps_the_base() {
    // As Qwen's model cards say to, in a file as transformers 5 writes it.
    let both = config(
        "qwen2",
        r#", "rope_parameters": { "rope_type": "default", "rope_theta": 1000000.0 },
             "rope_scaling": { "type": "linear", "factor": 4.0 }"#,
    );
    assert_eq!(both.rope.theta, 1e6);
    assert_ne!(both.rope.scaling, burn_lora_llama::RopeScaling::Default);
}
