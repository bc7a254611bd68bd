//! Each command, on very small models.

use crate::{burn_lora, errors, root};
use burn_lora::prelude::*;
use std::{fs, io::Write, path::Path, process::Stdio};

/// What a command writes, or the error that it shows. It reads `input`.
fn with_input(words: &[&str], input: &str) -> Result<String, String> {
    let mut command = burn_lora(words.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails need not have read it.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(output.stdout).unwrap()),
        code => {
            assert_eq!(code, Some(1), "{words:?}: {}", errors(&output));
            Err(errors(&output))
        }
    }
}

pub fn run(words: &[&str]) -> Result<String, String> {
    with_input(words, "")
}

/// A folder with a very small Llama, a tokenizer with a chat template, and chats.
pub fn small_model(folder: &Path) -> (String, String) {
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
    Tokenizer::from_pretrained(root("testdata/tokenizer")).unwrap().save(&model).unwrap();
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

#[test]
fn what_is_missing_names_its_option() {
    let given = ["train", "--model", "m", "--data", "d", "--output", "o"];
    for (words, part) in [
        (given[..1].to_vec(), "`model.path` is not set: name a folder"),
        (given[..1].to_vec(), "(--model FOLDER)"),
        (given[..3].to_vec(), "(--data FILE)"),
        (given[..5].to_vec(), "(--output FOLDER)"),
        ([&given[..], &["--set", "train.evaluate.steps=5"]].concat(), "`train.evaluate`"),
        ([&given[..], &["--valid-split", "1.5"]].concat(), "data.valid_split"),
        ([&given[..], &["--rank", "0"]].concat(), "[adapter]"),
        ([&given[..], &["--epochs", "0"]].concat(), "`epochs`"),
        ([&given[..], &["--set", "train.epoch=1"]].concat(), "--set train.epoch=1: unknown field"),
        ([&given[..], &["--format", "int8", "--set", "model.block_size=64"]].concat(), "of 4 bits"),
        ([&given[..], &["--config", "no/such.toml"]].concat(), "no/such.toml"),
    ] {
        let error = run(&words).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn options_go_over_the_file_and_settings_over_options() {
    let config = "examples/configs/llama-3.1-8b-qlora-24gb.toml";
    let words = [
        &["train", "--print-config", "--config", config, "--device", "cpu", "--rank", "8"][..],
        &["--lr", "1e-5", "--seed", "3", "--format", "fp4", "--epochs", "5"],
        &["--set", "train.batches.size=3", "--set", "train.epochs=4", "--max-length", "64"],
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    fs::write(&file, run(&words.concat()).unwrap()).unwrap();
    let read = RunConfig::from_file(&file).unwrap();
    let mut expected = RunConfig::from_file(root(config)).unwrap();
    expected.devices = vec!["cpu".parse().unwrap()];
    expected.model.format = WeightFormat::Fp4;
    expected.adapter = LoraConfig::new(8, 128).all_linear().seed(3);
    expected.data.max_length = 64;
    expected.train = expected.train.epochs(4).seed(3).batch_size(3);
    expected.train.learning_rate = 1e-5;
    assert_eq!(read, expected);
    // With something to validate on there are evaluations.
    let found = run(&["train", "--print-config", "--valid", "v.jsonl"]).unwrap();
    assert!(found.contains("[train.evaluate]\nepochs = 1"), "{found}");
}

#[test]
fn a_folder_that_cannot_be_the_output_shows_before_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "x").unwrap();
    let earlier = folder.path().join("earlier");
    fs::create_dir_all(earlier.join("checkpoint-3")).unwrap();
    for (output, part) in [(&file, "a file"), (&earlier, "earlier run")] {
        let words = ["train", "--model", "no model", "--data", "no data", "--device", "cpu"];
        let output = ["--output", output.to_str().unwrap()];
        let error = run(&[&words[..], &output].concat()).unwrap_err();
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn a_model_is_tuned_chatted_with_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, merged) = (path("out"), path("merged"));
    let common = ["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"];
    let more = ["--valid-split", "0.1", "--max-length", "64", "--lr", "1e-2", "--epochs", "40"];
    let words = [&common[..], &more[..]].concat();

    let shown = run(&[&words[..], &["--dry-run"]].concat()).unwrap();
    for part in [
        "18 examples",
        "\n\nThe first example; what is trained is marked:\n",
        "Memory estimate of a training step",
        "The run, as a file",
        "[train]",
    ] {
        assert!(shown.contains(part), "no `{part}` in: {shown}");
    }
    assert!(!Path::new(&out).exists(), "a dry run writes nothing");

    run(&[&words[..], &["--max-steps", "10"]].concat()).unwrap();
    let error = run(&words).unwrap_err();
    assert!(error.contains("checkpoints of an earlier run"), "{error}");
    let shown = run(&[&words[..], &["--resume", "--sample", "say 3"]].concat()).unwrap();
    assert!(shown.contains("The model now:\nhello world\n"), "{shown}");
    let hint = format!("burn-lora chat {model} --adapter {out} --format nf4\n");
    assert!(shown.ends_with(&hint), "{shown}");
    for file in ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "loss.svg"] {
        assert!(Path::new(&out).join(file).exists(), "{file}");
    }
    let page = fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    let now = "<h3>The model now</h3><p class=\"text\">hello world</p>";
    for part in ["<h3>The model before</h3>", now, "<b>[train]</b>", "<mark>", "since step 10"] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let config = fs::read_to_string(Path::new(&out).join("adapter_config.json")).unwrap();
    assert!(config.contains(&format!("\"base_model_name_or_path\": \"{model}\"")), "{config}");

    // With the adapter it says what it has learned, without it does not; a pipe ends the chat.
    let greedy = ["--device", "cpu", "--temperature", "0", "--max-new-tokens", "8"];
    let adapter = [&["chat", &model, "--adapter", &out, "--4bit"][..], &greedy].concat();
    let found = with_input(&adapter, "say 3\n/base\nsay 3\n/base\n/reset\n\nsay 5").unwrap();
    let answers: Vec<_> = found.lines().collect();
    assert_eq!((answers[0], answers.last()), ("hello world", Some(&"hello world")), "{found}");
    assert!(found.matches("hello world").count() == 2, "{found}");
    assert_eq!(with_input(&adapter, "/quit\nsay 3").unwrap(), "");
    let words = ["generate", &model, "say 3", "--adapter", &out, "--nf4", "--device", "cpu"];
    assert_eq!(run(&words).unwrap(), "hello world");

    // Merged it needs none.
    let merge = |words: &[&str]| run(&[&["merge", &model, &out], words].concat());
    merge(&[&merged, "--dtype", "f32"]).unwrap();
    let found = with_input(&[&["chat", &merged][..], &greedy].concat(), "say 3").unwrap();
    assert_eq!(found, "hello world\n");
    assert!(merge(&[&merged]).unwrap_err().contains("--force"));
    merge(&[&merged, "--force"]).unwrap();
    // Packed: a little is rounded away, or nothing where the adapter stays beside it.
    let (packed, beside) = (path("packed"), path("beside"));
    let of_format = |output: &str, more: &[&str]| {
        merge(&[&[output, "--format", "nf4", "--dtype", "f32", "--data", &data], more].concat())
    };
    let said = of_format(&packed, &[]).unwrap();
    let losses = |said: &str| -> Vec<f64> {
        let line = said.lines().find(|line| line.starts_with("Loss of")).unwrap();
        line.split([' ', ',']).filter_map(|word| word.trim_end_matches('.').parse().ok()).collect()
    };
    assert!(said.contains("% of the update is kept"), "{said}");
    assert_eq!(losses(&said).len(), 2, "{said}");
    let said = of_format(&beside, &["--rest"]).unwrap();
    let [before, after] = losses(&said)[..] else { panic!("{said}") };
    assert_eq!(before, after);
    let rest = format!("{beside}/rest");
    let said = run(&[
        "eval",
        &beside,
        "--adapter",
        &rest,
        "--data",
        &data,
        "--dtype",
        "f32",
        "--exact-match",
        "2",
    ]);
    let said = said.unwrap();
    assert!(said.contains(&format!("{before:.4}")) && said.contains("exact_match"), "{said}");
    assert!(merge(&[&path("no"), "--format", "int8"]).unwrap_err().contains("nf4 and fp4"));
    for read in [&model, &out] {
        assert!(merge(&[read, "--force"]).unwrap_err().contains("read from"));
    }
}

#[test]
fn a_model_and_its_adapter_are_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, gguf, lora) = (path("out"), path("gguf/mine.gguf"), path("lora.gguf"));
    fs::create_dir(path("gguf")).unwrap();
    let train = ["train", "--model", &model, "--data", &data, "--output", &out, "--device", "cpu"];
    let more = [
        "--max-length",
        "64",
        "--max-steps",
        "4",
        "--lr",
        "1e-2",
        "--set",
        "adapter.use_rslora=true",
    ];
    run(&[&train[..], &more[..]].concat()).unwrap();

    run(&["export", &model, &gguf, "--adapter", &out, "--type", "f32"]).unwrap();
    let modelfile = fs::read_to_string(path("gguf/Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./mine.gguf\nTEMPLATE "), "{modelfile}");
    assert!(
        modelfile.contains("{{ .Prompt }}") && modelfile.contains("PARAMETER stop"),
        "{modelfile}"
    );
    // It answers as the model with its adapter does.
    let question = ["say 3", "--device", "cpu", "--max-new-tokens", "8"];
    let own = run(&[&["generate", &model, "--adapter", &out], &question[..]].concat()).unwrap();
    assert_eq!(run(&[&["generate", &gguf], &question[..]].concat()).unwrap(), own);
    // As the adapter alone brings its base.
    assert_eq!(run(&[&["generate", &out], &question[..]].concat()).unwrap(), own);
    let error = run(&["export", &model, &gguf]).unwrap_err();
    assert!(error.contains("mine.gguf") && error.contains("--force"), "{error}");
    // All tokens that end a text, as the adapter's folder says.
    fs::write(path("out/generation_config.json"), r#"{ "eos_token_id": [2, 5, 7] }"#).unwrap();
    run(&["export", &model, &gguf, "--adapter", &out, "--force"]).unwrap();
    let ends = Tokenizer::from_pretrained(&gguf).unwrap().eos_token_ids().to_vec();
    assert!([2, 5, 7].iter().all(|id| ends.contains(id)), "{ends:?}");
    let modelfile = fs::read_to_string(path("gguf/Modelfile")).unwrap();
    assert_eq!(modelfile.matches("PARAMETER stop").count(), ends.len(), "{modelfile}");

    run(&["export", &model, &lora, "--adapter", &out, "--adapter-only"]).unwrap();
    assert!(fs::read(&lora).unwrap().starts_with(b"GGUF"));
    let plain = path("plain");
    let shown = run(&["export", &gguf, &plain, "--adapter", &out, "--adapter-only"]).unwrap();
    assert!(shown.contains("for vLLM with --max-lora-rank 16"), "{shown}");
    let settings = fs::read_to_string(path("plain/adapter_config.json")).unwrap();
    assert!(settings.contains("\"use_rslora\": false"), "{settings}");
    for file in ["base/config.json", "base/tokenizer.json"] {
        assert!(Path::new(&plain).join(file).exists(), "{file}");
    }
    for (words, part) in [
        (vec!["export", &model, "folder"], "burn-lora merge"),
        (vec!["export", &model, "x.gguf", "--adapter-only"], "--adapter"),
        (
            vec!["export", &out, "x.gguf", "--adapter", &out],
            "there is an adapter `default` already",
        ),
    ] {
        let error = run(&words).unwrap_err();
        assert!(error.contains(part), "{error}");
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
    let words = ["chat", model.as_str(), "--device", "cpu", "--max-new-tokens", "2"];
    let found = with_input(&words, "hello\nworld\n").unwrap();
    assert!(found.lines().count() >= 2, "{found}");
    let error = run(&[&words[..], &["--system", "Be brief."]].concat()).unwrap_err();
    assert!(error.contains("chat template"), "{error}");
}

/// A run that a signal ends goes on from there, and says so to the shell.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_with_a_checkpoint() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = small_model(folder.path());
    let out = folder.path().join("out");
    let mut command = burn_lora([
        "train",
        "--model",
        &model,
        "--data",
        &data,
        "--output",
        out.to_str().unwrap(),
        "--device",
        "cpu",
        "--epochs",
        "100000",
        "--set",
        "train.log_steps=1",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Progress is on standard error: it trains.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("loss")));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("The same command with --resume goes on."), "{said}");
    assert!(
        fs::read_dir(&out).unwrap().any(|entry| {
            entry.unwrap().file_name().to_string_lossy().starts_with("checkpoint-")
        })
    );
}

#[test]
fn formats_are_compared_on_random_numbers_and_on_a_model() {
    let found = run(&["quantize"]).unwrap();
    for part in ["a random weight [1024, 1024]", "nf4+dq", "mxfp4", "int8", "128 x 128"] {
        assert!(found.contains(part), "no `{part}` in: {found}");
    }
    let words = ["quantize", "testdata/gqa", "--format", "nf4", "--format", "int8"];
    let found = run(&words).unwrap();
    let error = |name: &str| {
        let line = found.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().rev().nth(1).unwrap().trim_end_matches('%').parse::<f64>().unwrap()
    };
    assert!(error("int8") < 2.0 && error("nf4+dq") > 5.0 && error("nf4+dq") < 12.0, "{found}");
    assert!(run(&["quantize", "testdata/gqa/bnb4bit"]).unwrap_err().contains("quantized already"));
}

#[test]
fn a_plan_is_that_of_its_options_or_of_a_run_file() {
    let found = run(&["plan"]).unwrap();
    assert!(found.contains("80 GiB"), "{found}");
    let config = "examples/configs/llama-3.1-8b-qlora-8gb.toml";
    let by_file = run(&["plan", "--config", config]).unwrap();
    let by_options = run(&[
        "plan",
        "--rank",
        "16",
        "--length",
        "2048",
        "--accumulate",
        "8",
        "--host-embeddings",
        "--offload",
        "--loss-chunk",
        "256",
        "--optimizer",
        "adamw8bit",
    ]);
    assert_eq!(by_file, by_options.unwrap());
    let found = run(&["plan", "testdata/gqa", "--memory", "8", "--recompute", "none"]).unwrap();
    assert!(found.lines().last().unwrap().trim().starts_with("8 GiB     yes"), "{found}");
}
