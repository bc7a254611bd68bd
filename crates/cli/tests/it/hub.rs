//! From the hub and back, with a server that answers as huggingface.co does.

use crate::{
    burn_lora,
    commands::small_model,
    errors,
    server::{Files, Server, TOKEN},
};
use serde_json::json;
use std::{fs, path::Path};

/// Runs a command whose hub is the server.
fn run(server: &Server, home: &Path, token: &str, words: &[&str]) -> Result<String, String> {
    let mut command = burn_lora(words.iter().copied());
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", home).env("HF_TOKEN", token);
    for unset in ["HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(unset);
    }
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(errors(&output))
    }
}

/// A model, and a dataset with two configurations, one of which has two files.
fn repositories(home: &Path) -> Server {
    let (model, _) = small_model(home);
    let model: Files = fs::read_dir(model)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        })
        .collect();
    let lines = |word: &str| {
        let line = json!({ "prompt": "say", "completion": word });
        format!("{line}\n").repeat(8).into_bytes()
    };
    let card = "---\nlicense: mit\nconfigs:\n- config_name: short\n  data_files: short/*.jsonl\n\
                - config_name: long\n  data_files:\n  - split: train\n    path: long/*.jsonl\n---\n# Words\n";
    let data = Files::from([
        ("README.md".to_owned(), card.as_bytes().to_vec()),
        ("short/a.jsonl".to_owned(), lines("hello")),
        ("long/a.jsonl".to_owned(), lines("hello world")),
        ("long/b.jsonl".to_owned(), lines("hello hello")),
    ]);
    Server::start([("models/owner/small", model), ("datasets/owner/words", data)])
}

#[test]
fn a_run_reads_from_the_hub_and_pushes_to_it() {
    let home = tempfile::tempdir().unwrap();
    let server = repositories(home.path());
    let out = home.path().join("out").to_str().unwrap().to_owned();
    let words = [
        &["train", "--model", "owner/small", "--data", "owner/words:long", "--output", &out][..],
        &["--device", "cpu", "--format", "none", "--max-steps", "2", "--limit", "6"],
        &["--set", "hub.push='owner/mine'", "--set", "hub.private=true"],
    ]
    .concat();
    // What is wrong with the repository shows before a model is read.
    let error = run(&server, home.path(), "hf_wrong", &words).unwrap_err();
    assert!(error.contains("hub.push") && error.contains("owner/mine"), "{error}");
    let asked: Vec<_> = server.asked().into_iter().map(|(path, _)| path).collect();
    assert!(asked.iter().all(|path| path.contains("repos/create")), "{asked:?}");

    let shown = run(&server, home.path(), TOKEN, &words).unwrap();
    assert!(shown.contains(&format!("{}/owner/mine", server.endpoint)), "{shown}");
    // Six examples are in the first file.
    let asked: Vec<_> = server.asked().into_iter().map(|(path, _)| path).collect();
    let asked = |part: &str| asked.iter().any(|path| path.contains(part));
    assert!(asked("long/a.jsonl") && !asked("long/b.jsonl") && !asked("short/a.jsonl"));

    let there = server.files("models/owner/mine").unwrap();
    for name in ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "README.md"] {
        assert!(there.contains_key(name), "no {name}");
    }
    // It has paths of this machine.
    assert!(!there.contains_key("run.toml") && Path::new(&out).join("run.toml").exists());
    let card = String::from_utf8(there["README.md"].clone()).unwrap();
    for part in [
        "base_model: owner/small\n",
        "datasets:\n- owner/words\n",
        "| data | owner/words:long |",
        "| examples at most | 6 |",
        "| learning rate | 0.0002 |",
        "| schedule | linear |",
        "| steps | 2 |",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }

    // The adapter brings its base; a configuration has to be chosen.
    let answer = ["generate", "owner/mine", "say", "--device", "cpu", "--max-new-tokens", "2"];
    run(&server, home.path(), TOKEN, &answer).unwrap();
    let preview = ["preview", "--model", "owner/small", "--data", "owner/words"];
    let error = run(&server, home.path(), TOKEN, &preview).unwrap_err();
    assert!(error.contains("`short`, `long`") && error.contains("`:short`"), "{error}");
}

#[test]
fn a_run_that_cannot_be_pushed_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let server = repositories(home.path());
    let out = home.path().join("out").to_str().unwrap().to_owned();
    // A branch that the server does not know.
    let words = [
        &["train", "--model", "owner/small", "--data", "owner/words:short", "--output", &out][..],
        &["--device", "cpu", "--format", "none", "--max-steps", "1"],
        &["--set", "hub.push='owner/mine@other'"],
    ]
    .concat();
    let error = run(&server, home.path(), TOKEN, &words).unwrap_err();
    let repeat = format!("`burn-lora push {out} owner/mine@other` uploads it");
    assert!(error.contains("The run is complete") && error.contains(&repeat), "{error}");
    assert!(Path::new(&out).join("adapter_model.safetensors").exists());
    // The settings alone repeat it, elsewhere.
    let (file, again) = (format!("{out}/run.toml"), home.path().join("again"));
    let again = again.to_str().unwrap();
    let words = ["train", "--config", &file, "--output", again, "--set", "hub.push='owner/mine'"];
    run(&server, home.path(), TOKEN, &words).unwrap();
    let weights =
        |folder: &str| fs::read(Path::new(folder).join("adapter_model.safetensors")).unwrap();
    assert!(weights(again) == weights(&out));
}
