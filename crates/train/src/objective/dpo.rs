//! Direct preference optimization.

use super::{
    BySequence, Losses, Reference, SequenceLoss, Sequences, log_sigmoid, pairs::Pairs, total,
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Loss of direct preference optimization, by TRL's names.
///
/// With the log-ratios `c = log p(chosen) - log p_ref(chosen)` and `r` of the rejected answer, `b` for beta, `σ` for the
/// sigmoid and `ε` for the label smoothing:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DpoLoss {
    /// `-log σ(b·(c - r))` (arXiv:2305.18290).
    #[default]
    Sigmoid,
    /// `-log σ(b·(c / |chosen| - r / |rejected|))`: by the mean of the tokens.
    SigmoidNorm,
    /// `max(0, 1 - b·(c - r))` (arXiv:2309.06657).
    Hinge,
    /// `(c / |chosen| - r / |rejected| - 1 / (2 b))²` (arXiv:2310.12036).
    Ipo,
    /// `(ε·log σ(-b·(c - r)) - (1 - ε)·log σ(b·(c - r))) / (1 - 2 ε)` (arXiv:2403.00409).
    Robust,
    /// `q·(log q - log(1 - ε)) + (1 - q)·(log(1 - q) - log ε)` with `q = σ(b·(c - r))` (arXiv:2402.00856).
    ExoPair,
    /// `-log σ(b·c) - (log σ(-b·c) + log σ(-b·r)) / 2` (arXiv:2402.05369).
    NcaPair,
    /// `-log σ(b·c) - log σ(-b·r)` (arXiv:2404.04656, without its shift).
    BcoPair,
    /// `(c - 1 / (2 b))² + (r + 1 / (2 b))²` (arXiv:2405.00675).
    SppoHard,
    /// `1 - σ(b·c) + σ(b·r)` (arXiv:2408.06266).
    ApoZero,
    /// `σ(b·c) + 1 - σ(b·(c - r))` (arXiv:2408.06266).
    ApoDown,
    /// The mean cross-entropy of the chosen answers' tokens.
    Sft,
}

/// Direct preference optimization (arXiv:2305.18290), as TRL's `DPOTrainer`: raises the probability of the chosen answers
/// and lowers that of the rejected ones, compared with a reference model, whose log-probabilities are computed once,
/// before the first step.
///
/// The data are [pairs](crate::data::Format::Preference).
///
/// | metric | what |
/// |---|---|
/// | `rewards/chosen`, `rewards/rejected` | `b·c` and `b·r` |
/// | `rewards/accuracies` | fraction of pairs whose chosen answer has the higher reward |
/// | `rewards/margins` | `b·(c - r)` |
/// | `logps/chosen`, `logps/rejected` | log-probabilities |
/// | `mean_token_accuracy` | fraction of the chosen answers' tokens that the model ranks first |
/// | `entropy` | of the predictions of both answers' tokens, in nats |
/// | `logits/chosen`, `logits/rejected` | mean of the logits that predict the answer's tokens |
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{Dataset, TrainConfig, Trainer, objective::Dpo};
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let pair = json!({ "prompt": "Price is", "chosen": " $5", "rejected": " 5 dollars" });
/// let data = Dataset::from_records(vec![pair; 8]).load(&Tokenizer::from_pretrained(folder)?)?;
/// let model = Llama::from_pretrained(folder).load(&Device::default())?;
/// let mut model = model.with_adapter(&LoraConfig::new(8, 16).all_linear())?;
/// let config = TrainConfig::new(1e-3).epochs(1);
/// let report = Trainer::new(config).fit_with(Dpo::new(0.1), &mut model, &data, None)?;
/// assert!(report.log[0].metrics.get("rewards/margins").unwrap() > 0.0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// How much a deviation from the reference counts: less deviation with a higher one.
    pub beta: f64,
    /// Losses, which are added up.
    pub loss_type: Vec<DpoLoss>,
    /// A weight for each of the losses; 1 if there are none.
    pub loss_weights: Vec<f64>,
    /// Of [`DpoLoss::Robust`], the probability that a pair is the wrong way round; the `ε` of [`DpoLoss::ExoPair`].
    pub label_smoothing: f64,
    /// The model to compare with.
    pub reference: Reference,
}

/// Objective of a [`DpoConfig`].
pub type Dpo = BySequence<DpoConfig>;

impl Default for DpoConfig {
    /// The sigmoid loss with a beta of 0.1.
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss_type: vec![DpoLoss::Sigmoid],
            loss_weights: vec![],
            label_smoothing: 0.0,
            reference: Reference::Start,
        }
    }
}

impl DpoConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        let Self { beta, loss_type, loss_weights, label_smoothing, .. } = self;
        let wrong =
            |name, found: String, reason: &str| Err(TrainError::setting(name, found, reason));
        Pairs::check_beta(*beta)?;
        if loss_type.is_empty() {
            return wrong(
                "objective.loss_type",
                "empty".into(),
                "name one at least, such as `sigmoid`",
            );
        }
        if !loss_weights.is_empty() && loss_weights.len() != loss_type.len() {
            let reason = format!("there are {} losses: give one for each", loss_type.len());
            return wrong("objective.loss_weights", format!("{loss_weights:?}"), &reason);
        }
        if loss_weights.iter().any(|weight| !weight.is_finite()) {
            return wrong(
                "objective.loss_weights",
                format!("{loss_weights:?}"),
                "they have to be finite",
            );
        }
        let smoothed = |loss: &DpoLoss| matches!(loss, DpoLoss::Robust | DpoLoss::ExoPair);
        if !(0.0..0.5).contains(label_smoothing) {
            return wrong(
                "objective.label_smoothing",
                label_smoothing.to_string(),
                "it has to be in [0, 0.5)",
            );
        }
        if *label_smoothing > 0.0 && !loss_type.iter().any(smoothed) {
            let reason = "only the losses `robust` and `exo_pair` have it";
            return wrong("objective.label_smoothing", label_smoothing.to_string(), reason);
        }
        if *label_smoothing == 0.0 && loss_type.contains(&DpoLoss::ExoPair) {
            let reason = "the loss `exo_pair` needs one, such as 1e-3";
            return wrong("objective.label_smoothing", "0".into(), reason);
        }
        Ok(())
    }

    /// Sum of a loss over the pairs, given their log-ratios.
    fn loss(&self, loss: DpoLoss, pairs: &Pairs, ratios: &[Tensor<1>; 2]) -> Tensor<1> {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let scaled = || ratios.clone().map(|ratio| ratio * beta);
        let delta = || {
            let [chosen, rejected] = ratios.clone();
            (chosen - rejected) * beta
        };
        let by_mean = || {
            let ([chosen, rejected], [a, b]) = (ratios.clone(), pairs.lengths());
            chosen / a - rejected / b
        };
        let of_pairs = match loss {
            DpoLoss::Sigmoid => -log_sigmoid(delta()),
            DpoLoss::SigmoidNorm => -log_sigmoid(by_mean() * beta),
            DpoLoss::Hinge => (-delta() + 1.0).clamp_min(0.0),
            DpoLoss::Ipo => (by_mean() - 1.0 / (2.0 * beta)).square(),
            DpoLoss::Robust => {
                let (right, wrong) = (log_sigmoid(delta()), log_sigmoid(-delta()));
                (wrong * smoothing - right * (1.0 - smoothing)) / (1.0 - 2.0 * smoothing)
            }
            DpoLoss::ExoPair => {
                let (log_q, log_rest) = (log_sigmoid(delta()), log_sigmoid(-delta()));
                log_q.clone().exp() * (log_q - (1.0 - smoothing).ln())
                    + log_rest.clone().exp() * (log_rest - smoothing.ln())
            }
            DpoLoss::NcaPair => {
                let [c, r] = scaled();
                -log_sigmoid(c.clone()) - (log_sigmoid(-c) + log_sigmoid(-r)) * 0.5
            }
            DpoLoss::BcoPair => {
                let [c, r] = scaled();
                -log_sigmoid(c) - log_sigmoid(-r)
            }
            DpoLoss::SppoHard => {
                let [c, r] = ratios.clone();
                (c - 0.5 / beta).square() + (r + 0.5 / beta).square()
            }
            DpoLoss::ApoZero => {
                let [c, r] = scaled();
                log_sigmoid(-c).exp() + log_sigmoid(r).exp()
            }
            DpoLoss::ApoDown => {
                let [c, _] = scaled();
                log_sigmoid(c).exp() + log_sigmoid(-delta()).exp()
            }
            DpoLoss::Sft => return pairs.chosen_entropy(),
        };
        total(of_pairs)
    }
}

impl Dpo {
    /// Creates the objective with the sigmoid loss.
    pub fn new(beta: f64) -> Self {
        Self(DpoConfig { beta, ..DpoConfig::default() })
    }
}

impl SequenceLoss for DpoConfig {
    fn settings(&self) -> Value {
        json!({ "dpo": self })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.validate()?;
        Pairs::check(data)
    }

    fn reference(&self) -> Option<Reference> {
        Some(self.reference.clone())
    }

    fn metrics(&self) -> Vec<&'static str> {
        [&Pairs::METRICS[..], &Pairs::OF_LOGITS].concat()
    }

    fn count(&self, batch: &Batch) -> usize {
        Pairs::count(batch)
    }

    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        [&Pairs::metric_counts(batch)[..], &Pairs::logit_counts(batch)].concat()
    }

    fn losses(&self, sequences: &Sequences) -> Losses {
        let pairs = Pairs::new(sequences);
        let weights = self.loss_weights.iter().copied().chain(std::iter::repeat(1.0));
        let losses = self.loss_type.iter().zip(weights);
        let ratios = pairs.log_ratios();
        let losses = losses.map(|(loss, weight)| self.loss(*loss, &pairs, &ratios) * weight);
        let loss = losses.reduce(|a, b| a + b).expect("there is a loss");
        let rewards = ratios.map(|ratio| ratio * self.beta);
        let mut metrics = pairs.metrics(rewards, pairs.logps());
        metrics.extend(pairs.of_logits());
        Losses { loss, metrics }
    }
}
