//! How good a model is on data.

use crate::{
    TrainError,
    data::{BatchConfig, Dataset},
    model::CausalLm,
    step,
    watch::EvalMetrics,
};
use burn::tensor::{DType, Tensor};

/// The loss of a model over a data set's target tokens, the perplexity `exp(loss)`, and the part of
/// the tokens that it puts first. Padding, order and batch size make no difference but rounding.
///
/// # Errors
/// Data without target tokens.
pub fn evaluate<M: CausalLm>(
    model: &M,
    data: &Dataset,
    batches: &BatchConfig,
) -> Result<EvalMetrics, TrainError> {
    data.check_vocabulary(model.vocabulary())?;
    let model = model.valid();
    let device = model.device();
    let config = BatchConfig { shuffle: false, drop_last: false, ..batches.clone() };
    let zero = || Tensor::<1>::zeros([1], (&device, DType::F32));
    let (mut loss, mut hits, mut targets) = (zero(), zero(), 0);
    for rows in data.epoch(&config, 0)? {
        let batch = data.batch(&rows, &config);
        let outcome = step::evaluate(&model, &batch);
        targets += batch.target_count;
        loss = loss + outcome.loss;
        hits = hits + outcome.hits;
    }
    if targets == 0 {
        return Err(TrainError::setting("data", "empty", "there is no token to predict"));
    }
    let values = Tensor::cat(vec![loss, hits], 0).into_data();
    let values: Vec<f32> = values.try_into_vec().expect("float32");
    let [loss, hits] = [values[0], values[1]].map(|sum| f64::from(sum) / targets as f64);
    let (perplexity, token_accuracy) = (loss.exp(), hits);
    Ok(EvalMetrics {
        step: 0,
        epoch: 0.0,
        loss,
        perplexity,
        token_accuracy,
        tokens: targets as u64,
    })
}
