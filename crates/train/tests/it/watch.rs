//! Observers: the metrics log, pictures, the report, lines where there is no terminal, TensorBoard.

use burn_lora_train::{
    TrainError,
    watch::{
        EvalMetrics, Finished, MetricsLog, Observer, Progress, Record, Started, StepMetrics,
        StopReason, plot_lines, plot_metrics,
    },
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn step(step: usize) -> StepMetrics {
    StepMetrics {
        step,
        epoch: step as f64 / 10.0,
        loss: 0.1 + 0.2 / step as f64,
        grad_norm: 1.0 / 3.0,
        learning_rate: 2e-4,
        num_tokens: 100 * step as u64,
        metrics: [("mean_token_accuracy", 0.5)].into_iter().collect(),
        tokens_per_second: 1234.5,
        step_seconds: 0.25,
        memory: Some(1 << 30),
    }
}

fn evaluation(step: usize) -> EvalMetrics {
    EvalMetrics {
        step,
        epoch: step as f64 / 10.0,
        loss: 1.5,
        metrics: [("perplexity", 1.5_f64.exp()), ("mean_token_accuracy", 0.5)]
            .into_iter()
            .collect(),
        tokens: 77,
    }
}

fn started(resumed_from: Option<usize>) -> Started {
    let (steps, examples, trainable_parameters) = (10, 40, 8);
    Started { steps, epochs: 1.0, examples, trainable_parameters, resumed_from, compiles: false }
}

/// A log of steps 1 to 4, with an evaluation after 2 and 4.
fn log_of_four(folder: &Path) -> PathBuf {
    let path = folder.join("metrics.jsonl");
    let mut log = MetricsLog::new(&path);
    log.started(&started(None)).unwrap();
    for i in 1..=4 {
        log.step(&step(i)).unwrap();
        if i % 2 == 0 {
            log.evaluated(&evaluation(i)).unwrap();
        }
    }
    path
}

fn steps(path: &Path) -> Vec<usize> {
    MetricsLog::read(path).unwrap().iter().map(Record::step).collect()
}

#[test]
fn a_log_is_read_back_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_of_four(folder.path());
    let records = MetricsLog::read(&path).unwrap();
    assert_eq!(records.len(), 6);
    assert_eq!(records[0], Record::Step(step(1)));
    assert_eq!(records[2], Record::Evaluation(evaluation(2)));
    let text = fs::read_to_string(&path).unwrap();
    let kinds: Vec<_> = text.lines().map(|line| line.split('"').nth(3).unwrap()).collect();
    assert_eq!(kinds, ["step", "step", "evaluation", "step", "step", "evaluation"]);
}

#[test]
fn lines_are_in_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/demand/metrics.jsonl");
    let mut log = MetricsLog::new(&path);
    log.started(&started(None)).unwrap();
    for i in 1..=3 {
        log.step(&step(i)).unwrap();
        assert_eq!(steps(&path).len(), i);
    }
}

#[test]
fn a_resumed_log_is_that_of_an_uninterrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let whole = log_of_four(folder.path());
    let expected = fs::read(&whole).unwrap();
    // Killed while the line of step 5 was written, the last checkpoint being that of step 2.
    let mut torn = expected.clone();
    torn.extend(br#"{"kind":"step","step":5,"los"#);
    fs::write(&whole, torn).unwrap();
    assert_eq!(steps(&whole), [1, 2, 2, 3, 4, 4]);

    let mut log = MetricsLog::new(&whole);
    log.started(&started(Some(2))).unwrap();
    assert_eq!(steps(&whole), [1, 2, 2]);
    log.step(&step(3)).unwrap();
    log.step(&step(4)).unwrap();
    log.evaluated(&evaluation(4)).unwrap();
    assert_eq!(fs::read(&whole).unwrap(), expected);
    // The file beside it that was renamed is gone.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_new_run_begins_a_new_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_of_four(folder.path());
    // Not even a file that is no log is in its way.
    fs::write(&path, "nonsense\n").unwrap();
    MetricsLog::new(&path).started(&started(None)).unwrap();
    assert!(steps(&path).is_empty());
}

#[test]
fn a_resumption_without_a_log_begins_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::new(&path);
    log.started(&started(Some(7))).unwrap();
    log.step(&step(8)).unwrap();
    assert_eq!(steps(&path), [8]);
}

#[test]
fn a_log_without_a_start_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_of_four(folder.path());
    MetricsLog::new(&path).step(&step(5)).unwrap();
    assert_eq!(steps(&path), [1, 2, 2, 3, 4, 4, 5]);
}

#[test]
fn a_broken_line_in_the_middle_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = log_of_four(folder.path());
    let text = fs::read_to_string(&path).unwrap().replacen("\"step\":2", "\"step\":two", 1);
    fs::write(&path, text).unwrap();
    let error = MetricsLog::read(&path).unwrap_err();
    assert!(matches!(error, TrainError::Format { .. }));
    assert!(error.to_string().contains("line 2"), "{error}");
    // And the file is left as it is.
    assert!(MetricsLog::new(&path).started(&started(Some(4))).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 6);
}

#[test]
fn numbers_that_are_not_finite_are_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::new(&path);
    log.started(&started(None)).unwrap();
    log.step(&StepMetrics { loss: f64::NAN, grad_norm: f64::INFINITY, ..step(1) }).unwrap();
    log.evaluated(&EvalMetrics {
        metrics: [("perplexity", f64::INFINITY)].into_iter().collect(),
        ..evaluation(1)
    })
    .unwrap();
    log.started(&started(Some(1))).unwrap();
    match &MetricsLog::read(&path).unwrap()[..] {
        [Record::Step(step), Record::Evaluation(evaluation)] => {
            assert!(step.loss.is_nan() && step.grad_norm.is_nan());
            assert_eq!(step.learning_rate, 2e-4);
            assert!(evaluation.metrics.get("perplexity").unwrap().is_nan());
            assert_eq!(evaluation.loss, 1.5);
        }
        other => panic!("{other:?}"),
    }
    let text = fs::read_to_string(&path).unwrap();
    for line in text.lines() {
        assert!(line.contains("null"));
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_log_is_readable_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let usual = folder.path().join("usual");
    fs::write(&usual, "").unwrap();
    assert_eq!(mode(&log_of_four(folder.path())), mode(&usual));
}

#[test]
fn several_observers_hear_everything_up_to_an_error() {
    struct Fails;
    impl Observer for Fails {
        fn step(&mut self, _: &StepMetrics) -> Result<(), TrainError> {
            Err(TrainError::NotFinite {
                step: 1,
                what: "loss",
                value: f64::NAN,
                batch: String::new(),
                advice: String::new(),
            })
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    let mut all: Vec<Box<dyn Observer>> = vec![
        Box::new(MetricsLog::new(&paths[0])),
        Box::new(Fails),
        Box::new(MetricsLog::new(&paths[1])),
    ];
    all.started(&started(None)).unwrap();
    all.evaluated(&evaluation(1)).unwrap();
    assert!(all.step(&step(2)).is_err());
    assert_eq!(steps(&paths[0]), [1, 2]);
    assert_eq!(steps(&paths[1]), [1]);
}

/// What a run prints; called by the tests below in a process of its own.
#[test]
#[ignore = "part of other tests"]
fn print_a_run() {
    let mut progress = Progress::new();
    if let Ok(n) = env::var("BURN_LORA_LINES") {
        progress = progress.lines(n.parse().unwrap());
    }
    progress.started(&started(None)).unwrap();
    for i in 1..=4 {
        progress.step(&step(i)).unwrap();
    }
    progress.evaluated(&evaluation(4)).unwrap();
    progress.saved(Path::new("out/step-4")).unwrap();
    let reason = StopReason::Interrupted;
    let (best, best_metric) = (Some((4, 1.5)), "loss".into());
    let run = Finished { steps: 4, seconds: 2.0, reason, best, best_metric, loss: 0.15 };
    progress.finished(&run).unwrap();
}

fn printed(lines: Option<&str>) -> Vec<String> {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "watch::print_a_run", "--ignored", "--nocapture"]);
    command.env_remove("BURN_LORA_LINES");
    command.envs(lines.map(|n| ("BURN_LORA_LINES", n)));
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn without_a_terminal_nothing_is_printed() {
    assert!(printed(None).is_empty());
}

#[test]
fn without_a_terminal_lines_are_printed_if_asked_for() {
    let expected = [
        "10 steps (1 epochs of 40 examples), 8 trainable parameters",
        "step 2/10: loss 0.2000, 1234 tokens/s, 1.00 GiB",
        "step 4/10: loss 0.1500, 1234 tokens/s, 1.00 GiB",
        "step 4: validation loss 1.5000, accuracy 50.0 %, perplexity 4.48",
        "saved out/step-4",
        "interrupted after 4 steps and 00:00:02: loss 0.1500, best validation loss 1.5000 after step 4",
    ];
    assert_eq!(printed(Some("2")), expected);
}

/// The numbers of the points of each line of a picture.
fn polylines(svg: &str) -> Vec<usize> {
    let lines = svg.split("<polyline").skip(1);
    let points = lines.map(|line| line.split("points=\"").nth(1).unwrap().split('"').next());
    points.map(|points| points.unwrap().split_whitespace().count()).collect()
}

#[test]
fn a_picture_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    // With `BURN_LORA_PICTURES` the pictures stay, to be looked at.
    let keep = env::var_os("BURN_LORA_PICTURES").map(PathBuf::from);
    let out = keep.as_deref().unwrap_or(folder.path());
    let metrics = folder.path().join("metrics.jsonl");
    let svg = out.join("loss.svg");
    let mut log = MetricsLog::new(&metrics);
    log.started(&started(None)).unwrap();
    for i in 1..=300_usize {
        let x = i as f64;
        let noise = ((i * 7919) % 101) as f64 / 101.0 - 0.5;
        let loss = 1.1 + 1.3 * (-x / 60.0).exp() + 0.25 * noise;
        let loss = if i == 150 { f64::NAN } else { loss };
        let learning_rate = 2e-4 * (x / 20.0).min((300.0 - x) / 280.0);
        log.step(&StepMetrics { loss, learning_rate, ..step(i) }).unwrap();
        if i % 30 == 0 {
            let loss = 1.2 + 1.2 * (-x / 60.0).exp() + 0.0005 * x;
            log.evaluated(&EvalMetrics { loss, ..evaluation(i) }).unwrap();
        }
    }
    plot_metrics(&metrics, &svg).unwrap();
    let svg = fs::read_to_string(svg).unwrap();
    for text in ["Loss", "loss", "step", "learning rate", "training", "validation", "1e-4"] {
        assert!(svg.contains(&format!(">\n{text}\n")), "{text} is missing");
    }
    let lines = polylines(&svg);
    // The loss in two pieces around the NaN, smoothed, validation, learning rate.
    for points in [149, 150, 299, 10, 300] {
        assert!(lines.contains(&points), "{points} are not in {lines:?}");
    }
    assert_eq!(svg.matches("<circle").count(), 10);
    assert!(!svg.contains("NaN") && !svg.contains("image"));
}

#[test]
fn pictures_of_little() {
    let folder = tempfile::tempdir().unwrap();
    let (metrics, svg) = (folder.path().join("metrics.jsonl"), folder.path().join("loss.svg"));
    let mut log = MetricsLog::new(&metrics);
    log.started(&started(None)).unwrap();
    let error = plot_metrics(&metrics, &svg).unwrap_err().to_string();
    assert!(error.contains("no metrics yet"), "{error}");
    assert!(!svg.exists());
    log.step(&step(1)).unwrap();
    plot_metrics(&metrics, &svg).unwrap();
    assert!(fs::read_to_string(&svg).unwrap().contains("<circle"));
    log.step(&StepMetrics { loss: f64::NAN, ..step(2) }).unwrap();
    plot_metrics(&metrics, &svg).unwrap();
    assert!(!fs::read_to_string(&svg).unwrap().contains("NaN"));
    let nowhere = folder.path().join("no/such/folder.svg");
    assert!(matches!(plot_metrics(&metrics, &nowhere), Err(TrainError::Io { .. })));
}

#[test]
fn lines_with_names() {
    let folder = tempfile::tempdir().unwrap();
    let keep = env::var_os("BURN_LORA_PICTURES").map(PathBuf::from);
    let svg = keep.as_deref().unwrap_or(folder.path()).join("ranks.svg");
    let series: Vec<_> = (0..3)
        .map(|i| {
            let points =
                [4, 8, 16, 32, 64].map(|r| (r as f64, 1.3 - 0.02 * i as f64 + 1.0 / r as f64));
            (format!("seed <{i}> & co"), points.to_vec())
        })
        .collect();
    plot_lines("Loss by rank", "rank", "validation loss", &series, &svg).unwrap();
    let svg_text = fs::read_to_string(&svg).unwrap();
    assert!(svg_text.contains("seed &lt;1&gt; &amp; co"));
    assert_eq!(svg_text.matches("<circle").count(), 15);
    assert_eq!(polylines(&svg_text).iter().filter(|&&points| points == 5).count(), 3);

    let none: [(&str, Vec<(f64, f64)>); 1] = [("empty", vec![])];
    assert!(matches!(plot_lines("", "", "", &none, &svg), Err(TrainError::Setting { .. })));
}

mod report;
#[cfg(feature = "tensorboard")]
mod tensorboard;
