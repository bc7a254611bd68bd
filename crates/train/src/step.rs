//! Loss and gradients of one micro-batch.

use crate::{
    course::{Course, StepConfig, Stretch, tile},
    data::Batch,
    objective::{GradientSums, Objective, Outcome},
};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_lora_kernels::{Offloaded, Returning, offload, pull_back, settle_copies};
use burn_lora_llama::{CausalLm, Keep, Kept, Rerun};
use std::ops::Range;

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

/// What is kept of a stretch of layers until its backward pass: its input, unless it embeds the tokens,
/// and what its last layer keeps.
struct Waiting<T, V> {
    input: Option<T>,
    attention: Vec<V>,
    feed_forward: Vec<V>,
    updates: Vec<Option<V>>,
}

/// A tensor that is kept on its device, or in host memory.
enum Stored<const D: usize> {
    Device(Tensor<D>),
    Host(Offloaded<D>),
}

/// A tensor on its way back.
enum Coming<const D: usize> {
    Device(Tensor<D>),
    Host(Returning<D>),
}

impl<const D: usize> Stored<D> {
    fn new(tensor: Tensor<D>, offload: bool) -> Self {
        if offload { Self::Host(self::offload(tensor)) } else { Self::Device(tensor) }
    }

    fn bring_back(self) -> Coming<D> {
        match self {
            Self::Device(tensor) => Coming::Device(tensor),
            Self::Host(tensor) => Coming::Host(tensor.bring_back()),
        }
    }
}

impl<const D: usize> Coming<D> {
    fn arrived(self) -> Tensor<D> {
        match self {
            Self::Device(tensor) => tensor,
            Self::Host(tensor) => tensor.arrived(),
        }
    }
}

impl<T, V> Waiting<T, V> {
    fn map<A, B>(self, input: impl Fn(T) -> A, inside: impl Fn(V) -> B) -> Waiting<A, B> {
        let [attention, feed_forward] = [self.attention, self.feed_forward]
            .map(|values| values.into_iter().map(&inside).collect());
        let updates = self.updates.into_iter().map(|value| value.map(&inside)).collect();
        Waiting { input: self.input.map(input), attention, feed_forward, updates }
    }
}

/// Runs a micro-batch forward and backward, and adds the gradients of the *sum* of its token losses
/// to `sums`.
///
/// Layers run without a graph and leave their inputs and what they keep, but for those that keep their graph
/// ([`Course`]). In the backward pass, [`CausalLm::layer_pull_back`] maps the gradient of a layer's output to
/// those of its input and its parameters, and computes again what is not kept. The embedding belongs to the
/// first stretch.
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
    let tile = tile(batch.rows * batch.length, config.mlp_chunk, model.random);
    let keeps = |layer| model.tracked.keeps(layer, &context);
    let depth = model.tracked.depth();
    let Course { again, graph } = Course::new(config, depth, tile, model.random, keeps);
    // The input of a stretch: the first one embeds the tokens.
    let begin = |part: &M, number: usize, input: Option<Tensor<3>>| {
        if model.random || config.neftune.is_some() {
            // The same numbers when it is run again.
            device.seed(seed.wrapping_add(number as u64));
        }
        input.unwrap_or_else(|| {
            let hidden = part.embed(tokens(batch, &part.embedding_device()), &context);
            match config.neftune {
                Some(alpha) => add_noise(hidden, alpha),
                None => hidden,
            }
        })
    };
    let through = |layers: Range<usize>, hidden: Tensor<3>| {
        layers.fold(hidden, |hidden, layer| model.tracked.layer(layer, hidden, &context))
    };
    let once = |layer, hidden: Tensor<3>, keep| {
        let (output, kept) = model.plain.layer_once(layer, hidden, &context, Rerun { tile, keep });
        (output.inner(), kept)
    };

    let mut kept = Vec::with_capacity(again.len());
    let mut hidden: Option<Tensor<3>> = None;
    for (number, stretch) in again.iter().enumerate() {
        let Stretch { layers, keep, offload, offload_input, .. } = stretch;
        let input = begin(&model.plain, number, hidden.clone());
        let stored = hidden.map(|input| Stored::new(input.inner(), *offload_input));
        let last = layers.end - 1;
        let input = (layers.start..last).fold(input, |h, layer| once(layer, h, Keep::Inputs).0);
        let (output, inside) = once(last, input, *keep);
        // Copies so far had the time of this stretch; those of what it keeps have that of the next.
        hidden = Some(if config.offload { settle_copies(output) } else { output });
        let Kept { attention, feed_forward, updates } = inside;
        let store = |value: Tensor<1>, offload| Stored::new(value.inner(), offload);
        kept.push(Waiting {
            input: stored,
            attention: attention.into_iter().map(|value| store(value, *offload)).collect(),
            feed_forward: feed_forward.into_iter().map(|value| store(value, false)).collect(),
            updates: updates.into_iter().map(|value| Some(store(value?, *offload))).collect(),
        });
    }
    let mut tracked = None;
    if let Some(layers) = graph {
        let input = hidden.map(|hidden| hidden.autodiff().require_grad());
        let output = through(layers, begin(model.tracked, again.len(), input.clone()));
        hidden = Some(output.clone().inner());
        tracked = Some((output, input));
    }
    let hidden = hidden.expect("there is a layer");
    let mut outcome = objective.run(model.tracked, hidden, batch, &context, Some(&mut *sums));
    let mut grad = outcome.grad.take().expect("an objective gives the gradient that is asked for");
    let bring_back = |kept: Waiting<_, _>| kept.map(Stored::bring_back, Stored::bring_back);
    let mut coming = kept.pop().map(bring_back);
    if let Some((output, input)) = tracked {
        match back(pull_back(output, grad), input, model.tracked, sums) {
            Some(before) => grad = before,
            None => return outcome,
        }
    }

    for (number, Stretch { layers, keep, whole, .. }) in again.iter().enumerate().rev() {
        let arrived = coming.expect("each stretch is kept");
        let Waiting { input, attention, feed_forward, updates } =
            arrived.map(Coming::arrived, Coming::arrived);
        let leaf = |input: Tensor<3>| input.autodiff().require_grad();
        let input = input.map(leaf);
        // Early, to arrive while this stretch runs.
        coming = kept.pop().map(bring_back);
        let begin = begin(model.tracked, number, input.clone());
        let last = layers.end - 1;
        // Each layer, with its input and what it kept.
        let mut steps = vec![];
        let mut hidden = begin;
        if *whole {
            // With a graph from the embedding only.
            for layer in layers.start..last {
                let keep = if tile.is_some() { Keep::Attention } else { Keep::All };
                let (output, kept) = once(layer, hidden.clone().inner(), keep);
                steps.push((layer, hidden, kept, keep));
                hidden = leaf(output);
            }
        } else {
            hidden = through(layers.start..last, hidden);
        }
        steps.push((last, hidden, Kept { attention, feed_forward, updates }, *keep));
        while let Some((layer, hidden, kept, keep)) = steps.pop() {
            let input = if steps.is_empty() { input.clone() } else { Some(hidden.clone()) };
            let mut found = |mut found| sums.add(model.tracked, &mut found);
            let (tracked, how) = (model.tracked, Rerun { tile, keep });
            let pulled =
                tracked.layer_pull_back(layer, hidden, &context, grad, kept, how, &mut found);
            match back(pulled, input, model.tracked, sums) {
                Some(before) => grad = before,
                None => return outcome,
            }
        }
    }
    outcome
}

/// Goes backward: adds the gradients of its parameters to `sums`, and returns that of
/// its input, if it has one and something is trained.
fn back<M: CausalLm>(
    pulled: Tensor<1>,
    input: Option<Tensor<3>>,
    model: &M,
    sums: &mut GradientSums,
) -> Option<Tensor<3>> {
    if !pulled.is_tracked() {
        return None; // Nothing is trained in the first segment.
    }
    let mut found = pulled.backward();
    sums.add(model, &mut found);
    let grad = input?.grad_remove(&mut found);
    Some(grad.expect("the input of a segment has a gradient"))
}

/// Computes loss and metrics of a batch, without gradients.
pub(crate) fn evaluate<M: CausalLm>(
    model: &M,
    objective: &dyn Objective<M>,
    batch: &Batch,
) -> Outcome {
    let (hidden, context) = forward(model, batch);
    objective.run(model, hidden, batch, &context, None)
}

/// Computes the states after the last layer, without gradients.
pub(crate) fn forward<M: CausalLm>(model: &M, batch: &Batch) -> (Tensor<3>, M::Context) {
    let context = model.context(&batch.segments);
    let tile = tile(batch.rows * batch.length, None, false);
    let embedded = model.embed(tokens(batch, &model.embedding_device()), &context);
    let how = Rerun { tile, keep: Keep::Inputs };
    let hidden = (0..model.depth()).fold(embedded, |h, i| model.layer_once(i, h, &context, how).0);
    (hidden, context)
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
