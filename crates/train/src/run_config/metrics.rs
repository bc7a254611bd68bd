//! The metrics of a run's evaluations that take more than its loss.

use super::{RunConfig, RunData};
use crate::metric::{Answers, Validation};
use burn_lora_llama::Llama;
use serde::{Deserialize, Serialize};

/// `[metrics]` of a run: what evaluations compute beside the loss, its perplexity and the accuracy of
/// tokens.
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// let run = RunConfig::default()
///     .with_setting("metrics.exact_match=true")?
///     .with_setting("train.metric_for_best_model='exact_match'")?;
/// assert_eq!(run.metrics.examples, 200);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// [`exact_match`](Answers::exact_match): the fraction of validation examples that the model
    /// answers as they are, by the settings of `[generate]`.
    pub exact_match: bool,
    /// Maximum number of examples that are answered, spread evenly over the validation data; 0 is
    /// all.
    pub examples: usize,
}

impl Default for MetricsConfig {
    /// No answers; 200 examples if there are any.
    fn default() -> Self {
        Self { exact_match: false, examples: 200 }
    }
}

impl RunConfig {
    /// Returns the validation data with the metrics of the run, for [`Trainer::fit`](crate::Trainer::fit).
    pub fn validation<'a>(&self, data: &'a RunData) -> Validation<'a, Llama> {
        let valid = Validation::from(data.valid.as_ref());
        if !self.metrics.exact_match {
            return valid;
        }
        let answers = Answers::new(self.generate.clone()).exact_match();
        valid.metric(match self.metrics.examples {
            0 => answers,
            count => answers.examples(count),
        })
    }
}
