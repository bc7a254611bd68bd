//! Evaluation of a model on data.

use crate::{
    TrainError,
    data::{BatchConfig, Dataset},
    objective::{NextToken, Objective, Reference},
    reference::{is_prepared, prepare},
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
    if objective.reference() == Some(Reference::Start) && !is_prepared(objective, data) {
        let reason = "the objective compares with the model as it was at the start, whose log-probabilities \
                      the data do not have: `prepare` the data with that model";
        return Err(TrainError::setting(Reference::LOG_PROBS, "missing", reason));
    }
    let data = &prepare(objective, model, data, batches)?;
    let model = model.valid();
    let device = model.device();
    let names = objective.metrics();
    let mut totals = vec![Tensor::<1>::zeros([1], (&device, DType::F32)); 1 + names.len()];
    let mut count = 0;
    let mut counts = vec![0; names.len()];
    for batch in data.in_order("evaluating", batches)? {
        step::evaluate(&model, objective, &batch).add_to(&mut totals);
        count += objective.count(&batch);
        add(&mut counts, &objective.metric_counts(&batch));
    }
    if count == 0 {
        return Err(TrainError::setting("data", "empty", "there is no token to predict"));
    }
    let values = Tensor::cat(totals, 0).into_data();
    let values: Vec<f32> = values.try_into_vec().expect("float32");
    let loss = f64::from(values[0]) / count as f64;
    let means = means(&names, values[1..].iter().map(|sum| f64::from(*sum)), &counts);
    let metrics = objective.of_loss(loss).into_iter().chain(means);
    let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(EvalMetrics { step: 0, epoch: 0.0, loss, metrics, tokens: count as u64 })
}

/// Adds the counts of a batch to those of others.
pub(crate) fn add(counts: &mut [usize], of_batch: &[usize]) {
    assert_eq!(counts.len(), of_batch.len(), "a count for each metric");
    counts.iter_mut().zip(of_batch).for_each(|(all, count)| *all += count);
}

/// Means of the metrics that have something to be a mean of, with their names.
pub(crate) fn means(
    names: &[&'static str],
    sums: impl Iterator<Item = f64>,
    counts: &[usize],
) -> Vec<(&'static str, f64)> {
    let all = names.iter().zip(sums).zip(counts);
    let all = all.filter(|(_, count)| **count > 0);
    all.map(|((name, sum), count)| (*name, sum / *count as f64)).collect()
}
