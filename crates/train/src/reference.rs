//! Log-probabilities by the model that an objective compares with.

use crate::{
    TrainError,
    data::{BatchConfig, Dataset},
    objective::{Objective, Reference, labels_of_head, log_probs},
    step,
};
use burn_lora_adapter::{AdaptableExt, Selection};
use burn_lora_llama::CausalLm;

/// Checks that the model's head is the objective's, and returns the data with the log-probabilities by the reference, if the
/// objective has one and the data do not have them already.
pub(crate) fn prepared<M: CausalLm>(
    objective: &dyn Objective<M>,
    model: &M,
    data: &Dataset,
    batches: &BatchConfig,
) -> Result<Dataset, TrainError> {
    if let Some(labels) = objective.labels() {
        let found = labels_of_head(model);
        if found != labels {
            let found = format!("{found}, and the objective's are {labels}");
            let reason =
                "load the model by `load_classifier` or `load_token_classifier` with their number";
            return Err(TrainError::setting("labels of the head", found, reason));
        }
    }
    match objective.reference() {
        Some(reference) if !data.has_values(Reference::LOG_PROBS) && !data.is_empty() => {
            let found = reference_log_probs(model, &reference, data, batches)?;
            data.clone().with_values(Reference::LOG_PROBS, found)
        }
        _ => Ok(data.clone()),
    }
}

/// Computes the log-probability of each sample, the sum of `log p` over its target tokens, by a model as it is or by one
/// of its adapters. [`Trainer::fit_with`](crate::Trainer::fit_with) does so by itself;
/// [`Dataset::with_values`] adds those of another model, under the name [`Reference::LOG_PROBS`].
///
/// # Errors
/// [`TrainError::Adapter`] if there is no such adapter; [`TrainError::Device`] if the device fails; as
/// [`Dataset::epoch`].
pub fn reference_log_probs<M: CausalLm>(
    model: &M,
    reference: &Reference,
    data: &Dataset,
    config: &BatchConfig,
) -> Result<Vec<f32>, TrainError> {
    let mut model = model.valid();
    if let Reference::Adapter(name) = reference {
        model.select(Selection::adapters([name]))?;
    }
    let mut logps = vec![0.0; data.len()];
    for batch in data.in_order("reading the reference", config)? {
        let (hidden, context) = step::forward(&model, &batch);
        let found = log_probs(&model, hidden, &batch, &context).try_into_data();
        let found = found.map_err(|error| TrainError::device("log-probabilities", error))?;
        for (sample, value) in batch.sources.iter().zip(found.iter::<f32>()) {
            logps[*sample] = value;
        }
    }
    Ok(logps)
}
