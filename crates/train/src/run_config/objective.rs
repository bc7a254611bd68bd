//! The objective of a run.

use super::{
    ClassesConfig, LabelsConfig, RewardConfig, RunConfig, RunData, RunModel, TargetsConfig,
    TeacherConfig,
};
use crate::{
    config::TrainConfig,
    data::{BatchConfig, Dataset, DatasetBuilder, Format},
    error::TrainError,
    evaluate::evaluate_with,
    metric::Validation,
    objective::{BySequence, CpoConfig, DpoConfig, KtoConfig, Objective, OrpoConfig, loss_bytes},
    reference::prepare,
    trainer::{Report, Trainer},
    watch::EvalMetrics,
};
use burn_lora_llama::{Llama, LlamaConfig, SequenceClassifier};
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ObjectiveConfig {
    /// The next-token loss.
    NextToken(NextTokenConfig),
    /// Direct preference optimization.
    Dpo(DpoConfig),
    /// Odds ratio preference optimization.
    Orpo(OrpoConfig),
    /// Contrastive preference optimization, and SimPO.
    Cpo(CpoConfig),
    /// Kahneman-Tversky optimization.
    Kto(KtoConfig),
    /// Distillation.
    Distillation(TeacherConfig),
    /// Rewards.
    Reward(RewardConfig),
    /// A class for each text.
    SequenceClassification(ClassesConfig),
    /// Labels that apply to each text.
    MultiLabelClassification(LabelsConfig),
    /// Numbers for each text.
    Regression(TargetsConfig),
    /// A class for each word.
    TokenClassification(ClassesConfig),
}

/// The next-token loss has no settings of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextTokenConfig {}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::NextToken(NextTokenConfig {})
    }
}

impl ObjectiveConfig {
    /// Returns `true` if the examples are pairs of answers.
    pub fn of_pairs(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::Orpo(_) | Self::Cpo(_) | Self::Reward(_))
    }

    /// Returns `true` if the examples are single answers with a label.
    pub(super) fn of_answers(&self) -> bool {
        matches!(self, Self::Kto(_))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        match self {
            Self::NextToken(_) => Ok(()),
            Self::Dpo(config) => config.validate(),
            Self::Orpo(config) => config.validate(),
            Self::Cpo(config) => config.validate(),
            Self::Kto(config) => config.validate(),
            Self::Distillation(config) => config.validate(),
            _ => self.validate_head(),
        }
    }

    /// Format of the data, if it follows from the objective.
    pub(super) fn format(&self) -> Option<Format> {
        self.of_pairs().then_some(Format::Preference)
    }

    /// Returns `true` if another objective reads the same samples from the same data.
    pub(crate) fn reads_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Distillation(a), Self::Distillation(b)) => a.has_rows_of(b),
            (Self::Distillation(_), _) | (_, Self::Distillation(_)) => false,
            _ if self.head().is_some() || other.head().is_some() => self == other,
            _ => (self.format(), self.of_answers()) == (other.format(), other.of_answers()),
        }
    }

    /// Bytes that the loss takes beside those of the next token's, of samples of `longest` tokens.
    pub(super) fn bytes_at_loss(
        &self,
        config: &LlamaConfig,
        train: &TrainConfig,
        longest: usize,
    ) -> u64 {
        match self {
            // Rows as long as the others go through the layers, of which nothing is kept.
            Self::Kto(_) => {
                let widest =
                    config.layers.iter().map(|layer| layer.feed_forward.mlp().intermediate_size);
                let values = 8 * config.hidden_size + 3 * widest.max().unwrap_or(0);
                let rows = train.batches.packing.unwrap_or(2 * longest) * train.batches.size;
                2 * (rows * values) as u64
            }
            Self::Distillation(teacher) => {
                if teacher.loss_top_k == 0 {
                    burn_lora_io::warn!(
                        "the memory estimate does not know the teacher, which is in memory all the time: \
                         `objective.loss_top_k` has it gone before the training"
                    );
                }
                loss_bytes(config.vocab_size, train.loss_chunk)
            }
            _ => 0,
        }
    }

    /// How the objective reads data.
    pub(super) fn builder(&self, data: DatasetBuilder) -> DatasetBuilder {
        // Some data sets have the examples in several formats.
        let data = self.format().into_iter().fold(data, |data, format| data.format(format));
        let data = if self.of_answers() { data.labeled() } else { data };
        self.with_labels(data)
    }
}

impl RunConfig {
    /// Builds the objective of a model that predicts tokens, with its teacher if it has one.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the objective is one of a head; those of loading a teacher.
    pub fn objective_of(&self, model: &Llama) -> Result<Box<dyn Objective<Llama>>, TrainError> {
        Ok(match &self.objective {
            ObjectiveConfig::NextToken(_) => Box::new(self.train.next_token()),
            ObjectiveConfig::Dpo(config) => Box::new(BySequence(config.clone())),
            ObjectiveConfig::Orpo(config) => Box::new(BySequence(*config)),
            ObjectiveConfig::Cpo(config) => Box::new(BySequence(*config)),
            ObjectiveConfig::Kto(config) => Box::new(BySequence(config.clone())),
            ObjectiveConfig::Distillation(config) => {
                Box::new(config.build(&self.model, &model.device().inner())?)
            }
            _ => {
                let reason = "the model has no head of its own: load it by `RunConfig::load_model`";
                return Err(TrainError::setting("objective", "one of a head", reason));
            }
        })
    }

    /// Trains a model on the [objective](Self::objective): [`Trainer::fit_with`].
    ///
    /// # Errors
    /// As [`Trainer::fit_with`].
    pub fn fit(
        &self,
        trainer: Trainer<'_>,
        model: &mut RunModel,
        data: &RunData,
    ) -> Result<Report, TrainError> {
        let model = match model {
            RunModel::Llama(model) => {
                return self.fit_on(trainer, model, data, self.validation(data));
            }
            RunModel::Classifier(model) => model,
        };
        let objective = self.objective.of_head()?;
        let valid = Validation::from(data.valid.as_ref());
        trainer.fit_boxed(objective.into(), model, &data.train, valid)
    }

    /// [`fit`](Self::fit) with other validation data.
    pub(crate) fn fit_on<'v>(
        &self,
        trainer: Trainer<'_>,
        model: &mut Llama,
        RunData { train, .. }: &RunData,
        valid: impl Into<Validation<'v, Llama>>,
    ) -> Result<Report, TrainError> {
        trainer.fit_boxed(self.objective_of(model)?.into(), model, train, valid.into())
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
        evaluate_with(&*self.objective_of(model)?, model, data, batches)
    }

    /// Evaluates a model with the head of the [objective](Self::objective).
    ///
    /// # Errors
    /// As [`evaluate_with`]; [`TrainError::Setting`] if the objective has no head.
    pub fn evaluate_classifier(
        &self,
        model: &SequenceClassifier,
        data: &Dataset,
        batches: &BatchConfig,
    ) -> Result<EvalMetrics, TrainError> {
        let objective = self.objective.of_head()?;
        evaluate_with(&*objective, model, data, batches)
    }

    /// Returns the data with the log-probabilities by a model as it is now, if the objective compares with it:
    /// before an adapter is loaded, or trained.
    ///
    /// # Errors
    /// As [`prepare`](crate::prepare).
    pub fn compared(
        &self,
        model: &Llama,
        data: &Dataset,
        batches: &BatchConfig,
    ) -> Result<Dataset, TrainError> {
        if let ObjectiveConfig::Distillation(_) = self.objective {
            return Ok(data.clone());
        }
        prepare(&*self.objective_of(model)?, model, data, batches)
    }
}
