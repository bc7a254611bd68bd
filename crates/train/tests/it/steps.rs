//! Ten steps of an objective against goldens: losses, metrics, gradients, and the adapter after them.

use crate::common::*;
use burn_lora_adapter::AdaptableExt;
use burn_lora_llama::CausalLm;
use burn_lora_train::{
    BatchConfig, Dataset, Objective, OptimizerConfig, Schedule, TrainConfig, Trainer,
};
use serde_json::Value;
use std::{fs, path::Path};

/// The adapter's tensors by PEFT's names.
pub fn adapter<M: CausalLm>(model: &M) -> Host {
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter("default", folder.path()).unwrap();
    tensors(&folder.path().join("adapter_model.safetensors"))
}

/// Compares ten steps with `FILE.json` (settings, and losses, norms and metrics of the steps) and `FILE.safetensors`
/// (gradients of the first step, and the adapter at the end). Metrics that `but` names are not compared.
pub fn check<M: CausalLm>(
    file: &Path,
    model: impl Fn() -> M,
    objective: impl Objective<M> + Clone + 'static,
    data: &Dataset,
    rows: usize,
    but: &[&str],
    change: impl Fn(TrainConfig) -> TrainConfig,
) {
    check_by(file, model, objective, data, rows, but, |config| Trainer::new(change(config)));
}

/// The same, by a trainer of the caller's.
pub fn check_by<M: CausalLm>(
    file: &Path,
    model: impl Fn() -> M,
    objective: impl Objective<M> + Clone + 'static,
    data: &Dataset,
    rows: usize,
    but: &[&str],
    trainer: impl Fn(TrainConfig) -> Trainer<'static>,
) {
    let name = file.display();
    let expect = tensors(&file.with_extension("safetensors"));
    let expected = fs::read_to_string(file.with_extension("json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let batches = BatchConfig { size: rows, shuffle: false, ..BatchConfig::default() };
    // The gradient is what one step of SGD at rate 1 takes away.
    let mut plain = model();
    let before = adapter(&plain);
    let config = TrainConfig::new(1.0).optimizer(OptimizerConfig::Sgd { momentum: 0.0 });
    let config = config.schedule(Schedule::Constant).max_steps(1).batches(batches.clone());
    trainer(TrainConfig { max_grad_norm: None, weight_decay: 0.0, ..config })
        .fit_with(objective.clone(), &mut plain, data, None)
        .unwrap();
    let after = adapter(&plain);
    assert_eq!(2 * before.len(), expect.len(), "{name}: {:?}", before.keys());
    for (tensor, (_, values)) in &before {
        let grad: Vec<f32> = values.iter().zip(&after[tensor].1).map(|(a, b)| a - b).collect();
        let wanted = &expect[&format!("grad.{tensor}")].1;
        let size = wanted.iter().fold(0f32, |max, value| max.max(value.abs()));
        let off = difference(&grad, wanted);
        assert!(
            off < 1e-4 * size + 1e-7,
            "{name}: {tensor}: the gradient differs by {off} of {size}"
        );
    }

    let number = |value: &Value| value.as_f64().unwrap();
    let steps = expected["steps"].as_array().unwrap();
    let config = TrainConfig::new(number(&expected["rate"]))
        .max_grad_norm(number(&expected["max_grad_norm"]))
        .schedule(Schedule::Constant)
        .epochs(steps.len() as f64)
        .max_steps(steps.len())
        .batches(batches);
    let trainer = trainer(TrainConfig { log_steps: 1, weight_decay: 0.0, ..config });
    let mut trained = model();
    let report = trainer.fit_with(objective, &mut trained, data, None).unwrap();
    assert_eq!(report.log.len(), steps.len());
    for (found, expected) in report.log.iter().zip(steps) {
        let near = |what: &str, value: f64, most: f64| {
            let wanted = number(&expected[what]);
            let (step, off) = (found.step, (value - wanted).abs());
            assert!(off <= most, "{name}: step {step}: {what} is {value}, not {wanted}");
        };
        let of = |what: &str| 1e-5 * number(&expected[what]).abs().max(1.0);
        near("loss", found.loss, of("loss"));
        near("grad_norm", found.grad_norm, 1e-4 * number(&expected["grad_norm"]));
        // All that TRL has but what we have elsewhere, and nothing that it leaves out.
        let elsewhere = ["loss", "grad_norm", "learning_rate", "num_tokens", "epoch"];
        let names = expected.as_object().unwrap().keys().map(String::as_str);
        let missing = names.filter(|name| {
            !elsewhere.contains(name) && !but.contains(name) && found.metrics.get(name).is_none()
        });
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "{name}: step {}", found.step);
        for (metric, value) in found.metrics.iter().filter(|(metric, _)| !but.contains(metric)) {
            near(metric, value, of(metric));
        }
    }
    for (tensor, (_, values)) in &adapter(&trained) {
        let off = difference(values, &expect[&format!("trained.{tensor}")].1);
        assert!(off < 1e-4, "{name}: {tensor} differs by {off} after training");
    }
}
