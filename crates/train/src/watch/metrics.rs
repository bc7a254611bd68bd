//! Metrics log in JSON lines.

use super::{EvalMetrics, Observer, Started, StepMetrics};
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// A line of a [`MetricsLog`]; its field `kind` is `step` or `evaluation`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A logged step.
    Step(StepMetrics),
    /// An evaluation.
    Evaluation(EvalMetrics),
}

impl Record {
    /// Returns the number of steps done.
    pub fn step(&self) -> usize {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Evaluation(metrics) => metrics.step,
        }
    }
}

/// An observer that appends a line of JSON for each logged step and each evaluation.
///
/// A new run starts a new file. A run that resumes from step `k` keeps the lines up to `k`, so that
/// the file is that of an uninterrupted run.
///
/// ```
/// use burn_lora_train::watch::{MetricsLog, Observer, Started, StepMetrics};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("metrics.jsonl");
/// let mut log = MetricsLog::new(&path);
/// log.started(&Started::default())?;
/// log.step(&StepMetrics { step: 1, loss: 2.5, ..Default::default() })?;
/// assert_eq!(MetricsLog::read(&path)?[0].step(), 1);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: Option<File>,
}

impl MetricsLog {
    /// Creates a log in a file that is opened when the run starts.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None }
    }

    /// Reads the lines of a file, without an incomplete last line of a killed run.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read, [`TrainError::Format`] if a line is not a
    /// [`Record`].
    pub fn read(path: &Path) -> Result<Vec<Record>, TrainError> {
        let bytes = burn_lora_io::read(path).map_err(|error| TrainError::io(path, error))?;
        let mut records = Vec::new();
        for (i, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            match serde_json::from_slice(line) {
                Ok(record) => records.push(record),
                Err(_) if !line.ends_with(b"\n") => break,
                Err(error) => {
                    let reason = format!("line {} is no metrics: {error}", i + 1);
                    return Err(TrainError::format(path, reason));
                }
            }
        }
        Ok(records)
    }

    /// Reads the lines so far, up to a step.
    fn kept(&self, last_step: usize) -> Result<Vec<Record>, TrainError> {
        match Self::read(&self.path) {
            Err(TrainError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            records => {
                let mut records = records?;
                records.retain(|record| record.step() <= last_step);
                Ok(records)
            }
        }
    }

    /// Writes the file with these lines, and opens it for appending.
    fn open(&mut self, records: &[Record]) -> Result<&mut File, TrainError> {
        replace(&self.path, records)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        Ok(self.file.insert(file.map_err(|error| TrainError::io(&self.path, error))?))
    }

    fn append(&mut self, record: Record) -> Result<(), TrainError> {
        let line = line(&self.path, &record)?;
        // The file may have been removed meanwhile, with its folder.
        let file = match &mut self.file {
            Some(file) if self.path.exists() => file,
            _ => self.open(&self.kept(usize::MAX)?)?,
        };
        // One write, unbuffered: a line is complete, or it is the last one and truncated.
        file.write_all(&line).map_err(|error| TrainError::io(&self.path, error))
    }
}

impl Observer for MetricsLog {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        let kept = match run.resumed_from {
            Some(step) => self.kept(step)?,
            None => Vec::new(),
        };
        self.open(&kept).map(drop)
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.append(Record::Step(metrics.clone()))
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        self.append(Record::Evaluation(metrics.clone()))
    }
}

fn line(path: &Path, record: &Record) -> Result<Vec<u8>, TrainError> {
    let line = serde_json::to_vec(record);
    let mut line = line.map_err(|error| TrainError::format(path, error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn replace(path: &Path, records: &[Record]) -> Result<(), TrainError> {
    let io = |error| TrainError::io(path, error);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let lines: Vec<_> =
        records.iter().map(|record| line(path, record)).collect::<Result<_, _>>()?;
    burn_lora_io::replace(path, &lines.concat()).map_err(io)
}
