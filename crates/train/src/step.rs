//! Loss and gradients of one micro-batch.

use crate::{
    data::Batch,
    objective::{GradientSums, Objective, Outcome},
    params,
    recompute::Recompute,
};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_lora_kernels::pull_back;
use burn_lora_llama::CausalLm;
use std::ops::Range;

/// Settings of the computation of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepConfig {
    pub recompute: Recompute,
    /// Whether the inputs of the layers are kept in host memory until the backward pass.
    pub offload: bool,
    /// NEFTune's alpha (arXiv:2310.05914).
    pub neftune: Option<f32>,
}

/// A model to train, and its copy without a graph.
pub(crate) struct Pair<'a, M> {
    tracked: &'a M,
    plain: M,
    /// Whether the layers draw random numbers.
    random: bool,
}

impl<'a, M: CausalLm> Pair<'a, M> {
    /// `valid` disables dropout: with dropout, the copy without a graph has to stay on the training
    /// device, which costs some bookkeeping.
    pub fn new(tracked: &'a M) -> Self {
        let random = tracked.is_random();
        let plain = if random { tracked.clone().no_grad() } else { tracked.valid() };
        Self { tracked, plain, random }
    }
}

/// Input of a segment of layers, kept until its backward pass.
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
/// Each segment of layers is a graph of its own. In the forward pass, all but the last run without
/// a graph and leave their inputs; in the backward pass, each is run again with a graph, which maps
/// the gradient of its output to those of its input and its parameters; that output is not needed
/// ([`CausalLm::layer_pull_back`]). The embedding belongs to the first segment.
pub(crate) fn run<M: CausalLm>(
    model: &Pair<'_, M>,
    objective: &dyn Objective<M>,
    batch: &Batch,
    config: &StepConfig,
    seed: u64,
    sums: &mut GradientSums,
) -> Outcome {
    let device = model.plain.device().inner();
    let context = model.tracked.context(&batch.segments);
    let segments = config.recompute.segments(model.tracked.depth());
    // The given layers of a segment, its first ones.
    let forward = |part: &M, number: usize, layers: Range<usize>, input: Option<Tensor<3>>| {
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
        layers.fold(hidden, |hidden, layer| part.layer(layer, hidden, &context))
    };

    let last = segments.len() - 1;
    let mut kept = Vec::with_capacity(last);
    let mut hidden = None;
    for (number, layers) in segments[..last].iter().enumerate() {
        let output = forward(&model.plain, number, layers.clone(), hidden).inner();
        // That of the last segment is needed at once.
        if number + 1 < last {
            kept.push(Kept::new(output.clone(), config.offload));
        }
        hidden = Some(output);
    }
    let mut input = hidden.map(|hidden| hidden.autodiff().require_grad());
    let output = forward(model.tracked, last, segments[last].clone(), input.clone());
    let hidden = output.clone().inner();
    let mut outcome = objective.run(model.tracked, hidden, batch, &context, Some(&mut *sums));
    let grad = outcome.grad.take().expect("an objective gives the gradient that is asked for");
    let mut pulled = pull_back(output, grad);

    for number in (0..=last).rev() {
        if !pulled.is_tracked() {
            break; // Nothing is trained in the first segment.
        }
        let mut found = pulled.backward();
        drop(pulled);
        sums.add(model.tracked, &mut found);
        let Some(before) = input else { break };
        let grad = before.grad_remove(&mut found).expect("the input of a segment has a gradient");
        drop((before, found));
        input = kept.pop().map(|kept| kept.back(&device).autodiff().require_grad());
        // Not the last segment: it has layers.
        let Range { start, end } = segments[number - 1].clone();
        let hidden = forward(model.tracked, number - 1, start..end - 1, input.clone());
        pulled = model.tracked.layer_pull_back(end - 1, hidden, &context, grad);
    }
    outcome
}

/// Computes loss and metrics of a batch, without gradients.
pub(crate) fn evaluate<M: CausalLm>(
    model: &M,
    objective: &dyn Objective<M>,
    batch: &Batch,
) -> Outcome {
    let context = model.context(&batch.segments);
    let hidden = (0..model.depth())
        .fold(model.embed(tokens(batch, &model.embedding_device()), &context), |h, layer| {
            model.layer(layer, h, &context)
        });
    objective.run(model, hidden, batch, &context, None)
}

/// Adds uniform noise of up to `alpha / sqrt(sequence · hidden)` (arXiv:2310.05914).
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
