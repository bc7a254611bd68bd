//! Training with each adapter method: resuming, the memory plan.

use crate::{
    common::*,
    runs::{data, small},
};
use burn::{module::Module, tensor::FloatDType};
use burn_lora_adapter::{
    AdaptableExt, LoraConfig, Method, Targets, TrainableTokensConfig, VeraConfig,
};
use burn_lora_llama::{Llama, LlamaConfig};
use burn_lora_train::{Every, MemoryPlan, Schedule, TrainConfig, Trainer};
use std::path::Path;

fn vera() -> VeraConfig {
    VeraConfig { r: 6, target_modules: Some(Targets::AllLinear), ..Default::default() }
}

fn tokens() -> TrainableTokensConfig {
    TrainableTokensConfig { token_indices: vec![3, 17, 90], ..Default::default() }
}

fn beside() -> LoraConfig {
    LoraConfig::new(2, 4).targets(["q_proj"]).trainable_tokens([5, 40])
}

/// Four steps at once are two and two more, to the last bit.
fn resumes(variant: &str, method: &(impl Method + Clone)) {
    let run = |output: &Path, steps: usize, resume: bool| {
        let mut model = loader(&golden(variant)).load(&device()).unwrap();
        model = model.no_grad();
        model.add_adapter("default", method).unwrap();
        let config = small(output).schedule(Schedule::Constant).save(Every::Steps(1)).epochs(4);
        let trainer = Trainer::new(config.max_steps(steps)).resume(resume);
        let report = trainer.fit(&mut model, &data(0, 6), None).unwrap();
        assert!(report.log.iter().all(|line| line.loss.is_finite()));
        std::fs::read(output.join("adapter_model.safetensors")).unwrap()
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let two = run(parts.path(), 2, false);
    let four = run(parts.path(), 4, true);
    assert!(two != four, "{variant}: the last two steps changed nothing");
    assert!(run(whole.path(), 4, false) == four, "{variant}: resumed, it is another adapter");
}

#[test]
fn runs_with_each_method_are_resumed() {
    resumes("gqa", &vera());
    for variant in ["gqa", "llama3"] {
        resumes(variant, &tokens());
        resumes(variant, &beside());
    }
}

#[test]
fn plans_of_methods_are_those_of_a_model() {
    fn same(config: &LlamaConfig, method: &(impl Method + Clone)) {
        let model = Llama::random(config, 0, &device());
        let summary = model.with_adapter(method).unwrap().summary();
        let plan = MemoryPlan::new(config).dtype(FloatDType::F32).adapter(method).unwrap();
        assert_eq!(plan.trainable(), summary.trainable);
        assert_eq!(plan.peak().adapter, summary.adapter_bytes as u64);
        let train = plan.clone().train(&TrainConfig::new(1e-3).batch_size(1));
        assert!(train.total() > plan.total());
    }
    let config = LlamaConfig::from_file(golden("gqa").join("config.json")).unwrap();
    let peak = |method: &dyn Method| {
        let plan = MemoryPlan::new(&config).adapter(method).unwrap().length(64);
        plan.train(&TrainConfig::new(1e-3).batch_size(1)).peak()
    };
    // Fewer parameters, but A and B are made of them in each pass.
    let lora = peak(&LoraConfig::new(6, 12).all_linear());
    assert!(peak(&vera()).optimizer < lora.optimizer);
    assert!(peak(&vera()).activations > lora.activations);
    for variant in ["gqa", "llama3"] {
        let config = LlamaConfig::from_file(golden(variant).join("config.json")).unwrap();
        same(&config, &vera());
        same(&config, &tokens());
        same(&config, &beside());
    }
}
