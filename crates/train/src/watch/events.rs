//! What a run tells its observers.

use crate::error::TrainError;
use serde::{Deserialize, Deserializer, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};

/// Something that is told what happens in a run. An error ends the run.
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
    /// Before the first step.
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        Ok(())
    }

    /// After an optimizer step that is logged.
    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        Ok(())
    }

    /// After an evaluation on the validation data.
    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        Ok(())
    }

    /// After a checkpoint was written to a folder.
    fn saved(&mut self, folder: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// After the last step.
    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        Ok(())
    }
}

/// All of them, one after the other, up to the first error.
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
}

/// A run that begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Optimizer steps in all.
    pub steps: usize,
    /// Passes over the data in all.
    pub epochs: f64,
    /// Training examples.
    pub examples: usize,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
    /// The step of the checkpoint that the run goes on from.
    pub resumed_from: Option<usize>,
}

/// An optimizer step. In JSON a number that is not finite is `null`, and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the target tokens of the step.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Tokens that the run has seen so far.
    pub num_tokens: u64,
    /// The objective's metrics, means over the steps since the last line: of the next-token loss
    /// `mean_token_accuracy`, the part of the target tokens that the model would have chosen.
    #[serde(flatten)]
    pub metrics: Named,
    /// Tokens a second since the last logged step.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// Seconds an optimizer step took since the last logged one.
    pub step_seconds: f64,
    /// Peak memory of the device in bytes, where it is known.
    pub memory: Option<u64>,
}

/// An evaluation. In JSON a number that is not finite is `null`, and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// The steps done.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the target tokens.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The objective's metrics: of the next-token loss `mean_token_accuracy`, the part of the target tokens
    /// that the model would have chosen, and `perplexity`, `e^loss`.
    #[serde(flatten)]
    pub metrics: Named,
    /// Target tokens, or what else the objective counts.
    pub tokens: u64,
}

/// Metrics by name. In JSON a number that is not finite is `null`, and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Named(BTreeMap<String, f64>);

impl Named {
    /// The metric of a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Named {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(metrics: I) -> Self {
        Self(metrics.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found: BTreeMap<String, Option<f64>> = Deserialize::deserialize(deserializer)?;
        Ok(found.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}

/// A run that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// The steps done, those before a resumption included.
    pub steps: usize,
    /// How long the run took, from its start or resumption.
    pub seconds: f64,
    /// Why it ended.
    pub reason: StopReason,
    /// Step and validation loss of the best evaluation.
    pub best: Option<(usize, f64)>,
    /// The loss of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
}

/// Why a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All epochs are done.
    Done,
    /// The largest number of steps is done.
    MaxSteps,
    /// The validation loss has stopped falling.
    EarlyStopping,
    /// Someone stopped it.
    Interrupted,
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Done => "done",
            Self::MaxSteps => "largest number of steps reached",
            Self::EarlyStopping => "early stopping",
            Self::Interrupted => "interrupted",
        })
    }
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
