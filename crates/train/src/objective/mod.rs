//! What is minimized: the door that the next-token loss goes through, and a user's own.

mod classification;
mod next_token;

pub use classification::SequenceClassification;
pub use next_token::NextToken;
pub(crate) use next_token::chunk;

use crate::{
    TrainError,
    data::{Batch, Dataset},
    model::CausalLm,
    params::{self, Flat},
};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use serde_json::Value;

/// A loss over the states that the layers give, with its gradient and metrics.
///
/// The trainer runs the layers, forward and backward, and divides sums by counts. An objective says what
/// lies between: from the states after the last layer to sums of losses and metrics over a batch, and the
/// gradient of the losses' sum. [`NextToken`] is the default; [`Trainer::fit_with`](crate::Trainer::fit_with)
/// takes another. The book has one of a user's own in the chapter on extending.
pub trait Objective<M: CausalLm>: Send + Sync {
    /// What decides the loss beside the settings of the run: one that is resumed has to find the same.
    fn settings(&self) -> Value;

    /// Checks the data before the first step.
    ///
    /// # Errors
    /// Data that the objective cannot be computed on.
    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        let _ = data;
        Ok(())
    }

    /// The names of the metrics, in the order of [`Outcome::metrics`].
    fn metrics(&self) -> Vec<&'static str>;

    /// The number of items that a batch's sums are over: target tokens. Losses and metrics of a step are
    /// the sums of its batches, divided by their counts together.
    fn count(&self, batch: &Batch) -> usize {
        batch.target_count
    }

    /// The sums over a batch.
    ///
    /// With `sums` the gradients of what the objective itself computes with, such as the head's, are added
    /// to them, and the outcome has the gradient of the losses' sum at `hidden`. Without, it is evaluated.
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

/// What a batch gave, still on the device.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The sum of the losses, `[1]` in float32.
    pub loss: Tensor<1>,
    /// The sums of the metrics, each `[1]` in float32.
    pub metrics: Vec<Tensor<1>>,
    /// The gradient of the losses' sum at the states, `[rows, sequence, hidden]`, where it was asked for.
    pub grad: Option<Tensor<3>>,
}

/// Sums of the gradients of trained parameters.
#[derive(Default)]
pub struct GradientSums(pub(crate) Flat);

impl GradientSums {
    /// Adds the gradients of a model's trained parameters, and takes them out of `found`.
    pub fn add<M: CausalLm>(&mut self, model: &M, found: &mut Gradients) {
        params::add_gradients(&mut self.0, model, found);
    }
}

/// Integers as a tensor.
pub(crate) fn ints(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, burn::tensor::DType::I32))
}
