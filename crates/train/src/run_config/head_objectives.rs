//! Objectives of a head of their own.

use super::{
    ClassesConfig, LabelsConfig, ObjectiveConfig, RewardConfig, TargetsConfig,
    heads::{Head, OF_TOKENS},
};
use crate::{
    data::{DatasetBuilder, Format},
    error::TrainError,
    objective::{
        MultiLabelClassification, Objective, Regression, Reward, SequenceClassification,
        TokenClassification, check_weights,
    },
};
use burn_lora_llama::SequenceClassifier;

impl ObjectiveConfig {
    /// The head of the objective, if it has one.
    pub(super) fn head(&self) -> Option<Head> {
        let head = |labels, task| Some(Head { labels, task });
        match self {
            Self::Reward(_) => head(1, "SEQ_CLS"),
            Self::SequenceClassification(config) => head(config.labels.len(), "SEQ_CLS"),
            Self::MultiLabelClassification(config) => head(config.labels.len(), "SEQ_CLS"),
            Self::Regression(config) => head(config.targets.len(), "SEQ_CLS"),
            Self::TokenClassification(config) => head(config.labels.len(), OF_TOKENS),
            _ => None,
        }
    }

    /// Returns `true` if the model ends in a head of its own in place of the vocabulary's.
    pub fn has_head(&self) -> bool {
        self.head().is_some()
    }

    /// The objective of a model with such a head.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if it is one of tokens.
    pub(super) fn of_head(&self) -> Result<Box<dyn Objective<SequenceClassifier>>, TrainError> {
        Ok(match self {
            Self::Reward(RewardConfig { center_rewards_coefficient, .. }) => {
                let center_rewards_coefficient = *center_rewards_coefficient;
                Box::new(Reward { center_rewards_coefficient })
            }
            Self::SequenceClassification(ClassesConfig { labels, class_weights }) => {
                let objective = SequenceClassification::new(labels.len());
                Box::new(objective.class_weights(class_weights.iter().copied()))
            }
            Self::MultiLabelClassification(LabelsConfig { labels, pos_weights }) => {
                let objective = MultiLabelClassification::new(labels);
                Box::new(objective.pos_weights(pos_weights.iter().copied()))
            }
            Self::Regression(TargetsConfig { targets }) => Box::new(Regression::new(targets)),
            Self::TokenClassification(ClassesConfig { labels, class_weights }) => {
                let objective = TokenClassification::new(labels.len());
                Box::new(objective.class_weights(class_weights.iter().copied()))
            }
            _ => {
                let reason = "the model has a head of classes";
                return Err(TrainError::setting("objective", "one of tokens", reason));
            }
        })
    }

    /// Checks the settings of a head.
    pub(super) fn validate_head(&self) -> Result<(), TrainError> {
        let Some(Head { labels, .. }) = self.head() else { return Ok(()) };
        let least = |name: &'static str, least: usize, needed: &'static str| match labels {
            count if count < least => Err(TrainError::Missing { name, needed }),
            _ => Ok(()),
        };
        let once = |name, names: &[String]| {
            let twice = names.iter().enumerate().find(|(at, one)| names[..*at].contains(one));
            match twice {
                Some((_, twice)) => Err(TrainError::setting(name, twice, "it is named twice")),
                None => Ok(()),
            }
        };
        match self {
            Self::Reward(RewardConfig { center_rewards_coefficient, .. }) => {
                Reward { center_rewards_coefficient: *center_rewards_coefficient }.validate()
            }
            Self::SequenceClassification(config) | Self::TokenClassification(config) => {
                least("objective.labels", 2, "name two classes at least")?;
                once("objective.labels", &config.labels)?;
                check_weights("objective.class_weights", &config.class_weights, labels)
            }
            Self::MultiLabelClassification(config) => {
                least("objective.labels", 1, "name a label at least")?;
                once("objective.labels", &config.labels)?;
                check_weights("objective.pos_weights", &config.pos_weights, labels)
            }
            Self::Regression(config) => {
                least("objective.targets", 1, "name a column of numbers at least")?;
                once("objective.targets", &config.targets)
            }
            _ => Ok(()),
        }
    }

    /// Lets data be read with what the head learns.
    pub(super) fn with_labels(&self, data: DatasetBuilder) -> DatasetBuilder {
        match self {
            Self::Reward(RewardConfig { margin: true, .. }) => data.value(Reward::MARGIN),
            Self::SequenceClassification(config) => {
                data.labels(SequenceClassification::LABEL, &config.labels)
            }
            Self::MultiLabelClassification(config) => data.label_set("labels", &config.labels),
            Self::Regression(config) => {
                config.targets.iter().fold(data, |data, target| data.value(target))
            }
            Self::TokenClassification(config) => {
                data.format(Format::Tokens).token_labels(&config.labels)
            }
            _ => data,
        }
    }
}
