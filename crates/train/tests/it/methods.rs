//! Training with each adapter method: PEFT's curves (testdata/methods), resuming, the memory plan.

use crate::{
    common::*,
    runs::{data, small},
};
use burn::{
    module::Module,
    tensor::{FloatDType, Tensor},
};
use burn_lora_adapter::{
    Adaptable, AdaptableExt, Init, LoraConfig, Method, Targets, TrainableTokensConfig, VeraConfig,
};
use burn_lora_kernels::Gemm;
use burn_lora_llama::{Llama, LlamaConfig};
use burn_lora_train::{
    BatchConfig, Every, MemoryPlan, OptimizerConfig, Schedule, TrainConfig, Trainer,
};
use std::path::{Path, PathBuf};

fn vera() -> VeraConfig {
    VeraConfig { r: 6, target_modules: Some(Targets::AllLinear), ..Default::default() }
}

fn tokens() -> TrainableTokensConfig {
    TrainableTokensConfig { token_indices: vec![3, 17, 90], ..Default::default() }
}

fn beside() -> LoraConfig {
    LoraConfig::new(2, 4).targets(["q_proj"]).trainable_tokens([5, 40])
}

/// Six steps are those of PEFT and PyTorch: losses, norms of the gradients, the adapter afterwards.
fn agrees(variant: &str, case: &str, optimizer: OptimizerConfig) {
    let folder = methods(variant, case);
    let mut model = loader(&golden(variant)).load(&device()).unwrap();
    model.load_adapter("default", &folder).unwrap();
    let data = golden_data(variant);
    let text = std::fs::read_to_string(folder.join("curve.json")).unwrap();
    let curve: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        curve[name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let (losses, norms) = (numbers("losses"), numbers("grad_norms"));
    let output = tempfile::tempdir().unwrap();
    let mut config = TrainConfig::new(curve["lr"].as_f64().unwrap())
        .weight_decay(curve["weight_decay"].as_f64().unwrap())
        .max_grad_norm(None)
        .schedule(Schedule::Constant)
        .optimizer(optimizer)
        .epochs(losses.len() as f64)
        .batches(BatchConfig { size: data.len(), shuffle: false, ..BatchConfig::default() })
        .output(output.path());
    config.log_steps = 1;
    let report = Trainer::new(config).fit(&mut model, &data, None).unwrap();

    let what = format!("{variant}/{case}");
    assert_eq!(report.log.len(), losses.len());
    for ((found, loss), norm) in report.log.iter().zip(losses).zip(norms) {
        let off = (found.loss - loss).abs();
        assert!(off < 1e-5, "{what}: step {}: the loss differs by {off}", found.step);
        let off = (found.grad_norm - norm).abs() / norm;
        assert!(off < 1e-5, "{what}: step {}: the norm differs by {off}, relatively", found.step);
    }
    let found = tensors(&output.path().join("adapter_model.safetensors"));
    let expected = tensors(&folder.join("trained.safetensors"));
    assert!(found.keys().eq(expected.keys()), "{what}: {:?}", found.keys());
    for (name, (shape, values)) in &expected {
        assert_eq!(&found[name].0, shape, "{name}");
        let off = difference(&found[name].1, values);
        assert!(off < 1e-5, "{what}: {name} differs by {off} after training");
    }
}

fn methods(variant: &str, case: &str) -> PathBuf {
    golden("methods").join(variant).join(case)
}

#[test]
fn curves_agree_with_peft() {
    for case in ["vera", "vera_key", "tokens", "lora_tokens"] {
        agrees("gqa", case, OptimizerConfig::adamw());
    }
    for case in ["tokens", "lora_tokens"] {
        agrees("llama3", case, OptimizerConfig::adamw());
    }
}

#[test]
fn the_curve_of_lora_fa_agrees_with_peft() {
    agrees("gqa", "lorafa", OptimizerConfig::lora_fa());
}

#[test]
fn the_factor_of_lora_fa_inverts_the_product_of_a() {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    model.load_adapter("default", methods("gqa", "lorafa")).unwrap();
    let mut model = model.train();
    let error = model.lora_fa("default").unwrap_err().to_string();
    assert!(error.contains("freeze_a"), "{error}");
    model.freeze_a("default").unwrap();
    let factors = model.lora_fa("default").unwrap();
    let mut count = 0;
    for (path, layer) in model.layers() {
        let Some(lora) = layer.adapters().lora("default") else { continue };
        let factor = Tensor::<2>::from_data(factors[&lora.lora_b.id].clone(), &device());
        let a = lora.lora_a.val().inner();
        // Not Burn's matmul, which may round float32 to TF32.
        let product = Gemm::new().trans_rhs().run(a.clone(), a);
        let product = Gemm::new().run(product, factor);
        let one = Tensor::<2>::eye(4, &product.device()) / lora.scaling().powi(2);
        let off = (product - one).abs().max().into_scalar::<f32>();
        assert!(off < 1e-5, "{path}: {off}");
        count += 1;
    }
    assert_eq!(count, factors.len());
}

/// More rows than columns, or none of A at all: directions that A does not have stay without a
/// gradient, as with PyTorch's `pinv`.
#[test]
fn the_factor_of_lora_fa_is_finite_where_there_is_no_inverse() {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    let lora = LoraConfig::new(80, 80).targets(["q_proj"]);
    model.add_adapter("default", &lora.init(Init::Random)).unwrap();
    model.freeze_a("default").unwrap();
    for factor in model.lora_fa("default").unwrap().values() {
        assert!(factor.iter::<f32>().all(|value| value.abs() < 1e4), "{factor}");
    }
}

#[test]
fn what_lora_fa_cannot_train_is_refused() {
    let embedding = LoraConfig::new(2, 4).targets(["embed_tokens"]);
    let dora = LoraConfig::new(2, 4).targets(["q_proj"]).dora(true);
    fn refused(method: &(impl Method + Clone), reason: &str) {
        let mut model = loader(&golden("gqa")).load(&device()).unwrap();
        model.add_adapter("default", method).unwrap();
        let config = TrainConfig::new(1e-3).optimizer(OptimizerConfig::lora_fa());
        let error = Trainer::new(config).fit(&mut model, &data(0, 4), None).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    refused(&embedding, "leave it out of `target_modules`");
    refused(&dora, "`use_dora`");
    refused(&vera(), "no layer of it has LoRA");
}

/// One batch of four is four of one, and copies of a layer are trained beside B.
#[test]
fn lora_fa_accumulates_and_trains_what_is_no_b() {
    let run = |rows: usize, steps: usize| {
        let mut model = loader(&golden("gqa")).load(&device()).unwrap();
        let lora = LoraConfig::new(4, 8).targets(["q_proj", "v_proj"]).init(Init::Random);
        model.add_adapter("default", &lora.modules_to_save(["lm_head"])).unwrap();
        let output = tempfile::tempdir().unwrap();
        let mut config =
            small(output.path()).optimizer(OptimizerConfig::lora_fa()).batch_size(rows);
        config = config.gradient_accumulation_steps(steps).max_steps(3).epochs(3);
        config.batches.shuffle = false;
        Trainer::new(config).fit(&mut model, &data(0, 4), None).unwrap();
        let head = &tensors(&golden("gqa").join("model.safetensors"))["lm_head.weight"].1;
        let found = tensors(&output.path().join("adapter_model.safetensors"));
        let (_, (_, trained)) = found.iter().find(|(name, _)| name.contains("lm_head")).unwrap();
        assert!(difference(head, trained) > 1e-4, "the copy of the head is not trained");
        found
    };
    let (whole, parts) = (run(4, 1), run(1, 4));
    for (name, (_, values)) in &whole {
        let off = difference(values, &parts[name].1);
        assert!(off < 2e-5, "{name}: {off}");
    }
}

/// Four steps at once are two and two more, to the last bit.
fn resumes(variant: &str, method: &(impl Method + Clone), optimizer: OptimizerConfig) {
    let run = |output: &Path, steps: usize, resume: bool| {
        let mut model = loader(&golden(variant)).load(&device()).unwrap();
        model = model.no_grad();
        model.add_adapter("default", method).unwrap();
        let config = small(output).schedule(Schedule::Constant).save(Every::Steps(1)).epochs(4);
        let config = config.optimizer(optimizer);
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
    let adamw = OptimizerConfig::adamw();
    resumes("gqa", &vera(), adamw);
    for variant in ["gqa", "llama3"] {
        resumes(variant, &tokens(), adamw);
        resumes(variant, &beside(), adamw);
        resumes(variant, &beside(), OptimizerConfig::lora_fa());
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
    // Of LoRA-FA, A has no gradient and no state.
    let lora = LoraConfig::new(2, 4).targets(["q_proj"]);
    let mut model = Llama::random(&config, 0, &device()).with_adapter(&lora).unwrap();
    model.freeze_a("default").unwrap();
    let adamw = TrainConfig::new(1e-3).batch_size(1);
    let fa = adamw.clone().optimizer(OptimizerConfig::lora_fa());
    let plan = MemoryPlan::new(&config).adapter(&lora).unwrap();
    let [adamw, fa] = [adamw, fa].map(|config| plan.clone().train(&config));
    assert_eq!(fa.trainable(), model.summary().trainable);
    assert_eq!(fa.peak().adapter, adamw.peak().adapter);
    assert_eq!(fa.peak().optimizer, 8 * fa.trainable() as u64);
    assert_eq!(fa.train(&TrainConfig::new(1e-3)).trainable(), adamw.trainable());
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
