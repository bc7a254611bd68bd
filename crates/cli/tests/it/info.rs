//! `burn-lora info`: what files are, by their headers.

use crate::{burn_lora, commands::run, errors, root};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Facts of paths, as JSON.
fn facts(paths: &[&str]) -> Vec<Value> {
    let found = run(&[&["info", "--json"], paths].concat()).unwrap();
    serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found}"))
}

fn fact(path: &str) -> Value {
    facts(&[path]).remove(0)
}

#[test]
fn a_model_is_described_by_its_headers() {
    let found = facts(&["testdata/gqa", "testdata/gqa/bnb4bit", "testdata/gqa/sharded"]);
    let config: Value =
        serde_json::from_slice(&fs::read(root("testdata/gqa/config.json")).unwrap()).unwrap();
    for model in &found {
        assert_eq!((&model["kind"], &model["family"]), (&json!("model"), &json!("llama")));
        for (name, field) in [
            ("layers", "num_hidden_layers"),
            ("hidden_size", "hidden_size"),
            ("vocabulary", "vocab_size"),
            ("context", "max_position_embeddings"),
        ] {
            assert_eq!(model[name], config[field], "{name}");
        }
        assert_eq!(model["heads"], json!({ "queries": 4, "keys": 2, "width": 16 }));
        // Packed or not, in one file or several: the same number of weights.
        assert_eq!(model["parameters"], found[0]["parameters"]);
        assert_eq!(model["loads"], true, "{model}");
        assert_eq!(model["tokenizer"]["loads"], false, "there is none");
    }
    let values = &found[0]["stored_as"]["F32"]["values"];
    assert_eq!(*values, found[0]["parameters"]);
    assert_eq!(found[0]["bytes"].as_u64(), Some(4 * values.as_u64().unwrap()));
    assert_eq!(found[1]["quantization"]["bnb_4bit_quant_type"], "nf4");
    assert!(found[1]["stored_as"]["U8"]["tensors"].as_u64() > Some(0));
    assert_eq!(found[2]["files"], 7);

    let text = run(&["info", "testdata/quickstart/model"]).unwrap();
    for part in [
        "family ",
        "parameters ",
        "tokenizer          BPE, ",
        "end tokens ",
        "loads              yes",
    ] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Folders with a file of this name below `folder`.
fn folders(folder: &Path, file: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(folders(&entry, file));
            if entry.join(file).is_file() {
                found.push(entry);
            }
        }
    }
    found
}

/// Whatever the library's tests load, `info` says that it loads.
#[test]
fn everything_that_loads_is_said_to() {
    let testdata = root("testdata");
    for (file, kind) in [("config.json", "model"), ("adapter_config.json", "adapter")] {
        let weights = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        let folders: Vec<_> = folders(&testdata, file)
            .into_iter()
            .filter(|folder| {
                kind == "adapter" || weights.iter().any(|file| folder.join(file).is_file())
            })
            .collect();
        assert!(folders.len() > 15, "{} with {file}", folders.len());
        let paths: Vec<_> = folders.iter().map(|folder| folder.to_str().unwrap()).collect();
        for facts in facts(&paths) {
            assert_eq!(facts["kind"], kind, "{facts}");
            // Families that are tests' own.
            let foreign = ["granite", "gemma2"].contains(&facts["family"].as_str().unwrap_or(""));
            assert_eq!(facts["loads"], !foreign, "{facts}");
            if foreign {
                continue;
            }
            assert!(facts["parameters"].as_u64() > Some(0), "{facts}");
        }
    }
    for name in ["gemma3_gguf", "qwen3_moe_gguf", "mixtral", "phi4_mini"] {
        let facts = fact(&format!("testdata/decoders/{name}/model.gguf"));
        assert_eq!(
            (&facts["kind"], &facts["loads"]),
            (&json!("GGUF file"), &json!(true)),
            "{facts}"
        );
        assert!(facts["stored_as"].as_object().is_some_and(|types| !types.is_empty()));
        assert!(facts["layers"].as_u64() > Some(0), "{facts}");
    }
}

#[test]
fn an_adapter_says_what_it_scales_by() {
    let found = fact("testdata/gqa/patterns");
    assert_eq!((&found["method"], &found["rank"]), (&json!("LORA"), &json!(4)));
    assert_eq!((&found["alpha"], &found["scale"]), (&json!(8), &json!(2.0)));
    assert_eq!(found["rank_pattern"], json!({ "layers.1.self_attn.o_proj": 6, "q_proj": 2 }));
    let found = fact("testdata/gqa/rslora");
    let [alpha, rank] = ["alpha", "rank"].map(|name| found[name].as_f64().unwrap());
    assert_eq!(found["rslora"], true);
    assert_eq!(found["scale"].as_f64(), Some(alpha / rank.sqrt()));
    // 2 matrices of each of 2 layers in 3 decoder layers; q is 64 x 64, v 32 x 64.
    let found = fact("testdata/gqa/lora_qv");
    let rank = found["rank"].as_u64().unwrap();
    assert_eq!(found["parameters"], 3 * rank * ((64 + 64) + (64 + 32)));
    let found = fact("testdata/methods/gqa/vera");
    // VeRA has no alpha; a vector of the rank and one of the outputs are trained at a layer.
    assert_eq!((&found["method"], &found["alpha"]), (&json!("VERA"), &Value::Null));
    assert!(fact("testdata/methods/gqa/lora_tokens")["trained_tokens"].as_u64() > Some(0));
}

#[test]
fn what_cannot_be_loaded_is_shown_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = path("model");
    fs::create_dir(&model).unwrap();
    let config = r#"{ "architectures": ["Odd\u001b[31mForCausalLM"], "model_type": "odd",
        "num_hidden_layers": 7 }"#;
    fs::write(model.join("config.json"), config).unwrap();
    fs::copy(root("testdata/gqa/model.safetensors"), model.join("model.safetensors")).unwrap();
    let shown = model.to_str().unwrap();
    let facts = fact(shown);
    assert_eq!((&facts["loads"], &facts["layers"]), (&json!(false), &json!(7)));
    assert!(facts["reason"].as_str().unwrap().contains("supported are"), "{facts}");
    assert!(facts["stored_as"]["F32"]["tensors"].as_u64() > Some(0));
    let text = run(&["info", shown]).unwrap();
    assert!(text.contains(r"Odd\u{1b}[31mForCausalLM") && !text.contains('\u{1b}'), "{text}");

    // A file that was cut off, a tensor of another shape, one that is missing.
    let whole = fs::read(root("testdata/gqa/model.safetensors")).unwrap();
    let text = fs::read_to_string(root("testdata/gqa/config.json")).unwrap();
    for (config, weights, part) in [
        (text.clone(), &whole[..whole.len() - 9], "cut off"),
        (text.replace("\"vocab_size\": 128", "\"vocab_size\": 127"), &whole[..], "[127, 64]"),
        (text.replace("_layers\": 3", "_layers\": 4"), &whole[..], "layers.3"),
    ] {
        fs::write(model.join("config.json"), config).unwrap();
        fs::write(model.join("model.safetensors"), weights).unwrap();
        let facts = fact(shown);
        assert_eq!(facts["loads"], false, "{facts}");
        assert!(facts["reason"].as_str().unwrap().contains(part), "no `{part}` in: {facts}");
    }

    let adapter = path("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), r#"{ "peft_type": "IA3", "r": 3 }"#).unwrap();
    let facts = fact(adapter.to_str().unwrap());
    assert_eq!((&facts["method"], &facts["loads"]), (&json!("IA3"), &json!(false)));
    assert!(facts["reason"].as_str().unwrap().contains("IA3"), "{facts}");

    let gguf = path("x.gguf");
    fs::write(&gguf, b"GGUF\x01\0\0\0").unwrap();
    assert_eq!(fact(gguf.to_str().unwrap())["loads"], false);
}

#[test]
fn runs_are_described_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    for step in [9, 10] {
        let checkpoint = out.join(format!("checkpoint-{step}"));
        fs::create_dir(&checkpoint).unwrap();
        fs::write(
            checkpoint.join("trainer_state.json"),
            format!(r#"{{ "step": {step}, "steps": 20, "epoch": 1 }}"#),
        )
        .unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(root("testdata/gqa/lora_qv").join(file), checkpoint.join(file)).unwrap();
        }
    }
    let facts = fact(out.to_str().unwrap());
    assert_eq!(facts["kind"], "output folder of a run");
    assert_eq!(facts["checkpoints"], json!(["checkpoint-9", "checkpoint-10"]));
    let facts = fact(out.join("checkpoint-10").to_str().unwrap());
    assert_eq!((&facts["kind"], &facts["step"]), (&json!("adapter"), &json!(10)));

    let facts = fact("examples/configs/llama-3.1-8b-qlora-24gb.toml");
    assert_eq!((&facts["kind"], &facts["format"]), (&json!("run file"), &json!("nf4")));
}

#[test]
fn what_is_nothing_known_is_an_error_after_the_rest() {
    let words = ["info", "no/such/folder", "testdata/gqa", "testdata"];
    let output = burn_lora(words).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = errors(&output);
    assert!(
        errors.contains("error: no/such/folder: ") && errors.contains("adapter_config.json"),
        "{errors}"
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("llama"));
}
