//! Sweeps: trials that are runs, halving, resumption, failures.

mod errors;

use crate::common::{device, the_generator};
use burn::tensor::FloatDType;
use burn_lora_llama::{Llama, LlamaConfig, SaveOptions};
use burn_lora_text::Tokenizer;
use burn_lora_train::{
    Interrupt, Observer, RunConfig, TrainError,
    sweep::{Axis, Status, Strategy, Sweep, SweepObserver, SweepReport, Trial, TrialResult},
    watch::StepMetrics,
};
use serde_json::json;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A folder with a very small Llama and examples.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write_model(1);
        place.write_data(16);
        place
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write_model(&self, seed: u64) {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 288,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        });
        let config = LlamaConfig::from_json(&config.to_string()).unwrap();
        let (model, options) = (self.path().join("model"), SaveOptions::new());
        let llama = Llama::random(&config, seed, &device());
        llama.save_pretrained(&model, &options.dtype(FloatDType::F32)).unwrap();
        Tokenizer::from_pretrained("../../testdata/tokenizer").unwrap().save(&model).unwrap();
    }

    pub fn write_data(&self, count: usize) {
        let line = |number: usize| json!({ "prompt": format!("say {number}"), "completion": " hello world" });
        let lines: String = (0..count).map(|number| format!("{}\n", line(number))).collect();
        fs::write(self.path().join("data.jsonl"), lines).unwrap();
    }

    /// Runs of six steps, in a folder of this name.
    pub fn run(&self, output: &str) -> RunConfig {
        let mut run = RunConfig::default()
            .with_setting("devices=['cpu']")
            .and_then(|run| run.with_setting("model.format=nf4"))
            .and_then(|run| run.with_setting("data.valid_split=0.25"))
            .and_then(|run| run.with_setting("train.batches.size=4"))
            .and_then(|run| run.with_setting("train.gradient_accumulation_steps=1"))
            .and_then(|run| run.with_setting("train.learning_rate=1e-3"))
            .and_then(|run| run.with_setting("train.epochs=2"))
            .unwrap();
        run.model.path = Some(self.path().join("model"));
        run.data.files = vec![self.path().join("data.jsonl")];
        run.train.log_steps = 1;
        run.train.output = Some(self.path().join(output));
        run
    }

    pub fn sweep(&self, output: &str, axes: &[&str]) -> Sweep {
        let axes = axes.iter().map(|axis| axis.parse::<Axis>().unwrap());
        axes.fold(Sweep::new(self.run(output)), Sweep::over)
    }

    fn adapter(&self, folder: &str) -> Vec<u8> {
        fs::read(self.path().join(folder).join("adapter_model.safetensors")).unwrap()
    }
}

pub fn run(sweep: &Sweep) -> Result<SweepReport, TrainError> {
    sweep.run(&mut (), &Interrupt::default())
}

/// Raises an interrupt after a step of a trial, and notes which trials are trained.
#[derive(Default)]
struct Watch {
    interrupt: Interrupt,
    /// Trial, and step.
    stop: Option<(String, usize)>,
    trained: Vec<String>,
}

impl SweepObserver for Watch {
    fn trial_started(
        &mut self,
        trial: &Trial,
        _goal: Option<usize>,
    ) -> Result<Vec<Box<dyn Observer>>, TrainError> {
        self.trained.push(trial.name.clone());
        let step = self.stop.as_ref().filter(|(name, _)| *name == trial.name).map(|stop| stop.1);
        let stop = step.map(|step| Stop { interrupt: self.interrupt.clone(), step });
        Ok(stop.into_iter().map(|stop| Box::new(stop) as Box<dyn Observer>).collect())
    }

    fn trial_ended(&mut self, result: &TrialResult) -> Result<(), TrainError> {
        assert_eq!(self.trained.last(), Some(&result.name));
        Ok(())
    }
}

struct Stop {
    interrupt: Interrupt,
    step: usize,
}

impl Observer for Stop {
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        if metrics.step == self.step {
            self.interrupt.raise();
        }
        Ok(())
    }
}

fn names(report: &SweepReport) -> Vec<&str> {
    report.trials.iter().map(|trial| trial.name.as_str()).collect()
}

#[test]
fn a_trial_is_the_run_that_it_would_be_alone() {
    let _one = the_generator();
    let place = Place::new();
    let mut sweep = place.sweep("out", &["adapter.r=2,4", "adapter.lora_dropout=0.0,0.25"]);
    sweep.run.train.load_best_at_end = true;
    let report = run(&sweep).unwrap();
    assert_eq!(report.trials.len(), 4);
    for trial in sweep.trials().unwrap() {
        let mut alone = trial.run.clone();
        alone.train.output = Some(place.path().join("alone").join(&trial.name));
        let found = alone.run().unwrap();
        let [one, other] = ["out", "alone"].map(|folder| format!("{folder}/{}", trial.name));
        assert!(place.adapter(&one) == place.adapter(&other), "{}", trial.name);
        let result = report.trials.iter().find(|result| result.name == trial.name).unwrap();
        assert_eq!(result.loss, found.finished.best.map(|best| best.1), "{}", trial.name);
        assert_eq!((result.status, result.steps), (Status::Finished, 6));
        assert_eq!(result.evaluations.len(), 2);
        assert!(result.seconds > 0.0 && result.training_loss.is_some());
    }
    // By loss, and with all that there is to see.
    assert!(report.trials.is_sorted_by(|a, b| a.loss <= b.loss));
    assert_eq!(report.best.as_deref(), Some(names(&report)[0]));
    let [four, two] = ["r=4,lora_dropout=0", "r=2,lora_dropout=0.25"]
        .map(|name| report.trials.iter().find(|trial| trial.name == name).unwrap().parameters);
    assert_eq!(four, 2 * two);
    let out = place.path().join("out");
    for file in ["results.json", "sweep.md", "sweep.svg", "curves.svg"] {
        assert!(out.join(file).exists(), "{file}");
    }
    assert_eq!(fs::read_to_string(out.join("sweep.md")).unwrap(), report.to_string());
    let line = report.to_string().lines().next().unwrap().to_owned();
    assert!(
        line.starts_with("|  r | lora_dropout | validation loss |")
            || line.contains("| lora_dropout |"),
        "{line}"
    );
    let picture = fs::read_to_string(out.join("sweep.svg")).unwrap();
    assert!(picture.contains("Validation loss by lora_dropout") && picture.contains("r=4"));
    // Its checkpoints are done with.
    let folder = out.join(names(&report)[0]);
    let checkpoints = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!checkpoints.into_iter().any(|name| name.to_string_lossy().contains("checkpoint")));
}

#[test]
fn halving_trains_the_best_as_if_they_had_been_alone() {
    let place = Place::new();
    let sweep = place.sweep("out", &["train.learning_rate=1e-5,1e-4,1e-3,1e-2"]);
    let halving = Strategy::Halving { factor: 2, min_steps: Some(2) };
    let report = run(&sweep.clone().strategy(halving)).unwrap();
    let steps: Vec<_> = report.trials.iter().map(|trial| trial.steps).collect();
    assert_eq!(steps, [6, 4, 2, 2]);
    let status: Vec<_> = report.trials.iter().map(|trial| trial.status).collect();
    assert_eq!(status[..2], [Status::Finished, Status::Halted]);
    // Every one of the first rung was worse than those that went on.
    let at = |trial: usize, step: usize| report.trials[trial].evaluations[&step];
    assert!(at(0, 2).max(at(1, 2)) < at(2, 2).min(at(3, 2)) && at(0, 4) < at(1, 4));

    // The one that was promoted twice is the whole run, bit for bit; so it is in a grid.
    let best = report.best.clone().unwrap();
    let trials = sweep.trials().unwrap();
    let mut alone = trials.iter().find(|trial| trial.name == best).unwrap().run.clone();
    alone.train.output = Some(place.path().join("alone"));
    alone.run().unwrap();
    assert!(place.adapter(&format!("out/{best}")) == place.adapter("alone"));
    // The losses of a rung are those of the run at that step.
    let log = |folder: &str| fs::read_to_string(place.path().join(folder).join("metrics.jsonl"));
    let losses = |text: String| -> Vec<_> {
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| (line["step"].clone(), line["loss"].clone(), line["learning_rate"].clone()))
            .collect()
    };
    assert_eq!(losses(log(&format!("out/{best}")).unwrap()), losses(log("alone").unwrap()));

    // Again, it has nothing to do; as a grid, the halted ones are trained whole.
    let mut watch = Watch::default();
    let again = sweep.clone().strategy(halving).run(&mut watch, &Interrupt::default()).unwrap();
    assert_eq!((again, watch.trained.len()), (report, 0));
    let grid = sweep.run(&mut watch, &Interrupt::default()).unwrap();
    assert_eq!(watch.trained.len(), 3);
    assert!(grid.trials.iter().all(|trial| trial.status == Status::Finished && trial.steps == 6));
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let place = Place::new();
    let axes = ["adapter.r=2,4", "train.learning_rate=1e-4,1e-3"];
    for strategy in [Strategy::Grid, Strategy::Halving { factor: 2, min_steps: Some(3) }] {
        let folder = format!("{strategy:?}").split(' ').next().unwrap().to_owned();
        let whole = place.sweep(&format!("whole {folder}"), &axes).strategy(strategy);
        let expected = run(&whole).unwrap();
        let sweep = place.sweep(&folder, &axes).strategy(strategy);
        let stop = Some(("r=2,learning_rate=1e-3".to_owned(), 2));
        let mut watch = Watch { stop, ..Watch::default() };
        let interrupt = watch.interrupt.clone();
        let report = sweep.run(&mut watch, &interrupt).unwrap();
        assert!(report.interrupted);
        assert_eq!(watch.trained, ["r=2,learning_rate=1e-4", "r=2,learning_rate=1e-3"]);
        assert_eq!(report.skipped, ["r=4,learning_rate=1e-4", "r=4,learning_rate=1e-3"]);
        let stopped = report.trials.iter().find(|trial| trial.name == watch.trained[1]).unwrap();
        assert_eq!((stopped.status, stopped.steps, stopped.loss), (Status::Interrupted, 2, None));
        assert!(report.to_string().contains("interrupted of 6"), "{report}");

        let mut watch = Watch::default();
        let report = sweep.run(&mut watch, &Interrupt::default()).unwrap();
        assert!(!report.interrupted && report.skipped.is_empty());
        assert_eq!(watch.trained[0], "r=2,learning_rate=1e-3");
        assert_eq!(report.best, expected.best);
        for (one, other) in report.trials.iter().zip(&expected.trials) {
            assert_eq!((&one.name, one.loss, one.steps), (&other.name, other.loss, other.steps));
            assert_eq!(one.evaluations, other.evaluations);
            let file = |result: &TrialResult| {
                fs::read(result.folder.join("adapter_model.safetensors")).unwrap()
            };
            assert!(file(one) == file(other), "{}", one.name);
        }
    }
}

#[test]
fn a_small_gain_is_the_last_one() {
    let place = Place::new();
    // The rate is what makes a difference here: from the second to the third there is none to speak of.
    let axes = ["adapter.seed=1,2", "train.learning_rate=1e-5,1e-2,1.001e-2,2e-2"];
    let report = run(&place.sweep("out", &axes).min_gain(0.05)).unwrap();
    assert_eq!(report.trials.len(), 6, "{report}");
    assert_eq!(report.skipped, ["seed=1,learning_rate=0.02", "seed=2,learning_rate=0.02"]);
    assert!(report.to_string().contains("Not tried: seed=1,learning_rate=0.02"));
    // More values later: those that are there are not trained again.
    let axes = ["adapter.seed=1,2,3", "train.learning_rate=1e-5"];
    let mut watch = Watch::default();
    place.sweep("out", &axes).run(&mut watch, &Interrupt::default()).unwrap();
    assert_eq!(watch.trained, ["seed=3,learning_rate=1e-5"]);
}

#[test]
fn a_trial_that_fails_does_not_end_the_sweep() {
    let place = Place::new();
    let mut sweep = place.sweep("out", &["train.learning_rate=1e30,1e-3", "adapter.r=2,4"]);
    sweep.run.train.max_grad_norm = None;
    let (report, _) = burn_lora_io::collect(|| run(&sweep));
    let report = report.unwrap();
    let status: Vec<_> = report.trials.iter().map(|trial| trial.status).collect();
    assert_eq!(status[..2], [Status::Finished; 2]);
    assert_eq!(status[2..], [Status::Diverged; 2]);
    let reason = report.trials[2].reason.clone().unwrap();
    assert!(reason.contains("loss is") || reason.contains("norm of the gradients"), "{reason}");
    assert!(report.to_string().contains(&reason.chars().take(20).collect::<String>()), "{report}");
    // Neither kind is trained again.
    let mut watch = Watch::default();
    assert_eq!(sweep.run(&mut watch, &Interrupt::default()).unwrap(), report);
    assert!(watch.trained.is_empty());

    // A layer that is not there is found with the model: the trial fails, and is tried again.
    let targets = "adapter.target_modules=['q_proj'],['no_such_layer']";
    let sweep = place.sweep("targets", &[targets]);
    let report = run(&sweep).unwrap();
    assert_eq!(report.trials[1].status, Status::Failed);
    let mut watch = Watch::default();
    sweep.run(&mut watch, &Interrupt::default()).unwrap();
    assert_eq!(watch.trained, ["target_modules=no_such_layer"]);

    let all = place.sweep("all", &["adapter.target_modules=['x_proj'],['y_proj']"]);
    let error = run(&all).unwrap_err().to_string();
    assert!(error.contains("no trial could be trained to its end"), "{error}");
    assert!(error.contains("target_modules=x_proj: "), "{error}");
}
