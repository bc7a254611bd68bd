//! What scripts rely on: JSON alone on standard output, no escapes in a pipe, completions.

use crate::{
    burn_lora,
    commands::{run, small_model},
    errors,
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// The documents that a command with `--json` writes, one a line, and nothing else.
fn documents(words: &[&str]) -> Vec<Value> {
    let found = run(&[words, &["--json"]].concat()).unwrap();
    let parse =
        |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{words:?}: {e}: {line}"));
    found.lines().map(parse).collect()
}

fn document(words: &[&str]) -> Value {
    let mut found = documents(words);
    assert_eq!(found.len(), 1, "{words:?}");
    found.remove(0)
}

#[test]
fn every_result_is_a_document_alone_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, merged, gguf, adapter) =
        (path("out"), path("merged"), path("m.gguf"), path("a.gguf"));
    let on = ["--device", "cpu"];
    let train = ["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"];
    let few =
        ["--max-steps", "2", "--max-length", "64", "--sample", "say 3", "--valid-split", "0.2"];

    let found = document(&[&train[..], &["--print-config"]].concat());
    assert_eq!(found["model"]["path"], *model);
    let found = document(&[&train[..], &few, &["--dry-run"]].concat());
    assert_eq!(found["train"]["examples"], 16);
    let found = document(&[&train[..], &few].concat());
    assert_eq!((&found["finished"]["steps"], &found["output"]), (&2.into(), &(*out).into()));
    assert_eq!(found["finished"]["reason"], "max_steps");

    let found = document(&["plan", &model, "--memory", "8"]);
    assert_eq!(
        (&found["gpus"][0]["fits"], found["gpus"].as_array().unwrap().len()),
        (&true.into(), 1)
    );
    let peak = found["peak"].as_object().unwrap();
    let parts = peak.iter().filter(|(name, _)| *name != "host").filter_map(|(_, v)| v.as_u64());
    assert_eq!(Some(parts.sum()), found["total"].as_u64());
    let found = document(&["quantize", "--format", "nf4", "--format", "int8"]);
    assert_eq!(found["formats"].as_array().unwrap().len(), 4);

    let found = document(&[&["merge", &model, &out, &merged][..], &on].concat());
    assert_eq!(found["layers"].as_array().unwrap().len(), 14);
    let found = document(&["export", &merged, &gguf, "--type", "f16"]);
    assert_eq!((&found["model"], &found["type"]), (&(*gguf).into(), &"f16".into()));
    let found = document(&["export", &model, &adapter, "--adapter", &out, "--adapter-only"]);
    assert_eq!(found["adapter"], *adapter);
    let found = document(&["info", &adapter]);
    assert_eq!((&found[0]["type"], &found[0]["loads"]), (&"adapter".into(), &false.into()));

    // A line for each prompt.
    let prompts = path("prompts.txt");
    fs::write(&prompts, "say 1\n\nsay 2\n").unwrap();
    let more = ["--prompts", &prompts, "--max-new-tokens", "3"];
    let found = documents(&[&["generate", &model, "say 3"][..], &more, &on].concat());
    let asked: Vec<_> = found.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
    assert_eq!(asked, ["say 3", "say 1", "say 2"]);
    assert!(
        found.iter().all(|line| line["text"].is_string() && line["tokens"].as_u64() <= Some(3))
    );

    // An error leaves it empty, and has the same status.
    let output = burn_lora(["eval", &model, "--json"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(errors(&output).contains("--data"), "{}", errors(&output));
    assert!(run(&["chat", &model, "--json"]).unwrap_err().contains("generate --json"));
}

#[test]
fn a_preview_is_what_train_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    // There is nothing to load but the tokenizer.
    fs::remove_file(Path::new(&model).join("model.safetensors")).unwrap();
    let words = ["preview", "--model", &model, "--data", &data, "--max-length", "64"];
    let found = run(&words).unwrap();
    assert!(found.starts_with("20 examples, "), "{found}");
    assert_eq!(found.matches("«hello world<|im_end|>").count(), 3, "{found}");
    assert!(found.contains("say 2") && !found.contains("say 3"), "{found}");
    let found = run(&[&words[..], &["--from", "20", "--examples", "9"]].concat()).unwrap();
    assert!(found.contains("Example 20, ") && found.contains("say 19"), "{found}");
    let found = document(&[&words[..], &["--valid-split", "0.2", "--validation"]].concat());
    assert_eq!(found["train"]["examples"], 4);
    let spans = found["examples"][0]["spans"].as_array().unwrap();
    let trained: String = spans
        .iter()
        .filter(|span| span["trained"] == true)
        .map(|span| span["text"].as_str().unwrap())
        .collect();
    assert!(trained.starts_with("hello world<|im_end|>"), "{trained}");
    for (more, part) in [
        (["--from", "21"], "there are 20 examples"),
        (["--max-length", "3"], "none of its tokens"),
        (["--valid-split", "0.99"], "leaves one side empty"),
    ] {
        let given = if more[0] == "--max-length" { &words[..5] } else { &words[..] };
        let error = run(&[given, &more].concat()).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    assert!(run(&[&words[..], &["--validation"]].concat()).unwrap_err().contains("--valid-split"));
}

#[test]
fn adapters_are_evaluated_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let train = ["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"];
    let more = ["--max-length", "64", "--lr", "1e-2", "--epochs", "20", "--format", "none"];
    // What the run itself measures at its end.
    let report = document(&[&train[..], &more, &["--valid", &data]].concat());
    let last = report["evaluations"].as_array().unwrap().last().unwrap();

    let eval = ["eval", &model, "--data", &data, "--device", "cpu"];
    let found = document(
        &[&eval[..], &["--adapter", "base", "--adapter", &out, "--adapter", "base"]].concat(),
    );
    let rows = found["results"].as_array().unwrap();
    let losses: Vec<_> = rows.iter().map(|row| row["loss"].as_f64().unwrap()).collect();
    assert_eq!(rows[1]["adapter"], *out);
    let close = |a: f64, b: &Value| (a / b.as_f64().unwrap() - 1.0).abs() < 1e-4;
    assert!(close(losses[1], &last["loss"]) && losses[1] < losses[0] - 0.5, "{losses:?} {last}");
    assert_eq!(losses[0], losses[2], "an adapter leaves nothing behind");
    let perplexity = rows[1]["perplexity"].as_f64().unwrap();
    assert!(close(perplexity, &losses[1].exp().into()));
    assert_eq!(rows[1]["mean_token_accuracy"], last["mean_token_accuracy"]);
    assert_eq!(rows[1]["tokens"], found["data"]["target_tokens"]);
    // An adapter's folder brings its model; rows are independent of the size of batches.
    let alone = document(&["eval", &out, "--data", &data, "--device", "cpu", "--batch-size", "7"]);
    let loss = alone["results"][0]["loss"].as_f64().unwrap();
    assert!(close(loss, &rows[1]["loss"]), "{loss} {losses:?}");

    let table = run(&[&eval[..], &["--adapter", "base", "--adapter", &out]].concat()).unwrap();
    for part in ["adapter", "loss", "perplexity", "mean_token_accuracy", "base  ", &out] {
        assert!(table.contains(part), "no `{part}` in: {table}");
    }
    // What a run file validates on.
    let file = folder.path().join("run.toml");
    let text =
        format!("[model]\npath = {model:?}\n[data]\nfiles = [{data:?}]\nvalid_split = 0.25\n");
    fs::write(&file, text).unwrap();
    let found = document(&["eval", "--config", file.to_str().unwrap(), "--device", "cpu"]);
    assert_eq!(found["data"]["examples"], 5);
}

#[test]
fn completions_are_scripts_that_know_all_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(&["completions", shell]).unwrap();
        for word in ["info", "preview", "eval", "adapter-only", "json"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    fs::write(&file, run(&["completions", "bash"]).unwrap()).unwrap();
    if let Ok(output) = Command::new("bash").arg("-n").arg(&file).output() {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn colours_are_for_terminals_and_for_those_who_force_them() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let words = ["preview", "--model", &model, "--data", &data];
    let show = |variables: &[(&str, &str)], words: &[&str]| {
        let mut command = burn_lora(words.iter().copied());
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        let output = command.envs(variables.iter().copied()).output().unwrap();
        [output.stdout, output.stderr].map(|bytes| bytes.contains(&0x1b))
    };
    let force = ("CLICOLOR_FORCE", "1");
    for (variables, coloured) in [
        (&[][..], false),
        (&[force], true),
        (&[("CLICOLOR_FORCE", "0")], false),
        (&[force, ("NO_COLOR", "1")], false),
    ] {
        assert_eq!(show(variables, &words), [coloured, false], "{variables:?}");
        assert_eq!(show(variables, &["info", "no/such"]), [false, coloured], "{variables:?}");
        // As JSON never.
        let json = [&words[..], &["--json"]].concat();
        assert_eq!(show(variables, &json), [false, false], "{variables:?}");
    }
}
