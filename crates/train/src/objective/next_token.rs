//! Next-token cross-entropy.

use super::{GradientSums, Objective, Outcome, split, spread, total};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::{DType, Tensor};
use burn_lora_kernels::{cross_entropy, pull_back};
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Loss of language models: the mean cross-entropy of the target tokens given those before them.
///
/// Head and loss process some tokens at a time, so that the logits of a batch are never all in
/// memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NextToken {
    /// Tokens per chunk of head and loss; `None` for as many as give logits of 128 Mi values,
    /// between 64 and 8,192.
    pub chunk: Option<usize>,
    /// Fraction of a target's probability that is spread over the vocabulary (arXiv:1512.00567).
    pub label_smoothing: f32,
}

/// Default number of tokens per chunk of the head: logits of 128 Mi values.
pub(crate) fn chunk(vocabulary: usize) -> usize {
    ((1 << 27) / vocabulary.max(1)).clamp(64, 8192)
}

impl<M: CausalLm> Objective<M> for NextToken {
    fn settings(&self) -> Value {
        // Label smoothing is one of the run's settings.
        json!("next_token")
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        if data.has_token_labels() {
            let reason = "the next-token loss knows no labels: choose `TokenClassification`";
            return Err(TrainError::setting("data", "words with labels", reason));
        }
        if data.samples_per_example() == 1 {
            return Ok(());
        }
        let reason = "the next-token loss would train on the rejected answers, too: choose an objective of \
                      pairs, such as `dpo`";
        Err(TrainError::setting("data", "pairs of `chosen` and `rejected`", reason))
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["mean_token_accuracy"]
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        mut sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let (shape, device) = (hidden.dims(), hidden.device());
        let [rows, length, width] = shape;
        let hidden = hidden.reshape([rows * length, width]);
        let places = batch.target_places();
        let zero = || Tensor::<1>::zeros([1], (&device, DType::F32));
        let (mut loss, mut correct, mut grads) = (zero(), zero(), vec![]);
        let (tokens, smoothing) = match sums {
            Some(_) => (self.chunk, self.label_smoothing),
            None => (None, 0.0),
        };
        for places in places.chunks(tokens.unwrap_or_else(|| chunk(model.vocabulary()))) {
            let (places, targets) = split(places, &device);
            let chosen = hidden.clone().select(0, places);
            let entropy = match &mut sums {
                None => cross_entropy(model.head(chosen, context), targets, smoothing),
                Some(sums) => {
                    let chosen = chosen.autodiff().require_grad();
                    let logits = model.head(chosen.clone(), context);
                    let entropy = cross_entropy(logits.clone().inner(), targets, smoothing);
                    let mut found = pull_back(logits, entropy.grad.clone()).backward();
                    sums.add(model, &mut found);
                    let grad = chosen.grad_remove(&mut found);
                    grads.push(grad.expect("the head's input has a gradient"));
                    entropy
                }
            };
            loss = loss + total(entropy.loss);
            correct = correct + total(entropy.correct);
        }
        let grad = sums.is_some().then(|| spread(grads, &places, shape, (&device, hidden.dtype())));
        Outcome { loss, metrics: vec![correct], grad }
    }

    fn of_loss(&self, loss: f64) -> Vec<(&'static str, f64)> {
        vec![("perplexity", loss.exp())]
    }
}
