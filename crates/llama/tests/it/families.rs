//! The other families and each kind of rotary scaling, against transformers (testdata/families.py).

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_io::collect;
use burn_lora_llama::{Llama, LlamaConfig, RopeScaling};
use serde_json::Value;
use std::path::PathBuf;

fn folder(family: &str) -> PathBuf {
    golden("families").join(family)
}

/// Compares logits and losses of a family.
fn check(family: &str, file: &str) {
    let loader = Llama::from_pretrained(folder(family)).dtype(FloatDType::F32);
    compare(&loader.load(&device()).unwrap(), &folder(family).join(file));
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
        let (found, factor) = config.ropes[0].frequencies(length as usize);
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
        r#"{{ "model_type": "{family}", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 48,
              "num_hidden_layers": 2, "num_attention_heads": 32 {more} }}"#
    );
    LlamaConfig::from_json(&json).unwrap()
}

/// The same, with the only warning.
fn warned(family: &str, more: &str) -> (LlamaConfig, String) {
    let (config, warnings) = collect(|| config(family, more));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    (config, warnings[0].clone())
}

#[test]
fn defaults_are_those_of_transformers() {
    let mistral = config("mistral", "");
    assert_eq!(mistral.windows(), [Some(4096); 2]);
    assert_eq!(mistral.max_position_embeddings, 131072);
    assert_eq!(config("mistral", r#", "sliding_window": null"#).windows(), [None; 2]);
    assert_eq!(config("qwen2", "").windows(), [None; 2]);
    let all = r#", "use_sliding_window": true, "max_window_layers": 0"#;
    assert_eq!(config("qwen2", all).windows(), [Some(4096); 2]);
    let qwen3 = config("qwen3", "");
    assert_eq!((qwen3.family.model_type(), qwen3.layers[0].attention.head_dim), ("qwen3", 128));
    // These have no such biases, whatever the file says.
    assert!(!config("qwen3", r#", "mlp_bias": true"#).layers[0].feed_forward.mlp().bias);
    assert!(!config("qwen2", r#", "attention_bias": true"#).layers[0].attention.o_bias);
}

#[test]
fn key_value_heads_that_are_not_there_are_those_of_the_class() {
    let heads = |family, more| config(family, more).layers[0].attention.num_kv_heads;
    for (family, missing) in [("llama", 32), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)] {
        assert_eq!(heads(family, ""), missing, "{family}");
        assert_eq!(heads(family, r#", "num_key_value_heads": null"#), 32, "{family}");
        assert_eq!(heads(family, r#", "num_key_value_heads": 4"#), 4, "{family}");
    }
}

#[test]
fn of_two_rotary_settings_transformers_takes_one() {
    // What Qwen's model cards say to add, in a file as transformers 5 writes it: it takes no base then.
    let newer = r#", "rope_parameters": { "rope_type": "default", "rope_theta": 1000000.0 }"#;
    let older = r#", "rope_scaling": { "type": "linear", "factor": 4.0 }"#;
    let (both, warning) = warned("qwen2", &[newer, older].concat());
    assert_eq!(both.ropes[0].scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(both.ropes[0].theta, 10_000.0);
    assert!(warning.contains("`rope_parameters`") && warning.contains("10000"), "{warning}");

    let (two, warning) = warned("qwen2", &[newer, r#", "rope_theta": 500000.0"#].concat());
    assert_eq!(two.ropes[0].theta, 1e6);
    assert!(warning.contains("two `rope_theta`"), "{warning}");

    // Twice the same is no contradiction.
    let again = newer.replace("rope_parameters", "rope_scaling");
    let alike = || config("qwen2", &[newer, &again, r#", "rope_theta": 1000000.0"#].concat());
    let (alike, warnings) = collect(alike);
    assert_eq!((alike.ropes[0].theta, warnings), (1e6, vec![]));
}

#[test]
fn the_type_goes_over_the_class() {
    let (config, warning) = warned("qwen2", r#", "architectures": ["LlamaForCausalLM"]"#);
    assert_eq!(config.family.model_type(), "qwen2");
    assert!(warning.contains("`architectures`") && warning.contains("qwen2"), "{warning}");
}

#[test]
fn types_of_layers_are_read_where_the_class_reads_them() {
    let types = r#", "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8,
                     "use_sliding_window": true"#;
    assert_eq!(config("qwen3", types).windows(), [None, Some(8)]);
    assert_eq!(config("mistral", types).windows(), [Some(8); 2]);
    assert_eq!(config("llama", types).windows(), [None; 2]);
}

#[test]
fn one_list_of_divisors_for_all_lengths_is_read() {
    let rope = |fields: &str| {
        let json = format!(
            r#"{{ "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
                  "num_hidden_layers": 2, "num_attention_heads": 4,
                  "rope_scaling": {{ "rope_type": "longrope", {fields} }} }}"#
        );
        LlamaConfig::from_json(&json)
            .map(|config| config.ropes[0].frequencies(0).0)
            .map_err(|error| error.to_string())
    };
    let same = r#""short_factor": [1.0, 2.0, 3.5, 8.0], "long_factor": [1.0, 2.0, 3.5, 8.0]"#;
    let plain = [1.0, 0.1, 0.01, 0.001];
    let found = rope(&format!(r#"{same}, "attention_factor": 1.0"#)).unwrap();
    let divided: Vec<f32> =
        plain.iter().zip([1.0, 2.0, 3.5, 8.0]).map(|(f, d): (&f64, _)| (f / d) as f32).collect();
    assert!(difference(&found, &divided) < 1e-9, "{found:?}");
    for (fields, part) in [
        (same.replace(", 8.0", "") + r#", "attention_factor": 1.0"#, "`rope_scaling.short_factor`"),
        (same.replace("3.5", "0.0") + r#", "attention_factor": 1.0"#, "short_factor"),
        (same.to_owned() + r#", "attention_factor": 0.0"#, "attention_factor"),
    ] {
        let error = rope(&fields).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
