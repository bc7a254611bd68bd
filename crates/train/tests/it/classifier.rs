//! Sequence classification against transformers and peft (testdata/classifier/make.py): logits, loss, a curve of
//! AdamW and the adapter after it.

use crate::common::*;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use burn_lora_adapter::{Adaptable, AdaptableExt, FrozenLayer, LoraConfig};
use burn_lora_llama::{Llama, Segments, SequenceClassifier, Tokenizer};
use burn_lora_train::{
    BatchConfig, Dataset, Schedule, TrainConfig, Trainer, data::Sample, evaluate_with,
    objective::SequenceClassification,
};
use serde_json::{Value, json};
use std::path::PathBuf;

fn classes() -> SequenceClassification {
    SequenceClassification::new(3)
}

fn folder() -> PathBuf {
    "../../testdata/classifier".into()
}

fn model() -> SequenceClassifier {
    let loader = Llama::from_pretrained(folder()).dtype(FloatDType::F32);
    loader.load_classifier(3, &device()).unwrap()
}

/// The samples of the batch, without padding, and their labels.
fn samples() -> (Vec<Vec<u32>>, Vec<f32>) {
    let io = tensors(&folder().join("io.safetensors"));
    let (shape, ids) = &io["input_ids"];
    let mask = io["attention_mask"].1.chunks(shape[1]);
    let rows = ids.chunks(shape[1]).zip(mask).map(|(ids, mask)| {
        let kept = ids.iter().zip(mask).filter(|(_, mask)| **mask == 1.0);
        kept.map(|(id, _)| *id as u32).collect()
    });
    (rows.collect(), io["labels"].1.clone())
}

fn data() -> Dataset {
    let (rows, labels) = samples();
    let samples = rows.into_iter().map(|ids| Sample { loss_mask: vec![true; ids.len()], ids });
    Dataset::from_samples(samples).unwrap().with_values("label", labels).unwrap()
}

#[test]
fn logits_and_loss_agree() {
    for (adapter, expected) in [(false, folder()), (true, folder().join("lora"))] {
        let mut model = model();
        assert_eq!(model.num_labels(), 3);
        if adapter {
            model.load_adapter("default", folder().join("lora")).unwrap();
        }
        let expected = tensors(&expected.join("io.safetensors"));
        for (row, ids) in samples().0.into_iter().enumerate() {
            let count = ids.len();
            let ids = TensorData::new(
                ids.into_iter().map(|id| id as i32).collect::<Vec<_>>(),
                [1, count],
            );
            let tokens = Tensor::<2, Int>::from_data(ids, &device());
            let logits = model.forward(tokens, &Segments::whole(1, count)).narrow(1, count - 1, 1);
            let found: Vec<f32> = logits.inner().into_data().try_into_vec().unwrap();
            let off = difference(&found, &expected["logits"].1[row * 3..][..3]);
            assert!(off < 1e-4, "row {row}: logits differ by {off}");
        }
        let batches = BatchConfig { size: 2, ..BatchConfig::default() };
        let found = evaluate_with(&classes(), &model, &data(), &batches).unwrap();
        let off = (found.loss - f64::from(expected["loss"].1[0])).abs();
        assert!(off < 1e-5, "the loss differs by {off}");
        let logits = expected["logits"].1.chunks(3);
        let right = logits
            .zip(samples().1)
            .filter(|(row, label)| row.iter().all(|other| *other <= row[*label as usize]));
        assert_eq!(found.metrics.get("accuracy"), Some(right.count() as f64 / 5.0));
    }
}

#[test]
fn a_curve_agrees() {
    for rows in [5, 2] {
        let mut model = model();
        model.load_adapter("default", folder().join("lora")).unwrap();
        let text = std::fs::read_to_string(folder().join("lora/curve.json")).unwrap();
        let curve: Value = serde_json::from_str(&text).unwrap();
        let steps = curve["steps"].as_array().unwrap();
        let output = tempfile::tempdir().unwrap();
        let mut config = TrainConfig::new(curve["lr"].as_f64().unwrap())
            .weight_decay(0.0)
            .max_grad_norm(Some(1.0))
            .schedule(Schedule::Constant)
            .epochs(steps.len() as f64)
            .gradient_accumulation_steps(5usize.div_ceil(rows))
            .batches(BatchConfig { size: rows, shuffle: false, ..BatchConfig::default() })
            .output(output.path());
        config.log_steps = 1;
        let report = Trainer::new(config).fit_with(classes(), &mut model, &data(), None).unwrap();
        assert_eq!(report.log.len(), steps.len());
        for (found, expected) in report.log.iter().zip(steps) {
            let off = (found.loss - expected["loss"].as_f64().unwrap()).abs();
            assert!(off < 2e-4, "step {}: the loss differs by {off}", found.step);
            let norm = expected["grad_norm"].as_f64().unwrap();
            let off = (found.grad_norm - norm).abs() / norm;
            assert!(off < 2e-3, "step {}: the norm differs by {off}, relatively", found.step);
        }
        let found = tensors(&output.path().join("adapter_model.safetensors"));
        let expected = tensors(&folder().join("lora/trained.safetensors"));
        assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
        for (name, (shape, values)) in &expected {
            assert_eq!(&found[name].0, shape, "{name}");
            let off = difference(&found[name].1, values);
            assert!(off < 2e-3, "{name} differs by {off} after training");
        }
    }
}

#[test]
fn a_new_head_is_warned_of_and_trained_whole() {
    let base = golden("gqa");
    let load = || {
        let loader = Llama::from_pretrained(&base).dtype(FloatDType::F32);
        burn_lora_io::collect(|| loader.load_classifier(2, &device()))
    };
    let (model, warnings) = load();
    // The same at each start: a run that is resumed finds the base that it began with.
    let score = |model: &SequenceClassifier| -> Vec<f32> {
        model.llama.lm_head.weight().into_data().try_into_vec().unwrap()
    };
    let model = model.unwrap();
    assert_eq!(score(&model), score(&load().0.unwrap()));
    assert!(warnings.iter().any(|warning| warning.contains("score.weight")), "{warnings:?}");
    let lora = LoraConfig::new(2, 4).all_linear().modules_to_save(["score"]).task_type("SEQ_CLS");
    let model = model.with_adapter(&lora).unwrap();
    let saved: Vec<_> = model
        .layers()
        .into_iter()
        .filter(|(_, layer)| layer.adapters().saved("default").is_some())
        .map(|(path, _)| path)
        .collect();
    assert_eq!(saved, ["score"]);
}

#[test]
fn labels_that_are_not_there_are_refused() {
    let mut model = model();
    model.load_adapter("default", folder().join("lora")).unwrap();
    let mut error = |data: &Dataset| {
        let trainer = Trainer::new(TrainConfig::new(1e-3));
        trainer.fit_with(classes(), &mut model, data, None).unwrap_err().to_string()
    };
    let samples = || vec![Sample { ids: vec![5, 6], loss_mask: vec![true; 2] }; 2];
    let plain = Dataset::from_samples(samples()).unwrap();
    assert!(error(&plain).contains("label"));
    let beyond =
        Dataset::from_samples(samples()).unwrap().with_values("label", [0.0, 3.0]).unwrap();
    assert!(error(&beyond).contains("the classes are 0 to 2"));
    let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer").unwrap();
    let load = |label: Value| {
        let records = [json!({ "text": "bread", "label": label })];
        let data = Dataset::from_records(records).labels("label", ["bad", "good"]);
        data.load(&tokenizer).map(|data| data.batch(&[vec![0]], &BatchConfig::default()).values)
    };
    assert_eq!(load(json!("good")).unwrap()["label"], [1.0]);
    assert_eq!(load(json!(0)).unwrap()["label"], [0.0]);
    let error = load(json!("fair")).unwrap_err().to_string();
    assert!(error.contains("`label` is `fair`, expected one of bad, good"), "{error}");
    assert!(load(json!([1])).unwrap_err().to_string().contains("must be a number"));
}
