//! The examples: run files, and `finetune`, `chat` and `merge` on a very small model, as functions; the
//! quickstart as the program that `cargo test` has built.

// Each example has its own copy of what they share.
#![allow(clippy::duplicate_mod)]

#[path = "../examples/chat.rs"]
#[allow(dead_code)]
mod chat;
#[path = "../examples/finetune.rs"]
#[allow(dead_code)]
mod finetune;
#[path = "../examples/merge.rs"]
#[allow(dead_code)]
mod merge;

use burn_lora::prelude::*;
use clap::{CommandFactory, Parser};
use finetune::run_file::RunFile;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The arguments of `finetune`.
fn arguments<'a>(words: impl IntoIterator<Item = &'a str>) -> finetune::Arguments {
    let words = std::iter::once("finetune").chain(words);
    finetune::Arguments::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `finetune`; the error as it is shown.
fn finetune<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let result = finetune::finetune(&arguments(words), || Ok(Interrupt::default()));
    result.map(drop).map_err(|error| error.to_string())
}

/// The README's first command, with few samples of one epoch, in a folder of its own.
#[test]
fn the_quickstart_learns_and_leaves_an_adapter() {
    // Examples lie beside the folder of this test.
    let deps = std::env::current_exe().unwrap();
    let name = format!("quickstart{}", std::env::consts::EXE_SUFFIX);
    let program = deps.parent().unwrap().with_file_name("examples").join(name);
    assert!(program.exists(), "`cargo test` builds it, and `cargo build --examples`");
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(["--device", "cpu", "--epochs", "0.05", "--test", "8"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["6000 examples", "What 8 diamonds cost", "the model now", "answers the same"] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    let adapter = folder.path().join("quickstart-adapter");
    assert!(adapter.join("adapter_model.safetensors").exists());
    assert!(adapter.join("adapter_config.json").exists());
}

fn run_files() -> Vec<PathBuf> {
    let files = fs::read_dir("examples/configs").unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn run_files_are_valid_and_make_steps_of_16_384_tokens() {
    let files = run_files();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        let words = ["--config", file.to_str().unwrap(), "--model", "m", "--data", "d"];
        let run = arguments(words.into_iter().chain(["--output", "o"])).run().unwrap();
        run.check().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let RunFile { data, train, .. } = &run;
        let row = train.batches.packing.expect("rows are packed");
        let step = row * train.batches.size * train.gradient_accumulation_steps;
        assert_eq!(step, 16_384, "{}", file.display());
        assert_eq!(data.max_length, row, "{}", file.display());
    }
}

#[test]
fn a_printed_run_is_the_same_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let sets = [
        "train.optimizer.name=lion",
        "train.schedule={polynomial = {power = 2.0}}",
        "train.warmup.steps=7",
        "train.max_grad_norm=0",
        "train.recompute.every=2",
        "train.early_stopping.patience=3",
        "train.lora_plus=16.0",
        "model.dtype=f32",
        "adapter.target_modules=['q_proj', 'v_proj']",
        "adapter.rank_pattern.q_proj=4",
        "adapter.init_lora_weights=pissa",
        "data.columns.prompt=question",
        "data.columns.completion=answer",
        "data.chat_variables.enable_thinking=false",
        "data.train_on=last_turn",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let mut runs =
        vec![RunFile::default(), arguments(sets.chain(["--valid-split", "0.1"])).run().unwrap()];
    runs.extend(run_files().iter().map(|file| RunFile::default().with_file(file).unwrap()));
    for run in runs {
        fs::write(&file, run.to_toml().unwrap()).unwrap();
        assert_eq!(RunFile::default().with_file(&file).unwrap(), run);
    }
}

#[test]
fn later_layers_go_over_earlier_ones() {
    let file = "examples/configs/llama-3.1-8b-qlora-24gb.toml";
    let words = ["--config", file, "--rank", "8", "--lr", "1e-5", "--set", "train.batches.size=3"];
    let run = arguments(words.into_iter().chain(["--set", "train.neftune=5"])).run().unwrap();
    assert_eq!((run.adapter.r, run.train.learning_rate), (8, 1e-5));
    // What is not named stays: the file's, or the default.
    assert_eq!((run.train.batches.size, run.train.batches.packing), (3, Some(8192)));
    assert_eq!((run.train.neftune, run.train.log_steps), (Some(5.0), 10));
    let lora = run.lora().unwrap();
    assert_eq!(lora, LoraConfig::new(8, 128).all_linear());
}

#[test]
fn wrong_names_and_values_are_errors_that_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    for (text, parts) in [
        ("[train]\nlearning_rte = 1e-4\n", ["run.toml", "line 2", "learning_rte"]),
        ("[adapter]\nr = 8\nlora_alhpa = 16\n", ["run.toml", "line 3", "lora_alhpa"]),
        ("[trian]\n", ["run.toml", "line 1", "trian"]),
        ("[train.batches]\nsize = 'two'\n", ["run.toml", "line 2", "size"]),
        ("[data]\nfiles = [\n", ["run.toml", "TOML parse error", "line"]),
    ] {
        fs::write(&file, text).unwrap();
        let error = RunFile::default().with_file(&file).unwrap_err();
        parts.iter().for_each(|part| assert!(error.contains(part), "no `{part}` in: {error}"));
    }
    for (setting, part) in [
        ("train.epoch=3", "`epoch`"),
        ("train.epochs=three", "epochs"),
        ("train.optimizer.name=adam", "`adam`"),
        ("epochs=3", "`epochs`"),
        ("train.epochs", "NAME=VALUE"),
        ("train.warmup=0", "{ ratio = 0.03 }"),
        ("train.save=100", "{ steps = 100 }"),
        ("train.optimizer=lion", "{ name = "),
    ] {
        let error = RunFile::default().with_setting(setting).unwrap_err();
        let said = error.strip_prefix(&format!("--set {setting}: ")).unwrap_or_default();
        assert!(said.contains(part), "no `{part}` in: {error}");
    }
    let error = RunFile::default().with_file(Path::new("no/such.toml")).unwrap_err();
    assert!(error.contains("no/such.toml"), "{error}");
}

#[test]
fn what_is_missing_shows_before_anything_is_loaded() {
    let given = ["--model", "m", "--data", "d", "--output", "o"];
    for (words, part) in [
        (vec![], "model.path"),
        (given[..2].to_vec(), "data.files"),
        (given[..4].to_vec(), "train.output"),
        ([&given[..], &["--set", "train.evaluate.steps=5"]].concat(), "train.evaluate"),
        ([&given[..], &["--valid-split", "1.5"]].concat(), "data.valid_split"),
        ([&given[..], &["--rank", "0"]].concat(), "[adapter]"),
        ([&given[..], &["--epochs", "0"]].concat(), "`epochs`"),
        ([&given[..], &["--set", "model.block_size=48"]].concat(), "[model]"),
        ([&given[..], &["--format", "int8", "--set", "model.block_size=64"]].concat(), "of 4 bits"),
    ] {
        let error = finetune(words).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn a_folder_that_cannot_be_the_output_shows_before_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "x").unwrap();
    let earlier = folder.path().join("earlier");
    fs::create_dir_all(earlier.join("checkpoint-3")).unwrap();
    for (output, part) in [(&file, "a file"), (&earlier, "earlier run")] {
        let words = ["--model", "no model", "--data", "no data", "--device", "cpu"];
        let error = finetune(words.into_iter().chain(["--output", output.to_str().unwrap()]));
        let error = error.unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn command_lines_are_consistent() {
    finetune::Arguments::command().debug_assert();
    chat::Arguments::command().debug_assert();
    merge::Arguments::command().debug_assert();
    for device in ["cuda:x", "gpu", "cpu:1"] {
        let words = ["finetune", "--device", device];
        assert!(finetune::Arguments::try_parse_from(words).is_err(), "{device}");
    }
}

/// A folder with a very small Llama, a tokenizer with a chat template, and chats.
fn small_model(folder: &Path) -> (String, String) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 288,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
    });
    let config = LlamaConfig::from_json(&config.to_string()).unwrap();
    let model = folder.join("model");
    let llama = Llama::random(&config, 1, &Device::default());
    llama.save_pretrained(&model, &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
    Tokenizer::from_pretrained("testdata/tokenizer").unwrap().save(&model).unwrap();
    let line = |number: usize| {
        serde_json::json!({ "messages": [
            { "role": "user", "content": format!("say {number}") },
            { "role": "assistant", "content": "hello world" },
        ] })
    };
    let data = folder.join("chats.jsonl");
    let lines: String = (0..20).map(|number| format!("{}\n", line(number))).collect();
    fs::write(&data, lines).unwrap();
    [model, data].map(|path| path.to_str().unwrap().to_owned()).into()
}

/// What `chat` answers.
fn chat(words: &[&str], input: &str) -> Result<String, String> {
    let words = std::iter::once("chat").chain(words.iter().copied());
    let arguments = chat::Arguments::try_parse_from(words).unwrap();
    let mut output = vec![];
    chat::chat(&arguments, input.as_bytes(), &mut output, false).map_err(|e| e.to_string())?;
    Ok(String::from_utf8(output).unwrap())
}

#[test]
fn a_model_is_tuned_chatted_with_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, merged) = (path("out"), path("merged"));
    let common = ["--model", &model, "--data", &data, "--output", &out, "--device", "cpu"];
    let more = ["--valid-split", "0.1", "--max-length", "64", "--lr", "1e-2", "--epochs", "40"];
    let words = [&common[..], &more[..]].concat();

    finetune([&words[..], &["--dry-run"]].concat()).unwrap();
    assert!(!Path::new(&out).exists(), "a dry run writes nothing");

    finetune([&words[..], &["--max-steps", "10"]].concat()).unwrap();
    let error = finetune(words.clone()).unwrap_err();
    assert!(error.contains("checkpoints of an earlier run"), "{error}");
    finetune([&words[..], &["--resume", "--sample", "say 3"]].concat()).unwrap();
    for file in ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "loss.svg"] {
        assert!(Path::new(&out).join(file).exists(), "{file}");
    }
    let config = fs::read_to_string(Path::new(&out).join("adapter_config.json")).unwrap();
    assert!(config.contains(&format!("\"base_model_name_or_path\": \"{model}\"")), "{config}");

    // With the adapter it says what it has learned, without it does not; a pipe ends the chat.
    let greedy = ["--device", "cpu", "--temperature", "0", "--max-new-tokens", "8"];
    let adapter = [&[model.as_str(), "--adapter", &out, "--4bit"][..], &greedy].concat();
    let found = chat(&adapter, "say 3\n/base\nsay 3\n/base\n/reset\n\nsay 5").unwrap();
    let answers: Vec<_> = found.lines().collect();
    assert_eq!((answers[0], answers.last()), ("hello world", Some(&"hello world")), "{found}");
    assert!(found.matches("hello world").count() == 2, "{found}");
    assert_eq!(chat(&adapter, "/quit\nsay 3").unwrap(), "");

    // Merged it needs none.
    let merge = |words: &[&str]| {
        let words = ["merge", &model, &out].into_iter().chain(words.iter().copied());
        let arguments = merge::Arguments::try_parse_from(words).unwrap();
        merge::merge(&arguments).map_err(|error| error.to_string())
    };
    merge(&[&merged, "--dtype", "f32"]).unwrap();
    let found = chat(&[&[merged.as_str()][..], &greedy].concat(), "say 3").unwrap();
    assert_eq!(found, "hello world\n");
    assert!(merge(&[&merged]).unwrap_err().contains("--force"));
    merge(&[&merged, "--force"]).unwrap();
    for read in [&model, &out] {
        assert!(merge(&[read, "--force"]).unwrap_err().contains("read from"));
    }
}

#[test]
fn a_model_without_a_chat_template_goes_on_with_each_line() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = small_model(folder.path());
    let config = Path::new(&model).join("tokenizer_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields.as_object_mut().unwrap().remove("chat_template").expect("the template is there");
    fs::write(&config, fields.to_string()).unwrap();
    let words = [model.as_str(), "--device", "cpu", "--max-new-tokens", "2"];
    let found = chat(&words, "hello\nworld\n").unwrap();
    assert!(found.lines().count() >= 2, "{found}");
    let error = chat(&[&words[..], &["--system", "Be brief."]].concat(), "").unwrap_err();
    assert!(error.contains("chat template"), "{error}");
}
