//! Tokens that a run adds to the vocabulary, from the data to what other programs load.

use crate::commands::{run, small_model};
use burn_lora::prelude::*;
use serde_json::Value;
use std::{fs, path::Path, process::Command};

const TOKENS: [&str; 2] = ["<tool>", "<done>"];

/// Chats whose answers have new tokens.
fn chats(folder: &Path) -> String {
    let line = |number: usize| {
        serde_json::json!({ "messages": [
            { "role": "user", "content": format!("say {number}") },
            { "role": "assistant", "content": "<tool>hello<done>" },
        ] })
    };
    let path = folder.join("tools.jsonl");
    fs::write(&path, (0..20).map(|number| format!("{}\n", line(number))).collect::<String>())
        .unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Loads the adapter onto the base that transformers has resized, and what was merged.
const SCRIPT: &str = r#"
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, merged = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
other = AutoTokenizer.from_pretrained(merged)
text = tokenizer.apply_chat_template([{"role": "user", "content": "say 3"}], tokenize=False,
                                     add_generation_prompt=True) + "<tool>hello<done>"
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
assert ids.tolist() == other(text, return_tensors="pt", add_special_tokens=False)["input_ids"].tolist()
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
peft = PeftModel.from_pretrained(model, adapter).eval()
alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
with torch.no_grad():
    a, b = peft(ids).logits, alone(ids).logits
assert a.shape == b.shape, (a.shape, b.shape)
assert (a - b).abs().max().item() < 1e-4, (a - b).abs().max().item()
prompt = tokenizer(text.removesuffix("<tool>hello<done>"), return_tensors="pt", add_special_tokens=False)
said = peft.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1]:]
print(tokenizer.decode(said))
print(tokenizer.decode(said, skip_special_tokens=True))
"#;

fn a_run(train: &str, python: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = small_model(folder.path());
    let data = chats(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, merged, gguf) = (path("out"), path("merged"), path("mine.gguf"));
    let how = format!("tokens.train={train}");
    let words = [
        &["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"][..],
        &["--max-length", "64", "--lr", "2e-2", "--epochs", "40", "--format", "none"],
        &[
            "--set",
            "tokens.add=['<tool>', 'hello']",
            "--set",
            "tokens.special=['<done>']",
            "--set",
            &how,
        ],
        &["--set", "train.save.steps=5"],
    ]
    .concat();
    // The vocabulary of the tokenizer has 286 tokens, the embedding 288 rows: `<tool>` and `<done>` fit.
    let shown = run(&[&words[..], &["--max-steps", "10"]].concat()).unwrap();
    for part in ["token 286: \"<tool>\"", "token 281: \"hello\"", "token 287: \"<done>\""] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert!(Path::new(&out).join("checkpoint-10/tokenizer.json").exists());
    run(&[&words[..], &["--resume"]].concat()).unwrap();
    let own = Tokenizer::from_pretrained(&out).unwrap();
    assert_eq!(TOKENS.map(|token| own.token_to_id(token)), [Some(286), Some(287)]);
    let config = json(&Path::new(&out).join("adapter_config.json"));
    let rows = &config["trainable_token_indices"];
    match train {
        "rows" => assert_eq!(rows["embed_tokens"], serde_json::json!([286, 281, 287])),
        "whole" => {
            assert_eq!(config["modules_to_save"], serde_json::json!(["embed_tokens", "lm_head"]))
        }
        _ => assert!(rows.is_null() && config["modules_to_save"].is_null()),
    }

    let question = ["say 3", "--device", "cpu", "--max-new-tokens", "8"];
    let with_adapter = [&["generate", &model, "--adapter", &out][..], &question].concat();
    let answer = run(&with_adapter).unwrap();
    if train != "none" {
        assert_eq!(answer, "<tool>hello");
    }
    run(&["merge", &model, &out, &merged, "--dtype", "f32"]).unwrap();
    run(&["export", &model, &gguf, "--adapter", &out, "--type", "f32"]).unwrap();
    for model in [&merged, &gguf] {
        assert_eq!(
            run(&[&["generate", model][..], &question].concat()).unwrap(),
            answer,
            "{model}"
        );
    }
    assert_eq!(json(&Path::new(&merged).join("config.json"))["vocab_size"], 288);
    // Going on with the adapter, in a run of its own.
    let next = path("next");
    let words: Vec<&str> =
        words.iter().map(|word| if *word == out { next.as_str() } else { word }).collect();
    run(&[&words[..], &["--adapter", &out, "--max-steps", "1"]].concat()).unwrap();
    assert!(Path::new(&next).join("tokenizer.json").exists());

    if let Some(python) = python {
        let ran =
            Command::new(python).args(["-c", SCRIPT, &model, &out, &merged]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let said = String::from_utf8(ran.stdout).unwrap();
        if train != "none" {
            assert!(said.starts_with("<tool>hello<done>"), "{said}");
            assert!(said.lines().nth(1).unwrap().starts_with("<tool>hello"), "{said}");
        }
    }
}

#[test]
fn rows_of_new_tokens_are_trained() {
    a_run("rows", None);
}

#[test]
fn whole_copies_are_trained_for_new_tokens() {
    a_run("whole", None);
}

#[test]
#[ignore = "needs BURN_LORA_PYTHON, a Python with transformers and peft"]
fn python_goes_on_with_what_was_trained() {
    let python = std::env::var("BURN_LORA_PYTHON").expect("BURN_LORA_PYTHON names a Python");
    for train in ["rows", "whole", "none"] {
        a_run(train, Some(&python));
    }
}

/// More tokens than the embedding has rows.
#[test]
fn a_vocabulary_grows_with_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = small_model(folder.path());
    let data = chats(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, merged, gguf) = (path("out"), path("merged"), path("mine.gguf"));
    let words = [
        &["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"][..],
        &["--max-length", "64", "--max-steps", "3", "--format", "none"],
        &["--set", "tokens.add=['<tool>', '<a>', '<b>']", "--set", "tokens.special=['<done>']"],
    ];
    run(&words.concat()).unwrap();
    let tensors = fs::read(Path::new(&out).join("adapter_model.safetensors")).unwrap();
    // Only the rows: no whole embedding.
    assert!(!String::from_utf8_lossy(&tensors).contains("embed_tokens.weight"));
    run(&["merge", &model, &out, &merged]).unwrap();
    assert_eq!(json(&Path::new(&merged).join("config.json"))["vocab_size"], 290);
    assert_eq!(Tokenizer::from_pretrained(&merged).unwrap().vocab_size(), 290);
    run(&["export", &model, &gguf, "--adapter", &out]).unwrap();
    assert_eq!(Tokenizer::from_pretrained(&gguf).unwrap().token_to_id("<done>"), Some(289));
    let error = run(&["export", &model, &path("lora.gguf"), "--adapter", &out, "--adapter-only"]);
    assert!(error.unwrap_err().contains("rows of `model.embed_tokens`"));
    // The adapter's folder alone brings its base.
    let question = ["say 3", "--device", "cpu", "--max-new-tokens", "2"];
    run(&[&["generate", &out][..], &question].concat()).unwrap();
}

#[test]
fn settings_of_tokens_are_checked() {
    let given =
        ["train", "--model", "m", "--data", "d", "--output", "o", "--set", "tokens.add=['<a>']"];
    for (setting, part) in [
        ("tokens.special=['']", "`tokens.special` is ['']: an empty text can be no token"),
        ("tokens.special=['<a>']", "`tokens.add` is <a>: it is in `tokens.special`, too"),
        ("adapter.trainable_token_indices=[5]", "`tokens.train` is rows"),
        ("tokens.train=row", "unknown variant `row`"),
        ("tokens.ad=['<a>']", "nearest: `add`"),
    ] {
        let error = run(&[&given[..], &["--set", setting]].concat()).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}
