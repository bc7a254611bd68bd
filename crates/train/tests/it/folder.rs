//! The output folder of a run: whose it is, and what becomes of a run when things in it are missing.

use crate::{
    common::*,
    runs::{data, lora, model, small, with_infinite_token},
};
use burn_lora_adapter::AdaptableExt;
use burn_lora_io::collect;
use burn_lora_train::{
    EarlyStopping, Every, Interrupt, Observer, TrainConfig, TrainError, Trainer,
    watch::{EvalMetrics, MetricsLog, StepMetrics, StopReason},
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_second_start_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let first = Trainer::new(small(&output)).claim().unwrap();
    // As if the first were writing a checkpoint.
    fs::create_dir(output.join(".unfinished-x")).unwrap();
    for resume in [false, true] {
        let second = Trainer::new(small(&output)).resume(resume);
        let error = second.fit(&mut model(), &data(0, 8), None).unwrap_err().to_string();
        assert!(error.contains("another run") && error.contains("out"), "{error}");
        let process = std::process::id().to_string();
        assert!(!cfg!(unix) || error.contains(&process), "{error}");
    }
    assert_eq!(names(&output), [".unfinished-x", "run.lock"]);
    first.fit(&mut model(), &data(0, 8), None).unwrap();
    assert!(!names(&output).contains(&"run.lock".into()) || cfg!(not(unix)));
    let error = Trainer::new(small(&output)).claim().err().unwrap().to_string();
    assert!(error.contains("earlier run"), "{error}");
    Trainer::new(small(&output)).resume(true).fit(&mut model(), &data(0, 8), None).unwrap();
    // One that may have it tidies it.
    assert!(!names(&output).contains(&".unfinished-x".into()));
}

#[test]
fn a_folder_that_was_taken_for_nothing_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("a/b");
    drop(Trainer::new(small(&output)).claim().unwrap());
    assert!(!output.exists() || cfg!(not(unix)));
}

#[test]
fn what_is_wrong_with_a_folder_shows_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    for output in [file.clone(), file.join("out"), "".into()] {
        let error = Trainer::new(small(&output)).claim().err().unwrap().to_string();
        assert!(error.contains("file") || error.contains("`output`"), "{error}");
    }
    let locked = folder.path().join("locked");
    fs::create_dir_all(locked.join("run.lock")).unwrap();
    let error = Trainer::new(small(&locked)).claim().err().unwrap().to_string();
    assert!(error.contains("run.lock"), "{error}");
}

/// Does something with the folder after a step.
struct After<F>(usize, F);

impl<F: FnMut()> Observer for After<F> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        if metrics.step == self.0 {
            self.1();
        }
        Ok(())
    }
}

#[test]
fn a_folder_that_is_removed_during_a_run_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let run = small(&output).save(Every::Steps(2)).max_steps(6);
    let trainer =
        Trainer::new(run.clone()).observe(After(3, || fs::remove_dir_all(&output).unwrap()));
    let (result, warnings) = collect(|| trainer.fit(&mut model(), &data(0, 24), None));
    assert_eq!(result.unwrap().finished.reason, StopReason::MaxSteps);
    assert!(warnings.iter().any(|warning| warning.contains("was removed")), "{warnings:?}");
    for name in
        ["adapter_model.safetensors", "checkpoint-4", "checkpoint-6", "loss.svg", "report.html"]
    {
        assert!(output.join(name).exists(), "{name} is not in {:?}", names(&output));
    }
    let steps: Vec<_> = MetricsLog::read(&output.join("metrics.jsonl")).unwrap();
    assert_eq!(steps.iter().map(|record| record.step()).collect::<Vec<_>>(), [3, 4, 5, 6]);
    // It is a whole one: a run goes on from it.
    let more = Trainer::new(run.max_steps(7)).resume(true);
    collect(|| more.fit(&mut model(), &data(0, 24), None)).0.unwrap();
}

#[test]
fn a_run_without_metrics_and_picture_still_leaves_its_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let break_them = || {
        let metrics = output.join("metrics.jsonl");
        fs::remove_file(&metrics).unwrap();
        fs::create_dir_all(metrics.join("in the way")).unwrap();
        fs::create_dir_all(output.join("loss.svg/in the way")).unwrap();
        fs::remove_file(output.join("report.html")).unwrap();
        fs::create_dir_all(output.join("report.html/in the way")).unwrap();
    };
    let trainer = Trainer::new(small(&output)).observe(After(1, break_them));
    let (result, warnings) = collect(|| trainer.fit(&mut model(), &data(0, 8), None));
    result.unwrap();
    assert!(output.join("adapter_model.safetensors").is_file());
    assert!(warnings.iter().any(|warning| warning.contains("picture")), "{warnings:?}");
    let report = warnings.iter().filter(|warning| warning.contains("the report is not written"));
    assert_eq!(report.count(), 1, "{warnings:?}");
}

/// Six steps over all samples, with an evaluation and a checkpoint after each better one.
fn evaluated(output: &Path) -> TrainConfig {
    TrainConfig { learning_rate: 2e-3, ..small(output) }
        .batch_size(24)
        .epochs(6)
        .evaluate(Every::Steps(1))
        .load_best_at_end(true)
}

#[test]
fn the_best_is_the_lowest_whatever_the_threshold_of_early_stopping() {
    let (train, valid) = (data(0, 24), data(0, 8));
    for (patience, steps) in [(100, 6), (2, 3)] {
        let folder = tempfile::tempdir().unwrap();
        // A threshold that no improvement comes up to.
        let early = EarlyStopping { patience, threshold: 100.0 };
        let run = evaluated(folder.path()).early_stopping(early);
        let report = Trainer::new(run).fit(&mut model(), &train, Some(&valid)).unwrap();
        let losses: Vec<f64> = report.evaluations.iter().map(|at| at.loss).collect();
        assert!(losses.is_sorted_by(|a, b| a > b), "the loss falls: {losses:?}");
        // The first is better than none; then the patience runs out.
        assert_eq!(report.finished.steps, steps);
        assert_eq!(report.finished.best, Some((steps, losses[steps - 1])));
    }
}

#[test]
fn a_best_checkpoint_that_is_gone_costs_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    /// Removes all checkpoints at the last evaluation.
    struct Remove<'a>(&'a Path);
    impl Observer for Remove<'_> {
        fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
            let names = names(self.0).into_iter().filter(|name| name.starts_with("checkpoint-"));
            if metrics.step == 6 {
                names.for_each(|name| fs::remove_dir_all(self.0.join(name)).unwrap());
            }
            Ok(())
        }
    }
    // It only gets worse: after the same token another one is to come than is trained.
    let pair = |next| {
        let sample = burn_lora_train::data::Sample { ids: vec![5, next], loss_mask: vec![true; 2] };
        burn_lora_train::Dataset::from_samples([sample]).unwrap()
    };
    let trainer = Trainer::new(evaluated(folder.path())).observe(Remove(folder.path()));
    let mut tuned = model();
    let fit = || trainer.fit(&mut tuned, &pair(6), Some(&pair(7)));
    let (report, warnings) = collect(fit);
    let (best, _) = report.unwrap().finished.best.unwrap();
    assert_eq!(best, 1);
    let step = format!("step {best},");
    let warned = warnings.iter().any(|text| text.contains(&step) && text.contains("last step"));
    assert!(warned, "{warnings:?}");
    let last = tensors(&folder.path().join("checkpoint-6/adapter_model.safetensors"));
    assert_eq!(tensors(&folder.path().join("adapter_model.safetensors")), last);
}

#[test]
fn a_validation_loss_that_is_no_number_is_never_the_best_and_can_be_resumed_from() {
    let folder = tempfile::tempdir().unwrap();
    let model = || with_infinite_token(127).with_adapter(&lora()).unwrap();
    let infinite = burn_lora_train::data::Sample { ids: vec![127, 1], loss_mask: vec![true; 2] };
    let valid = burn_lora_train::Dataset::from_samples([infinite]).unwrap();
    let run = |steps| evaluated(folder.path()).max_steps(steps).save(Every::Steps(1));
    for steps in [2, 4] {
        let trainer = Trainer::new(run(steps)).resume(true);
        let fit = || trainer.fit(&mut model(), &data(0, 24), Some(&valid));
        let (report, warnings) = collect(fit);
        let report = report.unwrap();
        assert!(report.evaluations.iter().all(|at| !at.loss.is_finite()));
        assert_eq!(report.finished.best, None);
        let has = |part: &str| warnings.iter().any(|text| text.contains(part));
        assert!(has("never the best") && has("last step"), "{warnings:?}");
    }
    let records = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 8);
}

#[test]
fn a_base_that_is_not_finite_is_named_and_not_the_learning_rate() {
    let mut model = with_infinite_token(5).with_adapter(&lora()).unwrap();
    let run = TrainConfig { log_steps: 1, ..TrainConfig::new(1e-3) };
    let sample = burn_lora_train::data::Sample { ids: vec![5, 6, 7], loss_mask: vec![true; 3] };
    let data = burn_lora_train::Dataset::from_samples([sample]).unwrap();
    let error = Trainer::new(run).fit(&mut model, &data, None).unwrap_err().to_string();
    assert!(error.contains("embed_tokens") && !error.contains("learning rate"), "{error}");
}

/// The run that the next test interrupts, in a process of its own.
#[test]
#[ignore = "a process that signals_end_a_run_with_their_status starts"]
fn interrupted() {
    let Ok(output) = std::env::var("BURN_LORA_INTERRUPTED_RUN") else { return };
    let interrupt = Interrupt::on_ctrl_c().unwrap();
    let run = small(Path::new(&output)).epochs(500).save(Every::Steps(1));
    let trainer = Trainer::new(run).interrupt(interrupt.clone());
    // It takes a while.
    let trainer = trainer.observe(Slow);
    let report = trainer.fit(&mut model(), &data(0, 24), None).unwrap();
    assert_eq!(report.finished.reason, StopReason::Interrupted);
    std::process::exit(interrupt.signal().map_or(1, |signal| 128 + i32::from(signal)));
}

struct Slow;

impl Observer for Slow {
    fn step(&mut self, _: &StepMetrics) -> Result<(), TrainError> {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }
}

#[cfg(unix)]
#[test]
fn signals_end_a_run_with_their_status() {
    use std::os::unix::process::ExitStatusExt;
    // What is ignored at the start stays so; another signal ends it then.
    for (ignored, signals, status) in [
        ("", &["INT"][..], 130),
        ("", &["TERM"], 143),
        ("", &["HUP"], 129),
        ("trap '' HUP; ", &["HUP", "TERM"], 143),
        ("trap '' INT; ", &["INT", "TERM"], 143),
    ] {
        // A test that was started in the background, or with nohup, cannot have them heard.
        if ignored.is_empty() && is_ignored(status - 128) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let test = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{ignored}exec \"$0\" \"$@\"")])
            .arg(test)
            .args(["folder::interrupted", "--exact", "--ignored", "--nocapture"])
            .env("BURN_LORA_INTERRUPTED_RUN", &output)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        for signal in signals {
            let seen = checkpoints(&output);
            while checkpoints(&output) <= seen {
                assert!(start.elapsed() < Duration::from_secs(120), "no checkpoints come");
                std::thread::sleep(Duration::from_millis(10));
            }
            let kill = format!("kill -{signal} {}", child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        let ended = child.wait().unwrap();
        assert_eq!((ended.code(), ended.signal()), (Some(status), None), "{signals:?}");
        assert!(output.join("adapter_model.safetensors").is_file());
    }
}

/// Whether this process was started to ignore a signal, where that can be seen.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// The step of the newest.
#[cfg(unix)]
fn checkpoints(output: &Path) -> usize {
    let Ok(entries) = fs::read_dir(output) else { return 0 };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).max().unwrap_or(0)
}
