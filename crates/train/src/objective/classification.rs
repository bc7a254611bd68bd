//! Sequence classification.

use super::{
    GradientSums, Objective, Outcome,
    logits::{self, check_weights, weighted_entropy},
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;
use burn_lora_adapter::Adaptable;
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Mean cross-entropy of each sample's label, given the logits of its last token: transformers'
/// `ForSequenceClassification` with the problem type `single_label_classification`, for a model with a classification
/// head.
///
/// Labels are part of the data, under the name `label`: see
/// [`DatasetBuilder::labels`](crate::data::DatasetBuilder::labels). The metric is `accuracy`.
///
/// With a weight for each class, the loss of a batch is `Σ w[label]·loss / Σ w[label]`, as PyTorch's
/// `CrossEntropyLoss(weight)`. Several batches, of a step or an evaluation, count by their samples, as in transformers'
/// `Trainer`: another size of the batches is then another loss.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceClassification {
    /// Number of classes: logits of the head.
    pub num_labels: usize,
    /// Weight of each class; empty for the same for all.
    pub class_weights: Vec<f32>,
}

impl SequenceClassification {
    /// Name of the labels among the numbers beside the tokens.
    pub const LABEL: &str = "label";

    /// Creates the objective for this number of classes.
    pub fn new(num_labels: usize) -> Self {
        Self { num_labels, class_weights: vec![] }
    }

    /// Creates the objective for the classes of a model's head.
    pub fn for_model<M: Adaptable>(model: &M) -> Self {
        Self::new(logits::labels(model))
    }

    /// Sets the weights of the classes.
    pub fn class_weights(mut self, weights: impl IntoIterator<Item = f32>) -> Self {
        self.class_weights = weights.into_iter().collect();
        self
    }
}

impl<M: CausalLm> Objective<M> for SequenceClassification {
    fn settings(&self) -> Value {
        let Self { num_labels, class_weights } = self;
        match class_weights.is_empty() {
            true => json!({ "sequence_classification": num_labels }),
            false => {
                json!({ "sequence_classification": num_labels, "class_weights": class_weights })
            }
        }
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        check_weights("class_weights", &self.class_weights, self.num_labels)?;
        let most = self.num_labels.saturating_sub(1);
        let fits = |label: f32| label.fract() == 0.0 && (0.0..=most as f32).contains(&label);
        logits::check_values(
            data,
            Self::LABEL,
            "labels(..)",
            fits,
            &format!("the classes are 0 to {most}"),
        )
    }

    fn labels(&self) -> Option<usize> {
        Some(self.num_labels)
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["accuracy"]
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.sources.len()
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let Self { num_labels, class_weights } = self;
        let labels = batch.values[Self::LABEL].iter().map(|label| *label as i32).collect();
        let loss = |logits| weighted_entropy(logits, labels, class_weights);
        logits::run((model, hidden, context), &batch.last_tokens, *num_labels, sums, loss)
    }
}
