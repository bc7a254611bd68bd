//! Settings of a sweep.

use super::{
    axis::Axis,
    trial::{Trial, combinations},
};
use crate::{
    error::TrainError,
    run_config::{RunConfig, with_nearest},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fs, path::Path};
use toml::{Table, Value};

/// Order in which the trials of a sweep are trained, and how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Strategy {
    /// Each trial whole, one after the other.
    #[default]
    Grid,
    /// Successive halving (arXiv:1502.07943): all trials are trained up to some step, the best `1 / factor` of them
    /// (rounded up) to `factor` times as many, and so on, until the last ones are trained whole. With `m` the steps of the
    /// first rung, those of rung `k` are `m·factorᵏ`. Each trial follows the learning rate of a whole run, so that one that
    /// stays ends as it would alone.
    Halving {
        /// Factor from one rung to the next, of the steps and of the trials; default: 3.
        #[serde(default = "three")]
        factor: usize,
        /// Optimizer steps of the first rung. By default as many as let one trial be left for the
        /// last rung.
        #[serde(default)]
        min_steps: Option<usize>,
    },
}

fn three() -> usize {
    3
}

/// Several runs that differ in some settings.
///
/// ```
/// use burn_lora_train::{
///     Interrupt, RunConfig,
///     sweep::{Axis, Sweep},
/// };
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let [data, out] = ["data.jsonl", "out"].map(|name| folder.path().join(name));
/// # let line = "{\"prompt\": \"hello\", \"completion\": \" world\"}\n";
/// # std::fs::write(&data, line.repeat(10)).unwrap();
/// let mut run = RunConfig::default()
///     .with_setting("devices=['cpu']")?
///     .with_setting("model.path=../../testdata/quickstart/model")?
///     .with_setting("data.valid_split=0.2")?;
/// run.data.files = vec![data];
/// run.train = run.train.epochs(1).output(&out);
///
/// let sweep = Sweep::new(run)
///     .over(Axis::new("adapter.r", [2, 4])?)
///     .over(Axis::new("train.learning_rate", [1e-4, 1e-3])?);
/// let report = sweep.run(&mut (), &Interrupt::default())?;
/// println!("{report}"); // a table; pictures and adapters are in `out`
/// assert_eq!(report.trials.len(), 4);
/// assert!(out.join(report.best.unwrap()).join("adapter_model.safetensors").exists());
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    /// The run that all trials are variants of. Its [output](crate::TrainConfig::output) is the folder of
    /// the sweep.
    pub run: RunConfig,
    /// The settings that vary. The values of the last axis are tried next to each other.
    pub over: Vec<Axis>,
    /// Order and length of the trials.
    pub strategy: Strategy,
    /// Fraction by which the validation loss has to fall from one value of the last axis to the next
    /// (`1 - loss / loss before`); after a smaller gain the values behind it are not tried. For a setting whose larger
    /// values cost more, such as the rank.
    pub min_gain: Option<f64>,
}

/// A sweep as a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Only for its errors, which have lines.
    #[serde(default, rename = "run")]
    _run: RunConfig,
    #[serde(default)]
    over: Vec<Axis>,
    #[serde(default)]
    strategy: Strategy,
    #[serde(default)]
    min_gain: Option<f64>,
}

impl Sweep {
    /// Creates a sweep in which nothing varies yet.
    pub fn new(run: RunConfig) -> Self {
        Self { run, ..Self::default() }
    }

    /// Adds an axis.
    pub fn over(mut self, axis: Axis) -> Self {
        self.over.push(axis);
        self
    }

    /// Sets the [`strategy`](Self#structfield.strategy).
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Sets the [`min_gain`](Self#structfield.min_gain).
    pub fn min_gain(mut self, gain: f64) -> Self {
        self.min_gain = Some(gain);
        self
    }

    /// Reads a sweep from a file: `[run]` with the sections of a run file, `[[over]]` with the axes.
    ///
    /// ```
    /// use burn_lora_train::sweep::{Strategy, Sweep};
    ///
    /// # let file = tempfile::NamedTempFile::new().unwrap();
    /// std::fs::write(&file, "
    ///     strategy = { halving = { factor = 3 } }
    ///     [[over]]
    ///     name = 'adapter.r'
    ///     values = [8, 16, 32]
    ///     [run.train]
    ///     epochs = 1
    /// ").unwrap();
    /// let sweep = Sweep::from_file(file.path())?;
    /// assert_eq!(sweep.strategy, Strategy::Halving { factor: 3, min_steps: None });
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read; [`TrainError::Format`] with the line if it is not TOML, a name
    /// is unknown (with the nearest one) or a value has another type.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| TrainError::io(path, error))?;
        let wrong = |error: toml::de::Error| {
            TrainError::format(path, with_nearest(error.to_string().trim_end()))
        };
        let File { over, strategy, min_gain, .. } = toml::from_str(&text).map_err(wrong)?;
        // What a section does not name is the default of a run, not of the section.
        let mut table: Table = text.parse().map_err(wrong)?;
        let run = match table.remove("run") {
            Some(Value::Table(run)) => RunConfig::default().overlaid(run),
            _ => Ok(RunConfig::default()),
        };
        let run = run.map_err(|reason| TrainError::format(path, reason))?;
        Ok(Self { run, over, strategy, min_gain })
    }

    /// Returns the trials, in their order.
    ///
    /// ```
    /// use burn_lora_train::{RunConfig, sweep::Sweep};
    ///
    /// let mut run = RunConfig::default().with_setting("data.valid_split=0.1")?;
    /// run.model.path = Some("model".into());
    /// run.data.files = vec!["chats.jsonl".into()];
    /// run.train.output = Some("out".into());
    /// let sweep = Sweep::new(run).over("adapter.r=8,16".parse()?);
    /// let trials = sweep.trials()?;
    /// assert_eq!(trials[1].name, "r=16");
    /// assert_eq!(trials[1].run.adapter.rank(), 16);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Missing`] if nothing varies, or a setting that a run needs is not set
    /// - [`TrainError::Setting`] if there is nothing to validate on, or a setting of the sweep is invalid
    /// - [`TrainError::Settings`] for an unknown setting (with the nearest name), one that is named twice or
    ///   cannot vary, two trials with the same settings, and a trial with an invalid one
    pub fn trials(&self) -> Result<Vec<Trial>, TrainError> {
        self.check()?;
        let needed = "name a folder for the sweep";
        let folder = self.run.train.output.as_ref();
        let folder = folder.ok_or(TrainError::Missing { name: "train.output", needed })?;
        let trials = combinations(&self.run, &self.over, folder)?;
        for trial in &trials {
            if !trial.run.data.has_validation() {
                let reason = "a sweep compares validation losses: set `data.valid_split`, such as \
                    to 0.05, or name files in `data.valid`";
                return Err(TrainError::setting("data.valid_split", 0, reason));
            }
            trial.run.validate().map_err(|error| match error {
                // Not of this trial alone.
                TrainError::Missing { .. } => error,
                error => TrainError::settings(format!("trial {}", trial.name), error),
            })?;
        }
        let without_output = |trial: &Trial| {
            let mut run = trial.run.clone();
            run.train.output = None;
            run
        };
        let runs: Vec<_> = trials.iter().map(without_output).collect();
        for (at, run) in runs.iter().enumerate() {
            let name = &trials[at].name;
            // Some systems take names that differ in their case alone for the same.
            let same = |other: &usize| {
                runs[*other] == *run || trials[*other].name.eq_ignore_ascii_case(name)
            };
            if let Some(other) = (0..at).find(same) {
                let other = &trials[other].name;
                let both = if name == other {
                    format!("{name} is there twice")
                } else {
                    format!("{other} and {name} are the same")
                };
                return Err(TrainError::settings("the sweep", format!("{both}: leave one out")));
            }
        }
        Ok(trials)
    }

    /// Checks what does not depend on the trials.
    fn check(&self) -> Result<(), TrainError> {
        if self.over.is_empty() {
            let needed = "name a setting and the values to try, as in adapter.r=8,16,32";
            return Err(TrainError::Missing { name: "over", needed });
        }
        let mut seen = BTreeSet::new();
        for name in self.over.iter().flat_map(|axis| &axis.names) {
            let wrong = |reason: &str| Err(TrainError::settings(name, reason));
            if !seen.insert(name.as_str()) {
                return wrong("it is named twice: give all its values at once");
            }
            if name == "train.output" || name == "train" {
                return wrong(
                    "each trial has a folder of its own in that of the sweep: leave it out",
                );
            }
            if self.run.model.adapter.is_some() && name.starts_with("adapter") {
                return wrong(
                    "`model.adapter` is set, and its settings are those of the adapter: leave one \
                     out",
                );
            }
        }
        if self.run.objective.has_head() {
            let reason = "a sweep knows objectives of tokens: train a head in runs of their own";
            return Err(TrainError::settings("objective", reason));
        }
        let metric = "train.metric_for_best_model";
        if self.run.train.metric_for_best_model.is_some() || seen.contains(metric) {
            let reason = "trials are compared by their validation losses: leave it out";
            return Err(TrainError::settings(metric, reason));
        }
        if let Some(gain) = self.min_gain {
            let wrong = |reason| Err(TrainError::setting("min_gain", gain, reason));
            if !(0.0..1.0).contains(&gain) {
                return wrong("it is a fraction, in [0, 1), such as 0.01");
            }
            if self.strategy != Strategy::Grid {
                return wrong("it goes with the strategy `grid`: leave one out");
            }
        }
        match self.strategy {
            Strategy::Halving { factor, .. } if factor < 2 => {
                let reason = "it has to be 2 or more: 3 keeps the best third";
                Err(TrainError::setting("factor", factor, reason))
            }
            Strategy::Halving { min_steps: Some(0), .. } => {
                Err(TrainError::setting("min_steps", 0, "it has to be 1 or more"))
            }
            _ => Ok(()),
        }
    }
}
