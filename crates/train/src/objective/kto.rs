//! Kahneman-Tversky optimization.

use super::{
    BySequence, Losses, Reference, SequenceLoss, Sequences, log_sigmoid, logits::check_values,
    pairs::Pairs, total,
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Loss of Kahneman-Tversky optimization, by TRL's names. With the log-ratio `r = log p(answer) - log p_ref(answer)`, `b` for
/// beta and `σ` for the sigmoid:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KtoLoss {
    /// `1 - σ(b·(r - k))` of a desirable answer and `1 - σ(b·(k - r))` of another, where `k` is the mean log-ratio of
    /// the batch's prompts with the answers to others, at least 0: an estimate of the divergence from the reference
    /// (arXiv:2402.01306).
    #[default]
    Kto,
    /// `1 - σ(b·r)` of a desirable answer and `σ(b·r)` of another (arXiv:2408.06266).
    ApoZeroUnpaired,
}

/// Kahneman-Tversky optimization (arXiv:2402.01306), as TRL's `KTOTrainer`: raises the probability of desirable answers and
/// lowers that of others, compared with a reference model, whose log-probabilities are computed once, before the first
/// step. No two answers have to be to the same prompt.
///
/// The data are answers with the number `label` beside their tokens, 1 if desirable, else 0:
/// [`DatasetBuilder::unpaired`](crate::data::DatasetBuilder::unpaired) reads them.
///
/// The estimate `k` reads each prompt with the answer to the one before, in blocks of as many examples as a batch has rows (of
/// 16 at least, if rows are packed), in the order of the data. TRL wants batches in that order; here it may be any. The loss
/// of a batch depends on its estimate, and so that of an evaluation on the size of batches.
///
/// | metric | what |
/// |---|---|
/// | `rewards/chosen`, `rewards/rejected` | `b·r` of the desirable answers, and of the others |
/// | `rewards/margins` | the difference of both, of batches that have both |
/// | `logps/chosen`, `logps/rejected` | log-probabilities |
/// | `entropy` | of the predictions of the answers' tokens, in nats |
/// | `logits/chosen`, `logits/rejected` | mean of the logits that predict the answers' tokens |
/// | `kl` | the estimate `k` |
///
/// A metric of answers of which a step has none is left out.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{Dataset, TrainConfig, Trainer, objective::Kto};
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let answer = |text, label| json!({ "prompt": "Price is", "completion": text, "label": label });
/// let records = [answer(" $5", true), answer(" 5 dollars", false)];
/// let data = Dataset::from_records(records.iter().cycle().take(8)).unpaired();
/// let data = data.load(&Tokenizer::from_pretrained(folder)?)?;
/// let model = Llama::from_pretrained(folder).load(&Device::default())?;
/// let mut model = model.with_adapter(&LoraConfig::new(8, 16).all_linear())?;
/// let config = TrainConfig::new(1e-3).epochs(2).batch_size(4);
/// let report = Trainer::new(config).fit_with(Kto::new(0.1), &mut model, &data, None)?;
/// assert!(report.log.last().unwrap().metrics.get("rewards/margins").unwrap() > 0.0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KtoConfig {
    /// How much a deviation from the reference counts: less deviation with a higher one.
    pub beta: f64,
    /// Loss of an answer.
    pub loss_type: KtoLoss,
    /// Weight of the desirable answers.
    pub desirable_weight: f64,
    /// Weight of the other answers.
    pub undesirable_weight: f64,
    /// The model to compare with.
    pub reference: Reference,
}

/// Objective of a [`KtoConfig`].
pub type Kto = BySequence<KtoConfig>;

impl Default for KtoConfig {
    /// A beta of 0.1, and the same weight for all.
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss_type: KtoLoss::Kto,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            reference: Reference::Start,
        }
    }
}

impl Kto {
    /// Creates the objective with the same weight for all answers.
    pub fn new(beta: f64) -> Self {
        Self(KtoConfig { beta, ..KtoConfig::default() })
    }
}

impl KtoConfig {
    /// Name of the labels among the numbers beside the tokens.
    pub const LABEL: &str = crate::data::LABEL;

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        Pairs::check_beta(self.beta)?;
        for (name, weight) in [
            ("objective.desirable_weight", self.desirable_weight),
            ("objective.undesirable_weight", self.undesirable_weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(TrainError::setting(name, weight, "it has to be 0 or above"));
            }
        }
        Ok(())
    }

    /// Warns if the weights do not make up for the numbers of answers, as TRL does.
    fn warn_of_weights(&self, desirable: usize, others: usize) {
        let Self { desirable_weight, undesirable_weight, .. } = self;
        let (a, b) = (desirable.max(1) as f64, others.max(1) as f64);
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let ratio = b * undesirable_weight / a;
        let of_desirable = [round(ratio), round(ratio * 1.33)];
        let ratio = a * desirable_weight / b;
        let of_others = [round(ratio / 1.33), round(ratio)];
        let inside = |[least, most]: [f64; 2], weight: f64| (least..=most).contains(&weight);
        let fits =
            inside(of_desirable, *desirable_weight) || inside(of_others, *undesirable_weight);
        if desirable != others && !fits {
            burn_lora_io::warn!(
                "{desirable} answers are desirable and {others} are not: a `desirable_weight` of {} to {}, or else an \
                 `undesirable_weight` of {} to {}, makes up for that",
                of_desirable[0],
                of_desirable[1],
                of_others[0],
                of_others[1]
            );
        }
    }
}

/// Which answers of a batch are desirable: 1, else 0.
fn labels(batch: &Batch) -> impl Iterator<Item = bool> {
    batch.values[KtoConfig::LABEL].iter().map(|label| *label > 0.5)
}

impl SequenceLoss for KtoConfig {
    fn settings(&self) -> Value {
        json!({ "kto": self })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.validate()?;
        if data.samples_per_example() != 1 {
            let reason = "the objective knows single answers: load the data with `.unpaired()`";
            return Err(TrainError::setting("data", "pairs of `chosen` and `rejected`", reason));
        }
        let fits = |label: f32| label == 0.0 || label == 1.0;
        let expected = "it has to be 1 for a desirable answer, else 0";
        check_values(data, Self::LABEL, "unpaired()", fits, expected)
    }

    fn check_training(&self, data: &Dataset) {
        let all = (0..data.len()).collect::<Vec<_>>();
        let labels = &data.values(&all)[Self::LABEL];
        let desirable = labels.iter().filter(|label| **label == 1.0).count();
        self.warn_of_weights(desirable, labels.len() - desirable);
    }

    fn reference(&self) -> Option<Reference> {
        Some(self.reference.clone())
    }

    fn reads_mismatched(&self) -> bool {
        self.loss_type == KtoLoss::Kto
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec![
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "logps/chosen",
            "logps/rejected",
            "entropy",
            "logits/chosen",
            "logits/rejected",
            "kl",
        ]
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.sources.len()
    }

    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        let (mut answers, mut tokens) = ([0, 0], [0, 0]);
        for (desirable, targets) in labels(batch).zip(batch.targets_of_samples()) {
            answers[usize::from(!desirable)] += 1;
            tokens[usize::from(!desirable)] += targets;
        }
        let ([chosen, rejected], all) = (answers, batch.sources.len());
        let both = if chosen > 0 && rejected > 0 { all } else { 0 };
        let [a, b] = tokens;
        vec![chosen, rejected, both, chosen, rejected, a + b, a, b, all]
    }

    fn losses(&self, sequences: &Sequences) -> Losses {
        let Self { beta, desirable_weight, undesirable_weight, .. } = *self;
        let label = sequences.values[Self::LABEL].clone();
        let other = -label.clone() + 1.0;
        let count = label.dims()[0] as f64;
        let ratios = sequences.logps.clone() - sequences.reference();
        let kl = match &sequences.mismatched {
            Some(ratios) => (total(ratios.clone()) / count).clamp_min(0.0),
            None => Tensor::zeros_like(&label).narrow(0, 0, 1),
        };
        // 1 - σ(x) = σ(-x), and the other way round for answers that are not desirable.
        let sign = label.clone() * 2.0 - 1.0;
        let weight = label.clone() * desirable_weight + other.clone() * undesirable_weight;
        let losses = log_sigmoid((ratios.clone() - kl.clone()) * sign * -beta).exp() * weight;
        let of = |values: &Tensor<1>, which: &Tensor<1>| total(values.clone() * which.clone());
        let rewards = ratios * beta;
        let [chosen, rejected] = [&label, &other].map(|which| of(&rewards, which));
        // (A batch that lacks one kind does not count for the margin.)
        let mean = |sum: &Tensor<1>, which: &Tensor<1>| {
            sum.clone() / total(which.clone()).clamp_min(1.0) * count
        };
        let margins = mean(&chosen, &label) - mean(&rejected, &other);
        let Sequences { logps, entropy, logits, .. } = sequences;
        let metrics = vec![
            chosen,
            rejected,
            margins,
            of(logps, &label),
            of(logps, &other),
            total(entropy.clone()),
            of(logits, &label),
            of(logits, &other),
            kl * count,
        ];
        Losses { loss: total(losses), metrics }
    }
}
