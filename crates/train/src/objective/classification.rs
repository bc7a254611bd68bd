//! Sequence classification.

use super::{GradientSums, Objective, Outcome, ints, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::{IndexingUpdateOp, Tensor};
use burn_lora_kernels::{cross_entropy, pull_back};
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Mean cross-entropy of each sample's label, given the logits of its last token: transformers'
/// `ForSequenceClassification`, for a model with a classification head.
///
/// Labels are part of the data, under the name `label`: see
/// [`DatasetBuilder::labels`](crate::data::DatasetBuilder::labels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceClassification {
    /// Number of classes: logits of the head.
    pub num_labels: usize,
}

/// Name of the labels in the data.
const LABEL: &str = "label";

impl<M: CausalLm> Objective<M> for SequenceClassification {
    fn settings(&self) -> Value {
        json!({ "sequence_classification": self.num_labels })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        let all: Vec<usize> = (0..data.len()).collect();
        let values = data.values(&all);
        let Some(labels) = values.get(LABEL) else {
            let reason = "the data have no such column: load them with `.labels(\"label\", ..)`";
            return Err(TrainError::setting(LABEL, "missing", reason));
        };
        let fits =
            |label: f32| label.fract() == 0.0 && label >= 0.0 && label < self.num_labels as f32;
        match labels.iter().position(|label| !fits(*label)) {
            None => Ok(()),
            Some(sample) => {
                let most = self.num_labels.saturating_sub(1);
                let reason = format!("the classes are 0 to {most} ({})", data.source(sample));
                Err(TrainError::setting(LABEL, labels[sample], reason))
            }
        }
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
        let (shape, device, dtype) = (hidden.dims(), hidden.device(), hidden.dtype());
        let [rows, length, width] = shape;
        let places = ints(batch.last_tokens.iter().map(|at| *at as i32).collect(), &device);
        let labels = ints(batch.values[LABEL].iter().map(|label| *label as i32).collect(), &device);
        let last = hidden.reshape([rows * length, width]).select(0, places.clone());
        let Some(sums) = sums else {
            let entropy = cross_entropy(model.head(last, context), labels, 0.0);
            let (loss, correct) = (total(entropy.loss), total(entropy.correct));
            return Outcome { loss, metrics: vec![correct], grad: None };
        };
        let last = last.autodiff().require_grad();
        let logits = model.head(last.clone(), context);
        let entropy = cross_entropy(logits.clone().inner(), labels, 0.0);
        let mut found = pull_back(logits, entropy.grad).backward();
        sums.add(model, &mut found);
        let grad = last.grad_remove(&mut found).expect("the head's input has a gradient");
        let zeros = Tensor::<2>::zeros([rows * length, width], (&device, dtype));
        let grad = zeros.select_assign(0, places, grad, IndexingUpdateOp::Add).reshape(shape);
        let (loss, correct) = (total(entropy.loss), total(entropy.correct));
        Outcome { loss, metrics: vec![correct], grad: Some(grad) }
    }
}
