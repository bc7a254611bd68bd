//! The objective of a run.

use super::{RunConfig, RunData};
use crate::{
    config::TrainConfig,
    data::{BatchConfig, Dataset, Format},
    error::TrainError,
    evaluate::evaluate_with,
    metric::Validation,
    objective::{BySequence, CpoConfig, DpoConfig, Objective, OrpoConfig},
    reference::prepared,
    trainer::{Report, Trainer},
    watch::EvalMetrics,
};
use burn_lora_llama::Llama;
use serde::{Deserialize, Serialize};

/// `[objective]` of a run: its `name`, and the settings that it has, under TRL's names.
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// let run = RunConfig::default().with_setting("objective={name='dpo', beta=0.2}")?;
/// assert!(run.objective.of_pairs());
/// let error = run.with_setting("objective={name='dpo', gamma=1}").unwrap_err().to_string();
/// assert!(error.contains("gamma"), "{error}");
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ObjectiveConfig {
    /// The next-token loss.
    #[default]
    NextToken,
    /// Direct preference optimization.
    Dpo(DpoConfig),
    /// Odds ratio preference optimization.
    Orpo(OrpoConfig),
    /// Contrastive preference optimization, and SimPO.
    Cpo(CpoConfig),
}

impl ObjectiveConfig {
    /// Returns `true` if the examples are pairs of answers.
    pub fn of_pairs(&self) -> bool {
        !matches!(self, Self::NextToken)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        match self {
            Self::NextToken => Ok(()),
            Self::Dpo(config) => config.validate(),
            Self::Orpo(config) => config.validate(),
            Self::Cpo(config) => config.validate(),
        }
    }

    fn build(&self, train: &TrainConfig) -> Box<dyn Objective<Llama>> {
        match self {
            Self::NextToken => Box::new(train.next_token()),
            Self::Dpo(config) => Box::new(BySequence(config.clone())),
            Self::Orpo(config) => Box::new(BySequence(*config)),
            Self::Cpo(config) => Box::new(BySequence(*config)),
        }
    }

    /// Format of the data, if it follows from the objective.
    pub(super) fn format(&self) -> Option<Format> {
        self.of_pairs().then_some(Format::Preference)
    }
}

impl RunConfig {
    /// Trains a model on the [objective](Self::objective): [`Trainer::fit_with`].
    ///
    /// # Errors
    /// As [`Trainer::fit_with`].
    pub fn fit(
        &self,
        trainer: Trainer<'_>,
        model: &mut Llama,
        data: &RunData,
    ) -> Result<Report, TrainError> {
        self.fit_on(trainer, model, data, self.validation(data))
    }

    /// [`fit`](Self::fit) with other validation data.
    pub(crate) fn fit_on<'v>(
        &self,
        trainer: Trainer<'_>,
        model: &mut Llama,
        RunData { train, .. }: &RunData,
        valid: impl Into<Validation<'v, Llama>>,
    ) -> Result<Report, TrainError> {
        trainer.fit_boxed(self.objective.build(&self.train).into(), model, train, valid.into())
    }

    /// Evaluates a model by the [objective](Self::objective): [`evaluate_with`].
    ///
    /// # Errors
    /// As [`evaluate_with`].
    pub fn evaluate(
        &self,
        model: &Llama,
        data: &Dataset,
        batches: &BatchConfig,
    ) -> Result<EvalMetrics, TrainError> {
        evaluate_with(&*self.objective.build(&self.train), model, data, batches)
    }

    /// Returns the data with the log-probabilities by a model as it is now, if the objective compares with it:
    /// before an adapter is loaded, or trained.
    ///
    /// # Errors
    /// As [`reference_log_probs`](crate::reference_log_probs).
    pub fn compared(
        &self,
        model: &Llama,
        data: &Dataset,
        batches: &BatchConfig,
    ) -> Result<Dataset, TrainError> {
        prepared(&*self.objective.build(&self.train), model, data, batches)
    }
}
