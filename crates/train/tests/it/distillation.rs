//! Distillation against TRL's losses (testdata/distillation.py): losses, metrics, gradients, ten steps.

use crate::{common::*, steps};
use burn_lora_adapter::AdaptableExt;
use burn_lora_llama::Llama;
use burn_lora_train::{
    BatchConfig, Dataset, Recompute, TrainConfig, Trainer,
    data::{Sample, TopLogits},
    evaluate_with,
    objective::{Distillation, DistillationConfig, top_logits},
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

fn path(name: &str) -> PathBuf {
    golden("distillation").join(name)
}

fn read(file: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn answers() -> Dataset {
    let answers = read(golden("preferences").join("answers.json"));
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let samples = answers.as_array().unwrap().iter().map(|one| {
        let (prompt, answer) = (ids(&one["prompt"]), ids(&one["completion"]));
        let loss_mask = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
        Sample { ids: [prompt, answer].concat(), loss_mask }
    });
    Dataset::from_samples(samples).unwrap()
}

fn with_adapter(name: &str) -> Llama {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    model.load_adapter("default", golden("gqa").join(name)).unwrap();
    model
}

fn student() -> Llama {
    with_adapter("lora_qv")
}

fn teacher() -> Llama {
    with_adapter("rslora")
}

/// Settings of a golden, in our names, which are TRL's.
fn settings(case: &str) -> DistillationConfig {
    serde_json::from_value(read(path(&format!("{case}.json")))["settings"].clone()).unwrap()
}

fn batches() -> BatchConfig {
    BatchConfig { size: 4, ..BatchConfig::default() }
}

#[test]
fn a_teacher_agrees_with_trl() {
    let data = answers();
    for case in ["forward", "reverse", "jsd", "skewed"] {
        let objective = Distillation::new(settings(case), teacher());
        steps::check(&path(case), student, objective, &data, 6, &[], |run| run);
    }
    // Layers that are run again, packed rows and two micro-batches make no difference.
    let check = |change: &dyn Fn(TrainConfig) -> TrainConfig| {
        let objective = Distillation::new(settings("jsd"), teacher());
        steps::check(&path("jsd"), student, objective, &data, 6, &[], change);
    };
    check(&|run| run.recompute(Recompute::EveryLayer));
    check(&|run| {
        let batches = BatchConfig { size: 2, packing: Some(64), ..run.batches.clone() };
        run.batches(batches)
    });
    check(&|run| {
        let batches = BatchConfig { size: 3, ..run.batches.clone() };
        run.batches(batches).gradient_accumulation_steps(2)
    });
}

#[test]
fn stored_predictions_agree_with_trl() {
    let data = answers();
    for case in ["forward_top", "forward_top_alone", "reverse_top", "jsd_top", "reverse_top_alone"]
    {
        let settings = settings(case);
        let rows = top_logits(&teacher(), &data, 8, settings.temperature, &batches()).unwrap();
        let data = data.clone().with_top_logits(rows).unwrap();
        let objective = Distillation::stored(settings);
        steps::check(&path(case), student, objective, &data, 6, &[], |run| run);
    }
}

/// All tokens of the vocabulary are the whole distribution.
#[test]
fn as_many_as_the_vocabulary_are_all() {
    let data = answers();
    for beta in [0.0, 0.4, 1.0] {
        let config = DistillationConfig { beta, loss_add_tail: false, ..settings("forward") };
        let whole = Distillation::new(config, teacher());
        let whole = evaluate_with(&whole, &student(), &data, &batches()).unwrap();
        let rows = top_logits(&teacher(), &data, 128, 1.0, &batches()).unwrap();
        let stored = data.clone().with_top_logits(rows).unwrap();
        let stored =
            evaluate_with(&Distillation::stored(config), &student(), &stored, &batches()).unwrap();
        assert!((whole.loss - stored.loss).abs() < 1e-6, "{beta}: {whole:?}, {stored:?}");
    }
}

#[test]
fn a_file_of_predictions_is_of_its_data() {
    let data = answers();
    let rows = top_logits(&teacher(), &data, 8, 1.0, &batches()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("teacher.safetensors");
    rows.save(&file, &data).unwrap();
    // The same tokens and log-probabilities as torch's.
    let (found, expected) = (tensors(&file), tensors(&path("top.safetensors")));
    assert_eq!(found["token_ids"], expected["token_ids"]);
    assert!(difference(&found["logprobs"].1, &expected["logprobs"].1) < 1e-5);

    // Parts of the data have their rows, in any order.
    let loaded = TopLogits::load(&file, &data).unwrap();
    let (train, valid) = data.clone().with_top_logits(loaded).unwrap().split(0.5, 3);
    let config = settings("forward");
    let stored = Distillation::stored(config);
    let sum = |data: &Dataset| {
        let found = evaluate_with(&stored, &student(), data, &batches()).unwrap();
        found.loss * found.tokens as f64
    };
    let all = data.clone().with_top_logits(TopLogits::load(&file, &data).unwrap()).unwrap();
    assert!((sum(&train) + sum(&valid) - sum(&all)).abs() < 1e-4);

    let rows = || TopLogits::load(&file, &data).unwrap();
    let other = answers();
    let error = other.clone().with_top_logits(rows()).unwrap_err().to_string();
    assert!(error.contains("of other data"), "{error}");
    assert!(rows().save(&file, &other).is_err());
    let error = TopLogits::load(&file, &valid).unwrap_err().to_string();
    assert!(error.contains("of other data"), "{error}");
    let error = TopLogits::load(folder.path().join("none"), &data).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
    let bytes = fs::read(&file).unwrap();
    for (bytes, part) in [
        (b"no tensors".to_vec(), "no file of a teacher's logits"),
        (bytes[..bytes.len() - 4].to_vec(), "no file of a teacher's logits"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = TopLogits::load(&file, &data).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_cannot_be_distilled() {
    let data = answers();
    let run = |objective: Distillation<Llama>, data: &Dataset| {
        let run = Trainer::new(TrainConfig::new(1e-3));
        run.fit_with(objective, &mut student(), data, None).unwrap_err().to_string()
    };
    let with = |config: Value| serde_json::from_value::<DistillationConfig>(config).unwrap();
    for (config, part) in [
        (json!({"beta": 1.5}), "`objective.beta` is 1.5"),
        (json!({"temperature": 0.0}), "`objective.temperature` is 0"),
    ] {
        let error = run(Distillation::new(with(config), teacher()), &data);
        assert!(error.contains(part), "{error}");
    }
    let stored = |config| run(Distillation::stored(config), &data);
    assert!(stored(with(json!({}))).contains("`with_top_logits`"));
    let rows = top_logits(&teacher(), &data, 8, 2.0, &batches()).unwrap();
    let error =
        run(Distillation::stored(with(json!({}))), &data.clone().with_top_logits(rows).unwrap());
    assert!(error.contains("of the temperature 2"), "{error}");
    for k in [0, 129] {
        let error = top_logits(&teacher(), &data, k, 1.0, &batches()).unwrap_err().to_string();
        assert!(error.contains(&format!("`objective.loss_top_k` is {k}")), "{error}");
    }
    let other = loader(&golden("llama3")).load(&device()).unwrap();
    let error = run(Distillation::new(with(json!({})), other), &data);
    assert!(error.contains("the student has 128 tokens"), "{error}");
}
