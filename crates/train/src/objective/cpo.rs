//! Contrastive preference optimization, and SimPO.

use super::{BySequence, Losses, SequenceLoss, Sequences, log_sigmoid, pairs::Pairs, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Loss of contrastive preference optimization, by TRL's names. With `d` for the difference of the log-probabilities of the
/// chosen and the rejected answer, `b` for beta, `s` for the label smoothing:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CpoLoss {
    /// `-(1 - s) · log σ(b·d) - s · log σ(-b·d)` (arXiv:2401.08417).
    #[default]
    Sigmoid,
    /// `max(0, 1 - b·d)`.
    Hinge,
    /// `(d - 1 / (2 b))²`, with the mean of the tokens in place of their sum.
    Ipo,
    /// As `Sigmoid` with `d - gamma / b` in place of `d`, and the mean of the tokens in place of their sum
    /// (arXiv:2405.14734).
    #[serde(rename = "simpo")]
    SimPo,
}

/// Contrastive preference optimization (arXiv:2401.08417) and SimPO (arXiv:2405.14734), as TRL's `CPOTrainer`: a loss of
/// the difference between both answers, without a reference model, and beside it the cross-entropy of the chosen
/// answers.
///
/// SimPO itself has no cross-entropy: [`simpo`](Self::simpo). The data are
/// [pairs](crate::data::Format::Preference). Metrics are those of [`DpoConfig`](super::DpoConfig), with beta times the
/// log-probability as the reward, and `nll_loss`.
///
/// ```
/// use burn_lora_train::objective::{BySequence, CpoConfig};
///
/// let objective = BySequence(CpoConfig::simpo(2.0, 1.0)); // for `Trainer::fit_with`
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpoConfig {
    /// Factor of the difference.
    pub beta: f64,
    /// Loss of the difference.
    pub loss_type: CpoLoss,
    /// Probability that a pair is the wrong way round, of [`CpoLoss::Sigmoid`] and [`CpoLoss::SimPo`].
    pub label_smoothing: f64,
    /// Weight of the cross-entropy.
    pub cpo_alpha: f64,
    /// Margin of [`CpoLoss::SimPo`], by which the reward of the chosen answer is to be higher.
    pub simpo_gamma: f64,
}

/// Objective of a [`CpoConfig`].
pub type Cpo = BySequence<CpoConfig>;

impl Default for CpoConfig {
    /// The sigmoid loss with a beta of 0.1, and the whole cross-entropy.
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss_type: CpoLoss::Sigmoid,
            label_smoothing: 0.0,
            cpo_alpha: 1.0,
            simpo_gamma: 0.5,
        }
    }
}

impl CpoConfig {
    /// SimPO: no cross-entropy. The paper has a beta of 2 to 10 and a gamma of 0.3 to 1.6 times that.
    pub fn simpo(beta: f64, gamma: f64) -> Self {
        let loss_type = CpoLoss::SimPo;
        Self { beta, loss_type, cpo_alpha: 0.0, simpo_gamma: gamma, ..Self::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        Pairs::check_beta(self.beta)?;
        let wrong = |name, found: f64, reason| Err(TrainError::setting(name, found, reason));
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return wrong(
                "objective.label_smoothing",
                self.label_smoothing,
                "it has to be in [0, 0.5)",
            );
        }
        if self.label_smoothing > 0.0 && matches!(self.loss_type, CpoLoss::Hinge | CpoLoss::Ipo) {
            let reason = "only the losses `sigmoid` and `simpo` have it";
            return wrong("objective.label_smoothing", self.label_smoothing, reason);
        }
        if !(self.cpo_alpha >= 0.0 && self.cpo_alpha.is_finite()) {
            return wrong("objective.cpo_alpha", self.cpo_alpha, "it has to be 0 or above");
        }
        if !self.simpo_gamma.is_finite() {
            return wrong("objective.simpo_gamma", self.simpo_gamma, "it has to be finite");
        }
        Ok(())
    }
}

impl SequenceLoss for CpoConfig {
    fn settings(&self) -> Value {
        json!({ "cpo": self })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.validate()?;
        Pairs::check(data)
    }

    fn metrics(&self) -> Vec<&'static str> {
        [&Pairs::METRICS[..], &["nll_loss"]].concat()
    }

    fn count(&self, batch: &Batch) -> usize {
        Pairs::count(batch)
    }

    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        [Pairs::metric_counts(batch), vec![Pairs::count(batch)]].concat()
    }

    fn losses(&self, sequences: &Sequences) -> Losses {
        let Self { beta, loss_type, label_smoothing, cpo_alpha, simpo_gamma } = *self;
        let pairs = Pairs::new(sequences);
        let logps = match loss_type {
            CpoLoss::Ipo | CpoLoss::SimPo => pairs.mean_logps(),
            CpoLoss::Sigmoid | CpoLoss::Hinge => pairs.logps(),
        };
        let [chosen, rejected] = logps.clone();
        let margin = if loss_type == CpoLoss::SimPo { simpo_gamma / beta } else { 0.0 };
        let difference = chosen - rejected - margin;
        let losses = match loss_type {
            CpoLoss::Hinge => (difference * -beta + 1.0).clamp_min(0.0),
            CpoLoss::Ipo => (difference - 1.0 / (2.0 * beta)).square(),
            CpoLoss::Sigmoid | CpoLoss::SimPo => {
                let scaled = difference * beta;
                log_sigmoid(scaled.clone()) * (label_smoothing - 1.0)
                    - log_sigmoid(-scaled) * label_smoothing
            }
        };
        let entropy = pairs.chosen_entropy();
        let rewards = logps.clone().map(|logps| logps * beta);
        let mut metrics = pairs.metrics(rewards, logps);
        // TRL does not compute what has no weight.
        metrics.push(if cpo_alpha == 0.0 { entropy.clone() * 0.0 } else { entropy.clone() });
        Losses { loss: total(losses) + entropy * cpo_alpha, metrics }
    }
}
