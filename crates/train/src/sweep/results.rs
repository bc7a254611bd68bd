//! Results of the trials, in a file that is whole or absent.

use super::trial::Trial;
use crate::{
    error::TrainError,
    identity::{contents_difference, difference},
    run_config::RunConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// State of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// It was trained whole.
    Finished,
    /// It was trained up to a rung of [successive halving](super::Strategy::Halving), where others were better.
    Halted,
    /// It was interrupted, and goes on from its checkpoint.
    Interrupted,
    /// Its loss or a gradient was not finite. The same sweep does not try it again.
    Diverged,
    /// It failed otherwise, such as without memory. The same sweep tries it again.
    Failed,
}

/// Result of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Name of the trial.
    pub name: String,
    /// Its settings, as they are shown.
    pub settings: Vec<(String, String)>,
    /// Its state.
    pub status: Status,
    /// Reason of a failure.
    pub reason: Option<String>,
    /// Validation loss of the adapter that it leaves: of the last step, or of the best evaluation with
    /// [`load_best_at_end`](crate::TrainConfig::load_best_at_end). Of a trial that was halted, at its last rung.
    pub loss: Option<f64>,
    /// Validation loss by step.
    pub evaluations: BTreeMap<usize, f64>,
    /// Training loss of the last line of the log.
    pub training_loss: Option<f64>,
    /// Optimizer steps done.
    pub steps: usize,
    /// Optimizer steps of the whole run.
    pub of_steps: usize,
    /// Seconds of these steps, without evaluations.
    pub seconds: f64,
    /// Tokens per second, the median over the lines of the log but the first.
    pub tokens_per_second: Option<f64>,
    /// Largest number of bytes that the device's memory pool has reserved, which it keeps from one trial to the next.
    pub memory: Option<u64>,
    /// Number of trained parameters.
    pub parameters: usize,
    /// Folder of its adapter, metrics and picture.
    pub folder: PathBuf,
}

impl TrialResult {
    /// Creates the result of a trial that has not begun.
    pub(super) fn new(trial: &Trial, of_steps: usize) -> Self {
        Self {
            name: trial.name.clone(),
            settings: trial.settings.clone(),
            status: Status::Interrupted,
            reason: None,
            loss: None,
            evaluations: BTreeMap::new(),
            training_loss: None,
            steps: 0,
            of_steps,
            seconds: 0.0,
            tokens_per_second: None,
            memory: None,
            parameters: 0,
            folder: trial.run.train.output.clone().unwrap_or_default(),
        }
    }

    /// Returns `true` if there is nothing to train up to a step, or to the end.
    pub(super) fn has_reached(&self, goal: Option<usize>) -> bool {
        match self.status {
            Status::Finished | Status::Diverged => true,
            // It may have been further than this when it was stopped.
            Status::Halted | Status::Interrupted | Status::Failed => {
                goal.is_some_and(|goal| self.evaluations.contains_key(&goal))
            }
        }
    }

    /// Validation loss after a step, or of the whole run. A trial that ended before, by early stopping, has the
    /// loss of its end.
    pub(super) fn loss_at(&self, goal: Option<usize>) -> Option<f64> {
        let then = goal.and_then(|goal| self.evaluations.get(&goal).copied());
        match self.status {
            Status::Finished => then.or(self.loss),
            _ => then,
        }
    }
}

/// The file of a sweep.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    #[serde(skip)]
    path: PathBuf,
    trials: Vec<Entry>,
}

/// A trial with what identifies it.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    result: TrialResult,
    identity: Identity,
}

/// What a trial began with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    pub run: RunConfig,
    /// Hashes of the data.
    pub data: Value,
    /// Hash of the base.
    pub base: String,
}

impl Results {
    /// Reads the file in the folder of a sweep; empty if there is none.
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join("results.json");
        let mut results: Self = match burn_lora_io::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(TrainError::io(&path, error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let reason = format!(
                    "these are no results of a sweep ({error}): remove the file to begin anew, or write into \
                     another folder"
                );
                TrainError::format(&path, reason)
            })?,
        };
        results.path = path;
        Ok(results)
    }

    pub fn get(&self, name: &str) -> Option<&TrialResult> {
        self.entry(name).map(|entry| &entry.result)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.trials.iter().find(|entry| entry.result.name == name)
    }

    /// Sets the result of a trial, and writes the file.
    pub fn set(&mut self, result: TrialResult, identity: Identity) -> Result<(), TrainError> {
        let entry = Entry { result, identity };
        match self.trials.iter_mut().find(|other| other.result.name == entry.result.name) {
            Some(before) => *before = entry,
            None => self.trials.push(entry),
        }
        let json = serde_json::to_vec_pretty(self);
        let json = json.map_err(|error| TrainError::format(&self.path, error.to_string()))?;
        burn_lora_io::replace(&self.path, &json).map_err(|error| TrainError::io(&self.path, error))
    }

    /// Checks that a trial is the one of its name that is in the file, if one is.
    pub fn check(&self, trial: &Trial, data: &Value) -> Result<(), TrainError> {
        let Some(Entry { identity, .. }) = self.entry(&trial.name) else { return Ok(()) };
        let (before, now) = (compared(&identity.run), compared(&trial.run));
        let of_data = |name: &str| {
            contents_difference(&format!("{name} data"), &identity.data[name], &data[name])
        };
        let found = difference("", &before, &now);
        match found.or_else(|| of_data("training")).or_else(|| of_data("validation")) {
            Some(found) => Err(self.differs(trial, found)),
            None => Ok(()),
        }
    }

    /// Checks that a base is the one with which a trial in the file began.
    pub fn check_base(&self, trial: &Trial, hash: &str) -> Result<(), TrainError> {
        let same_base = |entry: &&Entry| entry.identity.run.model == trial.run.model;
        match self.trials.iter().find(same_base) {
            Some(Entry { identity, .. }) if identity.base != hash => {
                let found = ["weights of the base".into(), identity.base.clone(), hash.into()];
                Err(self.differs(trial, found))
            }
            _ => Ok(()),
        }
    }

    fn differs(&self, trial: &Trial, [name, was, is]: [String; 3]) -> TrainError {
        let reason = format!(
            "trial {}: `{name}` was {was} and is {is}: a sweep goes on with what it began with; set it back, or \
             write into another folder",
            trial.name
        );
        TrainError::format(&self.path, reason)
    }
}

/// Settings of a run that what it learns depends on.
fn compared(run: &RunConfig) -> Value {
    // Files may be moved: their contents are compared.
    let free = [
        ("", &["devices", "memory_budget", "generate"][..]),
        ("/data", &["files", "valid", "temp_dir"]),
        (
            "/train",
            &[
                "keep",
                "keep_attention_of",
                "log_steps",
                "loss_chunk",
                "mlp_chunk",
                "offload",
                "output",
                "recompute",
                "save",
                "save_total_limit",
            ],
        ),
    ];
    let mut all = serde_json::to_value(run).unwrap_or_default();
    for (section, names) in free {
        if let Some(Value::Object(fields)) = all.pointer_mut(section) {
            fields.retain(|name, _| !names.contains(&name.as_str()));
        }
    }
    all
}
