//! Losses of the head's logits at some tokens: what a head of classes is trained by.

use super::{GradientSums, Outcome, floats, ints, spread, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::{DType, Tensor, TensorData};
use burn_lora_adapter::Adaptable;
use burn_lora_kernels::{cross_entropy, pull_back};
use burn_lora_llama::CausalLm;

/// Sums over the rows of logits, and the gradient of the loss.
pub(super) struct LogitLoss {
    /// `[1]`
    pub loss: Tensor<1>,
    /// `[1]` each.
    pub metrics: Vec<Tensor<1>>,
    /// `[rows, labels]`
    pub grad: Tensor<2>,
}

/// Number of logits of a model's head.
pub(crate) fn labels<M: Adaptable>(model: &M) -> usize {
    let layers = model.layers();
    let head = layers.iter().find(|(path, _)| path == model.output_head());
    head.map_or(0, |(_, layer)| layer.shape()[0])
}

/// Runs the head on the tokens at these places, and a loss on their logits, `[places, labels]` in float32.
///
/// # Panics
/// If the head has another number of logits than `labels`.
pub(super) fn run<M: CausalLm>(
    (model, hidden, context): (&M, Tensor<3>, &M::Context),
    places: &[usize],
    labels: usize,
    sums: Option<&mut GradientSums>,
    loss: impl FnOnce(Tensor<2>) -> LogitLoss,
) -> Outcome {
    let (shape, device, dtype) = (hidden.dims(), hidden.device(), hidden.dtype());
    let [rows, length, width] = shape;
    let places: Vec<i32> = places.iter().map(|place| *place as i32).collect();
    let chosen = hidden.reshape([rows * length, width]).select(0, ints(places.clone(), &device));
    let chosen = if sums.is_some() { chosen.autodiff().require_grad() } else { chosen };
    let logits = model.head(chosen.clone(), context);
    let found = logits.dims()[1];
    assert_eq!(found, labels, "logits of the model's head, and labels of the objective");
    let Some(sums) = sums else {
        let LogitLoss { loss, metrics, .. } = loss(logits.cast(DType::F32));
        return Outcome { loss, metrics, grad: None };
    };
    let LogitLoss { loss, metrics, grad } = loss(logits.clone().inner().cast(DType::F32));
    let grad = grad.cast(logits.dtype());
    let mut found = pull_back(logits, grad).backward();
    sums.add(model, &mut found);
    let grad = chosen.grad_remove(&mut found).expect("the head's input has a gradient");
    let places: Vec<_> = places.into_iter().map(|place| (place, 0)).collect();
    let grad = spread(vec![grad], &places, shape, (&device, dtype));
    Outcome { loss, metrics, grad: Some(grad) }
}

/// Cross-entropy of a label for each row, and how many rows are right. With a weight for each class, the loss is the
/// weighted mean times the number of rows.
pub(super) fn weighted_entropy(
    logits: Tensor<2>,
    labels: Vec<i32>,
    class_weights: &[f32],
) -> LogitLoss {
    let (device, rows) = (logits.device(), labels.len());
    let weights: Vec<f32> = match class_weights {
        [] => vec![],
        weights => labels.iter().map(|label| weights[*label as usize]).collect(),
    };
    let entropy = cross_entropy(logits, ints(labels, &device), 0.0);
    let metrics = vec![total(entropy.correct)];
    if weights.is_empty() {
        return LogitLoss { loss: total(entropy.loss), metrics, grad: entropy.grad };
    }
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    // Rows of no weight have no loss.
    let scale = if sum > 0.0 { rows as f64 / sum } else { 0.0 };
    let weights = floats(&weights, &device) * scale;
    let grad = entropy.grad * weights.clone().reshape([rows, 1]);
    LogitLoss { loss: total(entropy.loss * weights), metrics, grad }
}

/// Checks the weights of classes: none, or one for each.
pub(crate) fn check_weights(
    name: &'static str,
    weights: &[f32],
    classes: usize,
) -> Result<(), TrainError> {
    let wrong = |found: String, reason: String| Err(TrainError::setting(name, found, reason));
    if !weights.is_empty() && weights.len() != classes {
        return wrong(
            weights.len().to_string(),
            format!("there are {classes} labels: give one for each"),
        );
    }
    match weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
        Some(weight) => {
            wrong(weight.to_string(), "a weight has to be finite, and 0 at least".into())
        }
        None => Ok(()),
    }
}

/// Numbers beside the tokens of a batch, `[samples, names]` in float32.
pub(super) fn columns(batch: &Batch, names: &[String], like: &Tensor<2>) -> Tensor<2> {
    let all: Vec<&Vec<f32>> = names.iter().map(|name| &batch.values[name]).collect();
    let samples = batch.sources.len();
    let rows = (0..samples).flat_map(|sample| all.iter().map(move |column| column[sample]));
    let data = TensorData::new(rows.collect::<Vec<f32>>(), [samples, names.len()]);
    Tensor::from_data(data, (&like.device(), DType::F32))
}

/// Checks the numbers beside the tokens of this name; `method`, a call of the builder's, reads them.
pub(super) fn check_values(
    data: &Dataset,
    name: &str,
    method: &str,
    fits: impl Fn(f32) -> bool,
    expected: &str,
) -> Result<(), TrainError> {
    let all: Vec<usize> = (0..data.len()).collect();
    let values = data.values(&all);
    let Some(values) = values.get(name) else {
        let reason = format!("the data have no numbers `{name}`: load them with `.{method}`");
        return Err(TrainError::setting("labels", "missing", reason));
    };
    match values.iter().position(|value| !fits(*value)) {
        None => Ok(()),
        Some(sample) => {
            let found = values[sample];
            Err(data.wrong(sample, format!("`{name}` is {found}: {expected}")))
        }
    }
}
