//! The metric that says which evaluation is the best.

use super::{Goal, Metric};
use crate::{error::TrainError, objective::Objective, watch::EvalMetrics};
use burn_lora_llama::CausalLm;
use std::collections::BTreeSet;

/// Names that a line of the log has for something else.
const TAKEN: [&str; 4] = ["epoch", "kind", "step", "tokens"];

/// Name and direction of the metric that the best evaluation has the best value of.
pub(crate) struct Best {
    pub name: String,
    goal: Goal,
}

impl Best {
    /// Finds the metric of a name, or the loss, among those of an objective and `metrics`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if there is none of the name, or two metrics have the same one.
    pub fn new<M: CausalLm>(
        name: Option<&str>,
        objective: &dyn Objective<M>,
        metrics: &[Box<dyn Metric<M> + '_>],
    ) -> Result<Self, TrainError> {
        let of_loss = objective.of_loss(0.0).into_iter().map(|(name, _)| name);
        let own = ["loss"].into_iter().chain(of_loss).chain(objective.metrics());
        let own = own.map(|name| (name.to_owned(), objective.goal(name)));
        let all: Vec<_> = own.chain(metrics.iter().flat_map(|metric| metric.names())).collect();
        let mut seen = BTreeSet::from(TAKEN);
        if let Some((twice, _)) = all.iter().find(|(name, _)| !seen.insert(name)) {
            let reason = "an evaluation has a value of this name already: give the metric another";
            return Err(TrainError::setting("metric", format!("`{twice}`"), reason));
        }
        let wanted = name.unwrap_or("loss");
        match all.iter().find(|(name, _)| name == wanted) {
            Some((name, goal)) => Ok(Self { name: name.clone(), goal: *goal }),
            None => {
                let names: Vec<_> = all.iter().map(|(name, _)| format!("`{name}`")).collect();
                let reason = format!("evaluations have no such metric, but {}", names.join(", "));
                Err(TrainError::setting("metric_for_best_model", wanted, reason))
            }
        }
    }

    /// Value of an evaluation.
    pub fn of(&self, metrics: &EvalMetrics) -> f64 {
        match self.name.as_str() {
            "loss" => metrics.loss,
            name => metrics.metrics.get(name).unwrap_or(f64::NAN),
        }
    }

    /// Returns `true` if a value is better than the best before by more than a threshold.
    pub fn improves(&self, value: f64, best: Option<f64>, threshold: f64) -> bool {
        let gain = |best: f64| match self.goal {
            Goal::Lower => best - value,
            Goal::Higher => value - best,
        };
        value.is_finite() && best.is_none_or(|best| gain(best) > threshold)
    }
}
