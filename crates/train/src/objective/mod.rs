//! Training objectives: the interface of the next-token loss, and of a loss of your own.

mod classification;
mod cpo;
mod distillation;
mod divergence;
mod dpo;
mod kto;
mod logits;
mod multi_label;
mod next_token;
mod orpo;
mod pairs;
mod regression;
mod reward;
mod sequence;
mod tokens;

pub use classification::SequenceClassification;
pub use cpo::{Cpo, CpoConfig, CpoLoss};
pub(crate) use distillation::loss_bytes;
pub use distillation::{Distillation, DistillationConfig, Stored, top_logits};
pub use dpo::{Dpo, DpoConfig, DpoLoss};
pub use kto::{Kto, KtoConfig, KtoLoss};
pub(crate) use logits::{check_weights, labels as labels_of_head};
pub use multi_label::MultiLabelClassification;
pub use next_token::NextToken;
pub(crate) use next_token::chunk;
pub use orpo::{Orpo, OrpoConfig};
pub use regression::Regression;
pub use reward::Reward;
pub(crate) use sequence::log_probs;
pub use sequence::{BySequence, Losses, SequenceLoss, Sequences};
pub use tokens::TokenClassification;

use crate::{
    TrainError,
    data::{Batch, Dataset},
    metric::Goal,
    params::{self, Flat},
};
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use burn_lora_kernels::Gemm;
use burn_lora_llama::CausalLm;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A loss over the hidden states of the last layer, with its gradient and metrics.
///
/// The trainer runs the layers, forward and backward, and divides sums by counts. An objective
/// computes what lies between: from the states after the last layer to the sums of losses and
/// metrics over a batch, and the gradient of the summed loss. [`NextToken`] is the default;
/// [`Trainer::fit_with`](crate::Trainer::fit_with) takes another. The chapter on extending in the
/// book implements a custom one.
pub trait Objective<M: CausalLm>: Send + Sync {
    /// Returns the settings that the loss depends on beside those of the run. They must be the same
    /// when a run is resumed.
    fn settings(&self) -> Value;

    /// Checks the data before the first step.
    ///
    /// # Errors
    /// An error if the objective cannot be computed on the data.
    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        let _ = data;
        Ok(())
    }

    /// Warns of data to train on that are odd.
    fn check_training(&self, data: &Dataset) {
        let _ = data;
    }

    /// Checks the model before the first step.
    ///
    /// # Errors
    /// An error if the objective cannot be computed with it.
    fn check_model(&self, model: &M, data: &Dataset) -> Result<(), TrainError> {
        let _ = (model, data);
        Ok(())
    }

    /// Returns the number of logits that the model's head needs, if not those of its vocabulary.
    fn labels(&self) -> Option<usize> {
        None
    }

    /// Returns the model that the objective compares with, if there is one: its log-probabilities of the samples
    /// are computed once, before the first step, and are then in [`Batch::values`] as
    /// [`Reference::LOG_PROBS`].
    fn reference(&self) -> Option<Reference> {
        None
    }

    /// Returns `true` if the objective reads prompts with the answers to others, [`Batch::mismatched`]: they are put
    /// together once, before the first step.
    fn reads_mismatched(&self) -> bool {
        false
    }

    /// Names of the metrics, in the order of [`Outcome::metrics`].
    fn metrics(&self) -> Vec<&'static str>;

    /// Direction of a metric, `loss`, one of [`metrics`](Self::metrics) or of
    /// [`of_loss`](Self::of_loss): by default, those whose name ends with `loss`, `perplexity` or
    /// `error` are better lower, and all others higher.
    fn goal(&self, metric: &str) -> Goal {
        Goal::of(metric)
    }

    /// Number of items that a batch's sums are over: target tokens. Losses and metrics of a step
    /// are the sums over its batches, divided by the total of their counts.
    fn count(&self, batch: &Batch) -> usize {
        batch.target_count
    }

    /// Number of items that the sum of each of the [`metrics`](Self::metrics) is over, in their order: by default
    /// [`count`](Self::count) for all. A metric that has none in all batches of a step or an evaluation is left out.
    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        vec![self.count(batch); self.metrics().len()]
    }

    /// Computes the sums over a batch.
    ///
    /// With `sums`, the gradients of the objective's own parameters, such as the head's, are added
    /// to them, and the outcome has the gradient of the summed loss at `hidden`. Without, the
    /// objective is only evaluated.
    ///
    /// # Shapes
    /// - hidden: `[rows, sequence, hidden]`, without a graph
    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        sums: Option<&mut GradientSums>,
    ) -> Outcome;

    /// Metrics of an evaluation that follow from its mean loss, such as the perplexity.
    fn of_loss(&self, loss: f64) -> Vec<(&'static str, f64)> {
        let _ = loss;
        vec![]
    }
}

/// The model that an objective compares with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The model as it is before the first step: with a new adapter, the base.
    #[default]
    Start,
    /// The base with another one of the model's adapters.
    Adapter(String),
}

impl Reference {
    /// Name of its log-probabilities among the numbers beside the tokens: the sum of `log p` over the target
    /// tokens of each sample.
    pub const LOG_PROBS: &str = "ref_logps";
}

/// Result of a batch, still on the device.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Sum of the losses, `[1]` in float32.
    pub loss: Tensor<1>,
    /// Sums of the metrics, each `[1]` in float32.
    pub metrics: Vec<Tensor<1>>,
    /// Gradient of the summed loss at the hidden states, `[rows, sequence, hidden]`, if requested.
    pub grad: Option<Tensor<3>>,
}

impl Outcome {
    /// Adds loss and metrics to the totals of a step or an evaluation: the loss is the first.
    pub(crate) fn add_to(self, totals: &mut [Tensor<1>]) {
        let found = std::iter::once(self.loss).chain(self.metrics);
        totals.iter_mut().zip(found).for_each(|(total, found)| *total = total.clone() + found);
    }
}

/// Sums of the gradients of trained parameters.
#[derive(Default)]
pub struct GradientSums {
    pub(crate) flat: Flat,
    /// [`TrainConfig::loss_chunk`](crate::TrainConfig::loss_chunk).
    pub(crate) chunk: Option<usize>,
}

impl GradientSums {
    /// Returns the number of tokens that head and loss are to process at a time: that of the run's settings, or else
    /// `default`.
    pub fn chunk(&self, default: usize) -> usize {
        self.chunk.unwrap_or(default)
    }

    /// Adds the gradients of a model's trained parameters, and removes them from `found`.
    pub fn add<M: CausalLm>(&mut self, model: &M, found: &mut Gradients) {
        params::add_gradients(&mut self.flat, model, found);
    }
}

/// Returns the sum, `[1]`, in the same order each time: Burn's own sum is tuned, and two runs of a
/// program may add in another order.
pub(crate) fn total(values: Tensor<1>) -> Tensor<1> {
    let count = values.dims()[0];
    let ones = Tensor::<2>::ones([count, 1], (&values.device(), DType::F32));
    Gemm::new().run(values.cast(DType::F32).reshape([1, count]), ones).reshape([1])
}

/// `log σ(x)`, with its gradient everywhere: `(x - |x|) / 2 - log(1 + exp(-|x|))`.
fn log_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let size = x.clone().abs();
    (x - size.clone()) * 0.5 - size.neg().exp().log1p()
}

/// Splits target places into the places of tokens and their successors.
fn split(places: &[(i32, i32)], device: &Device) -> (Tensor<1, Int>, Tensor<1, Int>) {
    let (places, targets) = places.iter().copied().unzip();
    (ints(places, device), ints(targets, device))
}

/// Returns the gradient at the hidden states, `shape`, from those at the target places, chunk by chunk.
fn spread(
    mut grads: Vec<Tensor<2>>,
    places: &[(i32, i32)],
    shape: [usize; 3],
    (device, dtype): (&Device, DType),
) -> Tensor<3> {
    let [rows, length, width] = shape;
    // Every token gathers the gradient of its place; tokens that are no targets gather the row of zeros at
    // the end.
    let mut from = vec![places.len() as i32; rows * length];
    for (number, (place, _)) in places.iter().enumerate() {
        from[*place as usize] = number as i32;
    }
    grads.push(Tensor::zeros([1, width], (device, dtype)));
    Tensor::cat(grads, 0).select(0, ints(from, device)).reshape(shape)
}

/// Creates a float tensor.
fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::F32))
}

/// Creates an integer tensor.
pub(crate) fn ints(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, burn::tensor::DType::I32))
}
