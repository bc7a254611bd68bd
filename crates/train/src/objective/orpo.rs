//! Odds ratio preference optimization.

use super::{BySequence, Losses, SequenceLoss, Sequences, log_sigmoid, pairs::Pairs, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Odds ratio preference optimization (arXiv:2403.07691), as TRL's `ORPOTrainer`: the cross-entropy of the chosen answers
/// with their prompts, and beside it `-beta · log σ(o(chosen) - o(rejected))`, where `o = m - log(1 - exp(m))` are the
/// log-odds of an answer, and `m` is the mean log-probability of its tokens. There is no reference model.
///
/// The data are [pairs](crate::data::Format::Preference). Metrics are those of [`DpoConfig`](super::DpoConfig), with
/// `beta · m` as the reward and `m` as the log-probability, and `nll_loss`, `log_odds_ratio` (the log-sigmoid) and
/// `log_odds_chosen` (the difference of the log-odds).
///
/// ```
/// use burn_lora_train::objective::{BySequence, OrpoConfig};
///
/// let objective = BySequence(OrpoConfig { beta: 0.2 }); // for `Trainer::fit_with`
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrpoConfig {
    /// Weight of the odds ratio; the paper's `λ`.
    pub beta: f64,
}

/// Objective of an [`OrpoConfig`].
pub type Orpo = BySequence<OrpoConfig>;

impl Default for OrpoConfig {
    /// A beta of 0.1.
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

impl OrpoConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if beta is not above 0.
    pub fn validate(&self) -> Result<(), TrainError> {
        Pairs::check_beta(self.beta)
    }
}

impl SequenceLoss for OrpoConfig {
    fn settings(&self) -> Value {
        json!({ "orpo": self })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.validate()?;
        Pairs::check(data)
    }

    fn reads_prompts(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<&'static str> {
        [&Pairs::METRICS[..], &["nll_loss", "log_odds_ratio", "log_odds_chosen"]].concat()
    }

    fn count(&self, batch: &Batch) -> usize {
        Pairs::count(batch)
    }

    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        [Pairs::metric_counts(batch), vec![Pairs::count(batch); 3]].concat()
    }

    fn losses(&self, sequences: &Sequences) -> Losses {
        let pairs = Pairs::new(sequences);
        let means = pairs.mean_logps();
        let [chosen, rejected] = means.clone().map(log_odds);
        let odds = chosen - rejected;
        let ratio = log_sigmoid(odds.clone());
        let entropy = pairs.chosen_entropy();
        let loss = entropy.clone() - total(ratio.clone()) * self.beta;
        let rewards = means.clone().map(|means| means * self.beta);
        let mut metrics = pairs.metrics(rewards, means);
        metrics.extend([entropy, total(ratio), total(odds)]);
        Losses { loss, metrics }
    }
}

/// `x - log(1 - exp(x))` of a log-probability.
fn log_odds(x: Tensor<1>) -> Tensor<1> {
    // 1 - exp(x) = 2 t / (1 + t) with t = tanh(-x / 2), which does not cancel near 0.
    let t = (x.clone() * -0.5).tanh();
    x - (t.clone() * 2.0).log() + t.log1p()
}
