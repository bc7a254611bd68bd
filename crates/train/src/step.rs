//! Loss and gradients of one micro-batch.

use crate::{
    data::Batch,
    model::CausalLm,
    params::{self, Flat},
    recompute::Recompute,
};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_lora_kernels::{CrossEntropy, cross_entropy, pull_back};
use serde::{Deserialize, Serialize};

/// How a micro-batch is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StepConfig {
    pub recompute: Recompute,
    /// Whether the inputs of the layers wait for the backward pass in host memory.
    pub offload: bool,
    /// Tokens that the head and the loss take at a time; `None` is [`chunk`].
    pub loss_chunk: Option<usize>,
    pub label_smoothing: f32,
    /// NEFTune's alpha (arXiv:2310.05914).
    pub neftune: Option<f32>,
}

impl Default for StepConfig {
    fn default() -> Self {
        Self {
            recompute: Recompute::default(),
            offload: false,
            loss_chunk: None,
            label_smoothing: 0.0,
            neftune: None,
        }
    }
}

/// Tokens that the head takes at a time, where nothing is set: logits of 128 Mi values.
pub(crate) fn chunk(vocabulary: usize) -> usize {
    ((1 << 27) / vocabulary.max(1)).clamp(64, 8192)
}

/// What a micro-batch gave, still on the device. Both are sums over its target tokens.
pub(crate) struct Outcome {
    pub loss: Tensor<1>,
    /// Tokens whose most likely successor is the right one.
    pub hits: Tensor<1>,
}

impl Outcome {
    fn zero(device: &Device) -> Self {
        let zero = || Tensor::zeros([1], (device, DType::F32));
        Self { loss: zero(), hits: zero() }
    }

    fn add(&mut self, rows: CrossEntropy) {
        self.loss = self.loss.clone() + rows.loss.sum();
        self.hits = self.hits.clone() + rows.hits.sum();
    }
}

/// A model to train, and the same without a graph.
pub(crate) struct Pair<'a, M> {
    tracked: &'a M,
    plain: M,
    /// Whether the layers draw random numbers.
    random: bool,
}

impl<'a, M: CausalLm> Pair<'a, M> {
    /// `valid` switches dropout off: with it, the one without a graph has to stay on the training
    /// device, which costs some bookkeeping.
    pub fn new(tracked: &'a M) -> Self {
        let random = tracked.is_random();
        let plain = if random { tracked.clone().no_grad() } else { tracked.valid() };
        Self { tracked, plain, random }
    }
}

/// The input of a stretch of layers, while it waits.
enum Kept {
    Device(Tensor<3>),
    Host(TensorData, DType),
}

impl Kept {
    fn new(hidden: Tensor<3>, offload: bool) -> Self {
        let dtype = hidden.dtype();
        if offload {
            Self::Host(params::own(hidden.into_data()), dtype)
        } else {
            Self::Device(hidden)
        }
    }

    fn back(self, device: &Device) -> Tensor<3> {
        match self {
            Self::Device(hidden) => hidden,
            Self::Host(data, dtype) => Tensor::from_data(data, (device, dtype)),
        }
    }
}

/// Runs a micro-batch forward and backward, and adds the gradients of the *sum* of its token losses
/// to `sums`.
///
/// Each stretch of layers is a graph of its own. Forward, all but the last run without one and leave
/// their inputs; backward, each is run again with a graph, which takes the gradient of its output to
/// that of its input and of its parameters. The embedding belongs to the first stretch.
pub(crate) fn run<M: CausalLm>(
    model: &Pair<'_, M>,
    batch: &Batch,
    config: &StepConfig,
    seed: u64,
    sums: &mut Flat,
) -> Outcome {
    let device = model.plain.device().inner();
    let context = model.tracked.context(&batch.segments);
    let stretches = config.recompute.stretches(model.tracked.depth());
    let stretch = |part: &M, number: usize, input: Option<Tensor<3>>| {
        if model.random || config.neftune.is_some() {
            // The same numbers when it is run again.
            device.seed(seed.wrapping_add(number as u64));
        }
        let hidden = input.unwrap_or_else(|| {
            let hidden = part.embed(tokens(batch, &part.embedding_device()), &context);
            match config.neftune {
                Some(alpha) => add_noise(hidden, alpha),
                None => hidden,
            }
        });
        stretches[number].clone().fold(hidden, |hidden, layer| part.layer(layer, hidden, &context))
    };

    let last = stretches.len() - 1;
    let mut kept = Vec::with_capacity(last);
    let mut hidden = None;
    for number in 0..last {
        let output = stretch(&model.plain, number, hidden).inner();
        kept.push(Kept::new(output.clone(), config.offload));
        hidden = Some(output);
    }
    let mut input = hidden.map(|hidden| hidden.autodiff().require_grad());
    let mut output = stretch(model.tracked, last, input.clone());
    let (outcome, mut grad) =
        head(model.tracked, output.clone().inner(), batch, &context, config, sums);

    kept.pop();
    for number in (0..=last).rev() {
        if !output.is_tracked() {
            break; // Nothing is trained in the first stretch.
        }
        let mut found = pull_back(output, grad).backward();
        params::add_gradients(sums, model.tracked, &mut found);
        let Some(before) = input else { break };
        grad = before.grad_remove(&mut found).expect("the input of a stretch has a gradient");
        drop((before, found));
        input = kept.pop().map(|kept| kept.back(&device).autodiff().require_grad());
        output = stretch(model.tracked, number - 1, input.clone());
    }
    outcome
}

/// Loss over the target tokens of a batch, and its gradient at the output of the last layer. Head and
/// loss take some tokens at a time, so that the logits of a batch are never there together.
fn head<M: CausalLm>(
    model: &M,
    hidden: Tensor<3>,
    batch: &Batch,
    context: &M::Context,
    config: &StepConfig,
    sums: &mut Flat,
) -> (Outcome, Tensor<3>) {
    let (shape, device) = (hidden.dims(), hidden.device());
    let [rows, length, width] = shape;
    let hidden = hidden.reshape([rows * length, width]);
    let places = batch.target_places();
    let mut outcome = Outcome::zero(&device);
    let mut grads = Vec::new();
    for places in places.chunks(config.loss_chunk.unwrap_or_else(|| chunk(model.vocabulary()))) {
        let (places, targets) = split(places, &device);
        let chosen = hidden.clone().select(0, places).autodiff().require_grad();
        let logits = model.head(chosen.clone(), context);
        let entropy = cross_entropy(logits.clone().inner(), targets, config.label_smoothing);
        let mut found = pull_back(logits, entropy.grad.clone()).backward();
        params::add_gradients(sums, model, &mut found);
        grads.push(chosen.grad_remove(&mut found).expect("the head's input has a gradient"));
        outcome.add(entropy);
    }
    // Every token takes the gradient of its place; those that are no targets the zeros after them.
    let mut from = vec![places.len() as i32; rows * length];
    for (number, (place, _)) in places.iter().enumerate() {
        from[*place as usize] = number as i32;
    }
    grads.push(Tensor::zeros([1, width], (&device, hidden.dtype())));
    let grad = Tensor::cat(grads, 0).select(0, ints(from, &device));
    (outcome, grad.reshape(shape))
}

/// Loss and hits of a batch, without gradients.
pub(crate) fn evaluate<M: CausalLm>(model: &M, batch: &Batch) -> Outcome {
    let device = model.device();
    let context = model.context(&batch.segments);
    let hidden = (0..model.depth())
        .fold(model.embed(tokens(batch, &model.embedding_device()), &context), |h, layer| {
            model.layer(layer, h, &context)
        });
    let [rows, length, width] = hidden.dims();
    let hidden = hidden.reshape([rows * length, width]);
    let mut outcome = Outcome::zero(&device);
    for places in batch.target_places().chunks(chunk(model.vocabulary())) {
        let (places, targets) = split(places, &device);
        let logits = model.head(hidden.clone().select(0, places), &context);
        outcome.add(cross_entropy(logits, targets, 0.0));
    }
    outcome
}

/// Uniform noise of up to `alpha / sqrt(sequence · hidden)` (arXiv:2310.05914).
fn add_noise(hidden: Tensor<3>, alpha: f32) -> Tensor<3> {
    let [_, length, width] = hidden.dims();
    let most = f64::from(alpha) / ((length * width) as f64).sqrt();
    let noise = hidden.clone().inner().random_like(Distribution::Uniform(-most, most));
    if hidden.is_autodiff() { hidden + noise.autodiff() } else { hidden + noise }
}

fn tokens(batch: &Batch, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = batch.ids.iter().map(|id| *id as i32).collect();
    Tensor::from_data(TensorData::new(ids, [batch.rows, batch.length]), (device, DType::I32))
}

/// Places of target tokens, and their successors.
fn split(places: &[(i32, i32)], device: &Device) -> (Tensor<1, Int>, Tensor<1, Int>) {
    let (places, targets) = places.iter().copied().unzip();
    (ints(places, device), ints(targets, device))
}

fn ints(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}
