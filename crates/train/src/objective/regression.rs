//! Numbers from texts.

use super::{
    GradientSums, Objective, Outcome,
    logits::{self, LogitLoss, check_values, columns},
    total,
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Mean squared error of a number or several, which are the logits of a sample's last token: transformers'
/// `ForSequenceClassification` with the problem type `regression`.
///
/// Each target is a number beside the tokens, by its own name: columns of the data
/// ([`DatasetBuilder::value`](crate::data::DatasetBuilder::value)) or one column of lists
/// ([`DatasetBuilder::value_list`](crate::data::DatasetBuilder::value_list)). The metric is `mean_absolute_error`.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    /// Names of the targets, in the order of the head's logits.
    pub targets: Vec<String>,
}

impl Regression {
    /// Creates the objective of these targets.
    pub fn new<N: Into<String>>(targets: impl IntoIterator<Item = N>) -> Self {
        Self { targets: targets.into_iter().map(Into::into).collect() }
    }
}

impl<M: CausalLm> Objective<M> for Regression {
    fn settings(&self) -> Value {
        json!({ "regression": self.targets })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        let check = |name: &String| {
            check_values(data, name, "value(..)", f32::is_finite, "a target has to be finite")
        };
        self.targets.iter().try_for_each(check)
    }

    fn labels(&self) -> Option<usize> {
        Some(self.targets.len())
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["mean_absolute_error"]
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
        let labels = self.targets.len();
        let loss = |found: Tensor<2>| {
            let off = found.clone() - columns(batch, &self.targets, &found);
            let values = off.dims()[0] * labels;
            let mean = |of: Tensor<2>| total(of.reshape([values])) / labels as f64;
            LogitLoss {
                loss: mean(off.clone().square()),
                metrics: vec![mean(off.clone().abs())],
                grad: off * (2.0 / labels as f64),
            }
        };
        logits::run((model, hidden, context), &batch.last_tokens, labels, sums, loss)
    }
}
