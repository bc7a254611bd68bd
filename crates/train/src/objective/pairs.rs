//! Pairs of a chosen and a rejected answer.

use super::{Sequences, ints, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::Tensor;

/// The pairs of a batch: values of the chosen and of the rejected answers, `[pairs]` each.
pub(super) struct Pairs<'a> {
    sequences: &'a Sequences,
    count: usize,
}

impl<'a> Pairs<'a> {
    /// Names of the [metrics](Self::metrics), which are TRL's.
    pub const METRICS: [&'static str; 7] = [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "mean_token_accuracy",
    ];

    /// Names of the [metrics of the logits](Self::of_logits), which are TRL's of DPO.
    pub const OF_LOGITS: [&'static str; 3] = ["entropy", "logits/chosen", "logits/rejected"];

    pub fn new(sequences: &'a Sequences) -> Self {
        Self { sequences, count: sequences.logps.dims()[0] / 2 }
    }

    /// Checks that the data are pairs.
    pub fn check(data: &Dataset) -> Result<(), TrainError> {
        if data.samples_per_example() == 2 {
            return Ok(());
        }
        let reason = "the objective compares two answers: the data need `chosen` and `rejected`";
        Err(TrainError::setting("data", "no pairs", reason))
    }

    /// Number of pairs of a batch.
    pub fn count(batch: &Batch) -> usize {
        batch.sources.len() / 2
    }

    /// What the [metrics](Self::metrics) are sums over: pairs, and the tokens of the chosen answers.
    pub fn metric_counts(batch: &Batch) -> Vec<usize> {
        let [chosen, _] = Self::tokens(batch);
        [vec![Self::count(batch); Self::METRICS.len() - 1], vec![chosen]].concat()
    }

    /// What the [metrics of the logits](Self::of_logits) are sums over: tokens.
    pub fn logit_counts(batch: &Batch) -> [usize; 3] {
        let [chosen, rejected] = Self::tokens(batch);
        [chosen + rejected, chosen, rejected]
    }

    /// Numbers of tokens of the chosen and of the rejected answers.
    fn tokens(batch: &Batch) -> [usize; 2] {
        let targets = batch.targets_of_samples();
        [0, 1].map(|which| targets.iter().skip(which).step_by(2).sum())
    }

    pub fn logps(&self) -> [Tensor<1>; 2] {
        each(&self.sequences.logps)
    }

    pub fn lengths(&self) -> [Tensor<1>; 2] {
        each(&self.sequences.lengths)
    }

    /// Log-probabilities less those of the reference.
    pub fn log_ratios(&self) -> [Tensor<1>; 2] {
        each(&(self.sequences.logps.clone() - self.sequences.reference()))
    }

    /// The mean cross-entropy of the tokens of the chosen answers, and of their prompts if these are read, once for each
    /// pair.
    pub fn chosen_entropy(&self) -> Tensor<1> {
        let ([logps, _], [lengths, _]) = (self.logps(), self.lengths());
        let (mut logps, mut tokens) = (total(logps), total(lengths));
        if let Some([prompts, lengths]) = &self.sequences.prompts {
            let ([prompts, _], [lengths, _]) = (each(prompts), each(lengths));
            (logps, tokens) = (logps + total(prompts), tokens + total(lengths));
        }
        logps.neg() / tokens * self.count as f64
    }

    /// Checks the factor of the differences.
    pub fn check_beta(beta: f64) -> Result<(), TrainError> {
        if beta > 0.0 && beta.is_finite() {
            return Ok(());
        }
        Err(TrainError::setting("objective.beta", beta, "it has to be above 0"))
    }

    /// Mean log-probabilities of the tokens.
    pub fn mean_logps(&self) -> [Tensor<1>; 2] {
        let ([chosen, rejected], [a, b]) = (self.logps(), self.lengths());
        [chosen / a, rejected / b]
    }

    /// Sums of the metrics over the pairs, given the rewards and the log-probabilities.
    pub fn metrics(
        &self,
        [chosen, rejected]: [Tensor<1>; 2],
        [logps, other]: [Tensor<1>; 2],
    ) -> Vec<Tensor<1>> {
        let [correct, _] = each(&self.sequences.correct);
        let margins = chosen.clone() - rejected.clone();
        let better = margins.clone().greater_elem(0.0).float();
        vec![
            total(chosen),
            total(rejected),
            total(better),
            total(margins),
            total(logps),
            total(other),
            total(correct),
        ]
    }

    /// Entropies of the predictions of both answers' tokens, and the means of the logits that predict those of each.
    pub fn of_logits(&self) -> [Tensor<1>; 3] {
        let Sequences { entropy, logits, .. } = self.sequences;
        let [chosen, rejected] = each(logits);
        [total(entropy.clone()), total(chosen), total(rejected)]
    }
}

/// The values of the chosen and those of the rejected answers, `[pairs]` each, of values one for each sequence.
pub(super) fn each(values: &Tensor<1>) -> [Tensor<1>; 2] {
    [0, 1].map(|which| {
        let places = (which..values.dims()[0] as i32).step_by(2).collect();
        values.clone().select(0, ints(places, &values.device()))
    })
}
