//! Events of a run.

use crate::error::TrainError;
use serde::{Deserialize, Deserializer, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};

/// Observer of the events of a run. An error ends the run.
///
/// ```
/// use burn_lora_train::{TrainError, watch::{Observer, StepMetrics}};
///
/// /// Keeps the losses.
/// #[derive(Default)]
/// struct Losses(Vec<f64>);
///
/// impl Observer for Losses {
///     fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
///         self.0.push(metrics.loss);
///         Ok(())
///     }
/// }
///
/// let mut losses = Losses::default();
/// losses.step(&StepMetrics { step: 1, loss: 2.5, ..Default::default() })?;
/// assert_eq!(losses.0, [2.5]);
/// # Ok::<_, TrainError>(())
/// ```
#[allow(unused_variables)]
pub trait Observer {
    /// Called before the first step.
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called after an optimizer step that is logged.
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called after an evaluation on the validation data.
    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called after a checkpoint was written to a folder.
    fn saved(&mut self, folder: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called after the last step.
    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        Ok(())
    }

    /// Called if an error ends the run after its start.
    fn failed(&mut self, error: &TrainError) {}
}

/// Calls the observer.
impl<O: Observer + ?Sized> Observer for &mut O {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        (**self).started(run)
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        (**self).step(metrics)
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        (**self).evaluated(metrics)
    }

    fn saved(&mut self, folder: &Path) -> Result<(), TrainError> {
        (**self).saved(folder)
    }

    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        (**self).finished(run)
    }

    fn failed(&mut self, error: &TrainError) {
        (**self).failed(error);
    }
}

/// Calls all observers, one after the other, up to the first error.
impl Observer for Vec<Box<dyn Observer>> {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        self.iter_mut().try_for_each(|observer| observer.started(run))
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        self.iter_mut().try_for_each(|observer| observer.step(metrics))
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        self.iter_mut().try_for_each(|observer| observer.evaluated(metrics))
    }

    fn saved(&mut self, folder: &Path) -> Result<(), TrainError> {
        self.iter_mut().try_for_each(|observer| observer.saved(folder))
    }

    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        self.iter_mut().try_for_each(|observer| observer.finished(run))
    }

    fn failed(&mut self, error: &TrainError) {
        self.iter_mut().for_each(|observer| observer.failed(error));
    }
}

/// Description of a run that starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Optimizer steps in all.
    pub steps: usize,
    /// Passes over the data in all.
    pub epochs: f64,
    /// Training examples; a pair of answers is one.
    pub examples: usize,
    /// Number of trained parameters.
    pub trainable_parameters: usize,
    /// Step of the checkpoint that the run resumes from.
    pub resumed_from: Option<usize>,
    /// The device compiles kernels in the first steps, which therefore take longer: a GPU.
    #[serde(default)]
    pub compiles: bool,
}

/// Metrics of a line of the log. In JSON, a number that is not finite is `null`, and read back as
/// NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer step, from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the target tokens of the steps since the last line.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Norm of all gradients of the step together, before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens processed so far.
    pub num_tokens: u64,
    /// The objective's metrics, means over the steps since the last line: for the next-token loss
    /// `mean_token_accuracy`, the fraction of correct tokens among the target tokens.
    #[serde(flatten)]
    pub metrics: Named,
    /// Tokens per second since the last line.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// Seconds per optimizer step since the last line.
    pub step_seconds: f64,
    /// Bytes reserved by the device's memory pool, if known.
    pub memory: Option<u64>,
}

/// Metrics of an evaluation. In JSON, a number that is not finite is `null`, and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// The steps done.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the target tokens.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The objective's metrics: for the next-token loss `mean_token_accuracy`, the fraction of
    /// correct tokens among the target tokens, and `perplexity`, `e^loss`. In a run also those of
    /// its [`Validation`](crate::metric::Validation).
    #[serde(flatten)]
    pub metrics: Named,
    /// Number of target tokens, or of the other items that the objective counts.
    pub tokens: u64,
}

/// Metrics by name. In JSON, a number that is not finite is `null`, and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Named(BTreeMap<String, f64>);

impl Named {
    /// Returns the metric of a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Returns all metrics, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Named {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(metrics: I) -> Self {
        let mut named = Self::default();
        named.extend(metrics);
        named
    }
}

impl<N: Into<String>> Extend<(N, f64)> for Named {
    fn extend<I: IntoIterator<Item = (N, f64)>>(&mut self, metrics: I) {
        self.0.extend(metrics.into_iter().map(|(name, value)| (name.into(), value)));
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found: BTreeMap<String, Option<f64>> = Deserialize::deserialize(deserializer)?;
        Ok(found.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

/// Summary of a run that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Steps done, including those before a resumption.
    pub steps: usize,
    /// Seconds that the run took, from its start or resumption.
    pub seconds: f64,
    /// Reason of the end.
    pub reason: StopReason,
    /// Step and value of the best evaluation.
    pub best: Option<(usize, f64)>,
    /// Metric that it is the best by:
    /// [`metric_for_best_model`](crate::TrainConfig::metric_for_best_model), or `loss`.
    pub best_metric: String,
    /// Loss of the last line of the log.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
}

/// Reason that a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All epochs are done.
    Done,
    /// The maximum number of steps is reached.
    MaxSteps,
    /// The evaluations have stopped getting better.
    EarlyStopping,
    /// The run was interrupted.
    Interrupted,
    /// The run was to [pause](crate::Trainer::pause_at) here.
    Paused,
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Done => "done",
            Self::MaxSteps => "largest number of steps reached",
            Self::EarlyStopping => "early stopping",
            Self::Interrupted => "interrupted",
            Self::Paused => "paused",
        })
    }
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
