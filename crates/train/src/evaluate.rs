//! Evaluation of a model on data.

use crate::{
    TrainError,
    data::{BatchConfig, Dataset},
    objective::{NextToken, Objective, Reference},
    reference::prepared,
    step,
    watch::EvalMetrics,
};
use burn::tensor::{DType, Tensor};
use burn_lora_llama::CausalLm;

/// Evaluates a model on a data set: the mean loss of the target tokens, the perplexity `exp(loss)`,
/// and the fraction of target tokens that the model ranks first. Padding, order and batch size make
/// no difference but rounding.
///
/// # Errors
/// [`TrainError::Setting`] if the data have no target tokens or the batch settings are invalid,
/// [`TrainError::Example`] if a token is not in the model's vocabulary or a sample is longer than a
/// packed row.
pub fn evaluate<M: CausalLm>(
    model: &M,
    data: &Dataset,
    batches: &BatchConfig,
) -> Result<EvalMetrics, TrainError> {
    evaluate_with(&NextToken::default(), model, data, batches)
}

/// Evaluates a model on a data set with another objective: its mean loss and metrics.
///
/// # Errors
/// As [`evaluate`], and those of [`Objective::check`]; [`TrainError::Setting`] if the objective compares with
/// [`Reference::Start`], and the data have no log-probabilities by it.
pub fn evaluate_with<M: CausalLm>(
    objective: &dyn Objective<M>,
    model: &M,
    data: &Dataset,
    batches: &BatchConfig,
) -> Result<EvalMetrics, TrainError> {
    data.check_vocabulary(model.vocabulary())?;
    objective.check(data)?;
    if objective.reference() == Some(Reference::Start) && !data.has_values(Reference::LOG_PROBS) {
        let reason = "the objective compares with the model as it was at the start, whose log-probabilities \
                      the data do not have: add those of `reference_log_probs` by `with_values`";
        return Err(TrainError::setting(Reference::LOG_PROBS, "missing", reason));
    }
    let data = &prepared(objective, model, data, batches)?;
    let model = model.valid();
    let device = model.device();
    let names = objective.metrics();
    let mut totals = vec![Tensor::<1>::zeros([1], (&device, DType::F32)); 1 + names.len()];
    let mut count = 0;
    for batch in data.in_order("evaluating", batches)? {
        step::evaluate(&model, objective, &batch).add_to(&mut totals);
        count += objective.count(&batch);
    }
    if count == 0 {
        return Err(TrainError::setting("data", "empty", "there is no token to predict"));
    }
    let values = Tensor::cat(totals, 0).into_data();
    let values: Vec<f32> = values.try_into_vec().expect("float32");
    let mut means = values.into_iter().map(|sum| f64::from(sum) / count as f64);
    let loss = means.next().expect("the loss is the first");
    let metrics = objective.of_loss(loss).into_iter().chain(names.into_iter().zip(means));
    let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(EvalMetrics { step: 0, epoch: 0.0, loss, metrics, tokens: count as u64 })
}
