//! Whole runs: what they write, how they end, and how they go on.

use crate::common::*;
use burn::module::Module;
use burn_lora_adapter::{AdaptableExt, Init, LoraConfig};
use burn_lora_llama::Llama;
use burn_lora_train::{
    BatchConfig, Dataset, EarlyStopping, Every, Interrupt, Observer, OptimizerConfig, Schedule,
    TrainConfig, TrainError, Trainer, Warmup,
    data::Sample,
    evaluate,
    watch::{EvalMetrics, MetricsLog, Record, StepMetrics, StopReason},
};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

fn model() -> Llama {
    model_with(0.0)
}

fn model_with(dropout: f64) -> Llama {
    let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).dropout(dropout).seed(3);
    let model = loader(&golden("gqa")).load(&device()).unwrap();
    model.with_adapter(&lora).unwrap()
}

/// Samples that can be learned: counting up.
fn data(from: u32, count: u32) -> Dataset {
    let samples = (from..from + count).map(|number| {
        let length = 4 + number % 5;
        let ids: Vec<u32> = (0..length).map(|at| (number * 13 + at) % 120 + 1).collect();
        Sample { loss_mask: vec![true; ids.len()], ids }
    });
    Dataset::from_samples(samples).unwrap()
}

fn config(output: &Path) -> TrainConfig {
    let mut config = TrainConfig::new(5e-3)
        .epochs(4)
        .batch_size(4)
        .gradient_accumulation_steps(2)
        .schedule(Schedule::Cosine)
        .warmup(Warmup::Ratio(0.1))
        .save(Every::Steps(3))
        .output(output);
    config.log_steps = 1;
    config
}

fn losses(output: &Path) -> Vec<(usize, u64, u64)> {
    let records = MetricsLog::read(&output.join("metrics.jsonl")).unwrap();
    let steps = records.into_iter().filter_map(|record| match record {
        Record::Step(at) => Some((at.step, at.loss.to_bits(), at.grad_norm.to_bits())),
        Record::Evaluation(_) => None,
    });
    steps.collect()
}

fn adapter(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_leaves_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let (train, valid) = (data(0, 24), data(40, 8));
    let mut tuned = model();
    let before = evaluate(&tuned.valid(), &valid, &BatchConfig::default()).unwrap();
    let run = config(&output).evaluate(Every::Epochs(1));
    let report = Trainer::new(run).fit(&mut tuned, &train, Some(&valid)).unwrap();
    assert_eq!(report.finished.reason, StopReason::Done);
    assert_eq!((report.finished.steps, report.log.len()), (12, 12));
    assert_eq!(report.evaluations.len(), 4);
    let after = report.evaluations.last().unwrap();
    assert!(after.loss < before.loss - 0.2, "{} is hardly below {}", after.loss, before.loss);
    assert!((after.metrics.get("perplexity").unwrap() - after.loss.exp()).abs() < 1e-9);
    for name in ["adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "loss.svg"] {
        assert!(output.join(name).is_file(), "{name}");
    }
    let page = std::fs::read_to_string(output.join("report.html")).unwrap();
    for part in ["Finished, 12 steps", "<h3>Training data</h3>", "learning_rate = ", "<h1>out</h1>"]
    {
        assert!(page.contains(part), "no {part} in {page}");
    }
    // The last two and the best.
    let kept = std::fs::read_dir(&output).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert!((2..=3).contains(&kept), "{kept} checkpoints");

    // The model that `fit` left, and one that loads the adapter, say the same.
    let mut again = loader(&golden("gqa")).load(&device()).unwrap();
    again.load_adapter("default", &output).unwrap();
    let [a, b] = [&tuned, &again]
        .map(|model| evaluate(&model.valid(), &valid, &BatchConfig::default()).unwrap().loss);
    assert!((a - b).abs() < 1e-6 && (a - after.loss).abs() < 1e-5, "{a}, {b}, {}", after.loss);

    // No run overwrites another.
    let error = Trainer::new(config(&output)).fit(&mut model(), &train, None).unwrap_err();
    assert!(error.to_string().contains("earlier run"), "{error}");
}

/// Raises an interrupt after some steps.
struct Stop(usize, Interrupt);

impl Observer for Stop {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        if metrics.step == self.0 {
            self.1.raise();
        }
        Ok(())
    }
}

#[test]
fn an_interrupted_run_goes_on_bit_for_bit() {
    for optimizer in [OptimizerConfig::adamw(), OptimizerConfig::adamw_8bit()] {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        let train = data(0, 24);
        let run = |output: &Path| config(output).optimizer(optimizer);
        Trainer::new(run(&whole)).fit(&mut model(), &train, None).unwrap();
        for stop in [1, 5, 7] {
            let interrupt = Interrupt::default();
            let trainer = Trainer::new(run(&parts)).interrupt(interrupt.clone()).resume(true);
            let report =
                trainer.observe(Stop(stop, interrupt)).fit(&mut model(), &train, None).unwrap();
            assert_eq!(report.finished.reason, StopReason::Interrupted);
            // A GPU computes the next step while the line of this one is read.
            let late = usize::from(std::env::var_os("BURN_LORA_GPU").is_some());
            assert_eq!(report.finished.steps, stop + late);
        }
        Trainer::new(run(&parts)).resume(true).fit(&mut model(), &train, None).unwrap();
        assert_eq!(losses(&parts), losses(&whole), "{optimizer:?}");
        assert_eq!(adapter(&parts), adapter(&whole), "{optimizer:?}");

        let other = run(&parts).gradient_accumulation_steps(1);
        let error = Trainer::new(other).resume(true).fit(&mut model(), &train, None).unwrap_err();
        assert!(error.to_string().contains("`micro-batches a step` was 2"), "{error}");
    }
}

/// The run that the next test kills, in a process of its own.
#[test]
#[ignore = "a process that a_killed_run_goes_on_bit_for_bit starts"]
fn killed() {
    let Ok(output) = std::env::var("BURN_LORA_KILLED_RUN") else { return };
    let run = config(Path::new(&output)).save(Every::Steps(1)).neftune(1.0);
    Trainer::new(run).resume(true).fit(&mut model_with(0.1), &data(0, 24), None).unwrap();
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let start = |output: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["run::killed", "--exact", "--ignored", "--nocapture"])
            .env("BURN_LORA_KILLED_RUN", output)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let end = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    end(start(&whole));
    // Twenty kills, at any moment of a step or of writing a checkpoint. A process that is killed too
    // early to get anywhere is one of them, too.
    let mut state = 7u64;
    for _ in 0..20 {
        let mut child = start(&parts);
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(40 + (state >> 33) % 160));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
    }
    end(start(&parts));
    assert_eq!(losses(&parts), losses(&whole));
    assert_eq!(adapter(&parts), adapter(&whole));
}

#[test]
fn a_run_stops_when_nothing_gets_better() {
    let folder = tempfile::tempdir().unwrap();
    let run = config(folder.path())
        .epochs(20)
        .evaluate(Every::Steps(2))
        .early_stopping(EarlyStopping { patience: 2, threshold: 0.0 })
        .load_best_at_end(true);
    let run = TrainConfig { learning_rate: 0.5, ..run }; // It only gets worse.
    let mut tuned = model();
    let valid = data(40, 8);
    let report = Trainer::new(run).fit(&mut tuned, &data(0, 24), Some(&valid)).unwrap();
    assert_eq!(report.finished.reason, StopReason::EarlyStopping);
    let best: &EvalMetrics =
        report.evaluations.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert_eq!(report.finished.best, Some((best.step, best.loss)));
    assert!(report.finished.steps > best.step);
    let now = evaluate(&tuned.valid(), &valid, &BatchConfig::default()).unwrap();
    assert!((now.loss - best.loss).abs() < 1e-4, "{} is not the best, {}", now.loss, best.loss);
}

#[test]
fn a_loss_that_is_no_number_names_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let run = TrainConfig { learning_rate: 1e30, ..config(folder.path()) }.max_grad_norm(None);
    let error = Trainer::new(run).fit(&mut model(), &data(0, 24), None).unwrap_err();
    let TrainError::NotFinite { step, batch, .. } = &error else { panic!("{error}") };
    assert!(*step > 1, "{error}");
    assert!(batch.contains(&data(0, 24).source(0)[..3]), "{error}");
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("Failed after step") && page.contains("Lower the learning rate"));
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let fit = |config: TrainConfig, valid: Option<&Dataset>| {
        Trainer::new(config).fit(&mut model(), &data(0, 8), valid).unwrap_err().to_string()
    };
    let config = || TrainConfig::new(1e-3).output(folder.path());
    let cases = [
        ("learning_rate", TrainConfig::new(-1.0)),
        ("learning_rate", TrainConfig::new(f64::NAN)),
        ("epochs", config().epochs(0.0)),
        ("max_steps", config().max_steps(0)),
        ("gradient_accumulation_steps", config().gradient_accumulation_steps(0)),
        ("max_grad_norm", config().max_grad_norm(0.0)),
        ("weight_decay", config().weight_decay(1.0)),
        ("label_smoothing", config().label_smoothing(1.0)),
        ("lora_plus", config().lora_plus(0.0)),
        ("neftune", config().neftune(-1.0)),
        ("loss_chunk", config().loss_chunk(0)),
        ("mlp_chunk", config().mlp_chunk(0)),
        ("recompute", config().recompute(burn_lora_train::Recompute::Every(0))),
        ("save", config().save(Every::Steps(0))),
        ("evaluate", config().evaluate(Every::Epochs(0))),
        ("evaluate", config().evaluate(Every::Epochs(1))),
        ("early_stopping", config().early_stopping(EarlyStopping { patience: 1, threshold: 0.0 })),
        (
            "load_best_at_end",
            TrainConfig::new(1e-3).evaluate(Every::Epochs(1)).load_best_at_end(true),
        ),
        ("beta1", config().optimizer(OptimizerConfig::AdamW { beta1: 1.0, beta2: 0.9, eps: 0.0 })),
        ("learning_rate", TrainConfig::new(1e300)),
        ("epochs", config().epochs(1e18)),
        ("epochs", config().epochs(1e300)),
        ("epochs", config().epochs(f64::INFINITY)),
        ("max_steps", config().max_steps(usize::MAX)),
        ("gradient_accumulation_steps", config().gradient_accumulation_steps(usize::MAX)),
        (
            "early_stopping.patience",
            config()
                .evaluate(Every::Epochs(1))
                .early_stopping(EarlyStopping { patience: 0, threshold: 0.0 }),
        ),
        (
            "early_stopping.threshold",
            config()
                .evaluate(Every::Epochs(1))
                .early_stopping(EarlyStopping { patience: 1, threshold: f64::NAN }),
        ),
        ("beta2", config().optimizer(OptimizerConfig::Lion { beta1: 0.9, beta2: f64::NAN })),
        (
            "eps",
            config().optimizer(OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.9, eps: f64::NAN }),
        ),
        ("warmup", config().warmup(Warmup::Ratio(f64::NAN))),
        (
            "decay",
            config()
                .schedule("warmup_stable_decay".parse().unwrap())
                .warmup(Warmup::Steps(usize::MAX)),
        ),
    ];
    for (name, config) in cases {
        let error = fit(config, None);
        assert!(error.contains(name), "{name}: {error}");
    }
    let mut plain = loader(&golden("gqa")).load(&device()).unwrap();
    let error = Trainer::new(config()).fit(&mut plain, &data(0, 8), None).unwrap_err();
    assert!(error.to_string().contains("with_adapter"), "{error}");
}

/// Numbers that are odd and allowed are gone on with at once.
#[test]
fn huge_numbers_that_are_allowed_take_no_time() {
    let run = TrainConfig::new(1e-3)
        .epochs(1e18)
        .max_steps(1)
        .warmup(Warmup::Steps(usize::MAX))
        .recompute(burn_lora_train::Recompute::Every(usize::MAX))
        .loss_chunk(usize::MAX);
    let run = TrainConfig { save_total_limit: 0, log_steps: usize::MAX, ..run };
    let fit = || Trainer::new(run).fit(&mut model(), &data(0, 8), None);
    let (report, warnings) = burn_lora_io::collect(fit);
    assert_eq!(report.unwrap().finished.steps, 1);
    assert!(warnings.iter().any(|text| text.contains("warm-up")), "{warnings:?}");
}

/// The length of a run is counted from one epoch.
#[test]
fn every_epoch_has_as_many_steps() {
    let samples = (0..40u32).map(|number| {
        let ids: Vec<u32> = (0..3 + number * 7 % 11).map(|at| at + 1).collect();
        Sample { loss_mask: vec![true; ids.len()], ids }
    });
    let data = Dataset::from_samples(samples).unwrap();
    for packing in [None, Some(14), Some(17), Some(30)] {
        for drop_last in [false, true] {
            let config = BatchConfig { size: 3, packing, drop_last, ..BatchConfig::default() };
            let counts = (0..20).map(|epoch| data.epoch(&config, epoch).unwrap().len());
            let counts: std::collections::BTreeSet<usize> = counts.collect();
            assert_eq!(counts.len(), 1, "{packing:?}: {counts:?}");
        }
    }
}

#[test]
fn lora_plus_and_decay_are_of_their_groups() {
    // One step of SGD at rates 1 and 4: B moves four times as far, A as far.
    let step = |ratio: Option<f64>| {
        let folder = tempfile::tempdir().unwrap();
        let run = TrainConfig {
            learning_rate: 1.0,
            lora_plus: ratio,
            max_grad_norm: None,
            log_steps: 1,
            ..TrainConfig::default()
        }
        .optimizer(OptimizerConfig::Sgd { momentum: 0.0 })
        .schedule(Schedule::Constant)
        .max_steps(1)
        .output(folder.path());
        let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).seed(3);
        let mut tuned =
            loader(&golden("gqa")).load(&device()).unwrap().with_adapter(&lora).unwrap();
        let before = tempfile::tempdir().unwrap();
        tuned.save_adapter("default", before.path()).unwrap();
        Trainer::new(run).fit(&mut tuned, &data(0, 1), None).unwrap();
        let [before, after] = [before.path(), folder.path()]
            .map(|folder| tensors(&folder.join("adapter_model.safetensors")));
        before
            .into_iter()
            .map(|(name, (_, values))| {
                let moved = after[&name].1.iter().zip(&values).map(|(a, b)| a - b);
                (name, moved.collect::<Vec<f32>>())
            })
            .collect::<Vec<_>>()
    };
    for ((name, once), (_, more)) in step(None).into_iter().zip(step(Some(4.0))) {
        let ratio = if name.contains("lora_B") { 4.0 } else { 1.0 };
        let expected: Vec<f32> = once.iter().map(|value| value * ratio).collect();
        assert!(difference(&more, &expected) < 1e-4, "{name}");
    }
}
