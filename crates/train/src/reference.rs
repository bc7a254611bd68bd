//! Log-probabilities by the model that an objective compares with.

use crate::{
    TrainError,
    data::{BatchConfig, Dataset},
    objective::{Objective, Reference, labels_of_head, log_probs},
    step,
};
use burn_lora_adapter::{AdaptableExt, Selection};
use burn_lora_llama::CausalLm;

/// Returns the data with what an objective compares with: the log-probabilities by its reference, and prompts with the answers
/// to others, as far as it reads them and the data do not have them yet. [`Trainer::fit_with`](crate::Trainer::fit_with) does
/// so by itself; [`evaluate_with`](crate::evaluate_with) has to be given such data if the reference is the model at the
/// start of a run, before its adapter was trained.
///
/// # Errors
/// [`TrainError::Setting`] if the model's head has other labels than the objective; as [`reference_log_probs`].
pub fn prepare<M: CausalLm>(
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
    objective.check_model(model, data)?;
    let share = batches.share_prompts && model.shares_prompts();
    let mut data = data.clone().sharing_prompts(share);
    if objective.reads_mismatched() && data.mismatched().is_none() && !data.is_empty() {
        // A row of several answers is a batch already, but of how many varies.
        let block = if batches.packing.is_some() { batches.size.max(16) } else { batches.size };
        if block == 1 {
            let reason = "the objective compares with answers to other prompts of a batch: it has to be 2 at least";
            return Err(TrainError::setting("batches.size", 1, reason));
        }
        data = data.with_mismatched(block)?;
    }
    let Some(reference) = objective.reference() else {
        if objective.reads_mismatched() {
            let reason = "it reads mismatched answers, and so has to have a reference";
            return Err(TrainError::setting("objective", objective.settings(), reason));
        }
        return Ok(data);
    };
    let with_reference = |data: Dataset, batches: &BatchConfig| {
        if data.has_values(Reference::LOG_PROBS) || data.is_empty() {
            return Ok(data);
        }
        let found = reference_log_probs(model, &reference, &data, batches)?;
        Ok::<_, TrainError>(data.with_derived(Reference::LOG_PROBS, found))
    };
    if let Some(mismatched) = data.mismatched().cloned() {
        let batches = mismatched.batches_of_mismatched(batches);
        data.set_mismatched(with_reference(mismatched, &batches)?);
    }
    with_reference(data, batches)
}

/// Returns `true` if the data have all that [`prepare`] adds.
pub(crate) fn is_prepared<M: CausalLm>(objective: &dyn Objective<M>, data: &Dataset) -> bool {
    let compared =
        |data: &Dataset| objective.reference().is_none() || data.has_values(Reference::LOG_PROBS);
    let mismatched = || data.mismatched().is_some_and(compared);
    data.is_empty() || compared(data) && (!objective.reads_mismatched() || mismatched())
}

/// Computes the log-probability of each sample, the sum of `log p` over its target tokens, by a model as it is or by one
/// of its adapters. [`Dataset::with_values`] adds those of another model, under the name [`Reference::LOG_PROBS`].
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
