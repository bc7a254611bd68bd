//! Runs whose model ends in a head of its own: rewards, classes, numbers, labels of words.

use crate::error::TrainError;
use burn_lora_adapter::{AdaptableExt, LoraConfig, Method, Summary};
use burn_lora_llama::{Llama, SequenceClassifier};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// `[objective]` of a run that learns rewards: [`Reward`](crate::objective::Reward).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// As [`Reward::center_rewards_coefficient`](crate::objective::Reward::center_rewards_coefficient).
    pub center_rewards_coefficient: Option<f64>,
    /// Whether the data have a column `margin`.
    pub margin: bool,
}

/// `[objective]` of a run that learns classes: of texts, by the column `label`
/// ([`SequenceClassification`](crate::objective::SequenceClassification)), or of words, by `tokens` and `ner_tags` or
/// `labels` ([`TokenClassification`](crate::objective::TokenClassification)).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassesConfig {
    /// Names of the classes; in the data a class is one of these, or its place among them.
    pub labels: Vec<String>,
    /// Weight of each class; empty for the same for all.
    pub class_weights: Vec<f32>,
}

/// `[objective]` of a run that learns which labels apply, of which the data have lists in a column `labels`:
/// [`MultiLabelClassification`](crate::objective::MultiLabelClassification).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelsConfig {
    /// Names of the labels.
    pub labels: Vec<String>,
    /// Weight of each label where it applies; empty for 1.
    pub pos_weights: Vec<f32>,
}

/// `[objective]` of a run that learns numbers: [`Regression`](crate::objective::Regression).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetsConfig {
    /// Names of the columns.
    pub targets: Vec<String>,
}

/// The head that an objective needs in place of the vocabulary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Number of logits.
    pub labels: usize,
    /// PEFT's name of the task.
    pub task: &'static str,
}

/// Name of the head's layer.
const SCORE: &str = "score";

/// PEFT's task of a head for each token, which has a bias.
pub(super) const OF_TOKENS: &str = "TOKEN_CLS";

impl Head {
    /// A method as the vocabulary's model has it: a plan knows no head.
    pub fn without(method: Arc<dyn Method>) -> Arc<dyn Method> {
        match serde_json::from_value::<LoraConfig>(method.settings()) {
            Ok(lora) => {
                let names = whole(&lora).into_iter().filter(|name| name != SCORE);
                Arc::new(lora.modules_to_save(names))
            }
            Err(_) => method,
        }
    }

    /// Checks that a model's adapter brings its head.
    pub fn check(model: &SequenceClassifier, folder: &Path) -> Result<(), TrainError> {
        let adapters = model.adapter_configs();
        if adapters.values().any(|method| whole(&**method).iter().any(|name| name == SCORE)) {
            return Ok(());
        }
        let reason = "it has no `score`, the head of the objective: merge it into its base (`burn-lora merge`), and \
            train a new adapter on that";
        Err(TrainError::setting("model.adapter", folder.display(), reason))
    }

    /// A new adapter with the head: as PEFT, the head is trained whole.
    pub fn adapter(self, lora: LoraConfig) -> LoraConfig {
        let mut names = whole(&lora);
        if !names.iter().any(|name| name == SCORE) {
            names.push(SCORE.into());
        }
        lora.modules_to_save(names).task_type(self.task)
    }
}

/// Names of what a method trains whole.
fn whole(method: &dyn Method) -> Vec<String> {
    let settings = method.settings();
    let names = settings["modules_to_save"].as_array().into_iter().flatten();
    names.filter_map(|name| Some(name.as_str()?.into())).collect()
}

/// The model of a run.
#[derive(Clone, Debug)]
pub enum RunModel {
    /// One that predicts tokens.
    Llama(Llama),
    /// One with the head of its objective.
    Classifier(SequenceClassifier),
}

impl RunModel {
    /// The decoder, whose head is that of the model.
    pub fn decoder(&self) -> &Llama {
        match self {
            Self::Llama(model) => model,
            Self::Classifier(model) => &model.llama,
        }
    }

    /// The model, if it predicts tokens, and so can answer.
    pub fn llama(&self) -> Option<&Llama> {
        match self {
            Self::Llama(model) => Some(model),
            Self::Classifier(_) => None,
        }
    }

    /// Counts all parameters, the trained ones, and the bytes of each kind.
    pub fn summary(&self) -> Summary {
        match self {
            Self::Llama(model) => model.summary(),
            Self::Classifier(model) => model.summary(),
        }
    }
}
