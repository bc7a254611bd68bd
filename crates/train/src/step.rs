//! Loss and gradients of one micro-batch.

use crate::{
    data::Batch,
    objective::{GradientSums, Objective, Outcome},
    recompute::Recompute,
};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_lora_kernels::{Offloaded, Returning, offload, pull_back, settle_copies};
use burn_lora_llama::{CausalLm, Keep, Rerun};
use std::ops::Range;

/// Settings of the computation of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepConfig {
    pub recompute: Recompute,
    /// Whether the inputs of the layers are kept in host memory until the backward pass.
    pub offload: bool,
    /// What is kept of the layers that are run again.
    pub keep: Keep,
    /// Number of these layers, the last ones, that keep all of their attention on the device.
    pub keep_attention_of: usize,
    /// Tokens at a time in feed-forward blocks: see [`tile`].
    pub mlp_chunk: Option<usize>,
    /// NEFTune's alpha (arXiv:2310.05914).
    pub neftune: Option<f32>,
}

impl StepConfig {
    /// Returns what a segment, of so many that are run again, keeps of its last layer, and whether that
    /// waits in host memory. `random`: the layers draw random numbers, in another order if something is
    /// kept.
    pub fn keep(&self, number: usize, again: usize, random: bool) -> (Keep, bool) {
        if random {
            return (Keep::Inputs, false);
        }
        match again - number <= self.keep_attention_of {
            true => (Keep::Attention, false),
            false => (self.keep, self.offload),
        }
    }
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

/// What is kept of a segment of layers until its backward pass: its input, unless it embeds the tokens,
/// and what its last layer keeps.
struct Kept<T, V> {
    input: Option<T>,
    inside: Vec<V>,
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

impl<T, V> Kept<T, V> {
    fn map<A, B>(self, input: impl Fn(T) -> A, inside: impl Fn(V) -> B) -> Kept<A, B> {
        let inside = self.inside.into_iter().map(inside).collect();
        Kept { input: self.input.map(input), inside }
    }
}

/// Returns how many tokens of a batch a layer computes at a time of what it computes for each alone, if
/// not all: as is asked for, or 8,192 of more. `random`: the layers draw random numbers, which would
/// differ.
pub(crate) fn tile(tokens: usize, chunk: Option<usize>, random: bool) -> Option<usize> {
    let tile = chunk.unwrap_or(8192);
    (tokens > tile && !random).then_some(tile)
}

/// Runs a micro-batch forward and backward, and adds the gradients of the *sum* of its token losses
/// to `sums`.
///
/// Each segment of layers is a graph of its own. In the forward pass, all but the last run without
/// a graph and leave their inputs; in the backward pass, each is run again with a graph, which maps
/// the gradient of its output to those of its input and its parameters; that output is not needed
/// ([`CausalLm::layer_pull_back`]). The embedding belongs to the first segment. In tiles
/// ([`tile`]) a last segment of one layer is run again like the others.
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
    let tile = tile(batch.rows * batch.length, config.mlp_chunk, model.random);
    let outer = Rerun { tile, keep: Keep::Inputs };
    // The input of a segment's layers: the first segment embeds the tokens.
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

    let last = segments.len() - 1;
    let again = if tile.is_some() && segments[last].len() == 1 { last + 1 } else { last };
    // How a segment's last layer is run again, and whether what it keeps waits in host memory.
    let how = |number: usize| {
        let (keep, offload) = config.keep(number, again, model.random);
        (Rerun { tile, keep }, offload)
    };
    let mut kept = Vec::with_capacity(again);
    let mut hidden: Option<Tensor<3>> = None;
    for (number, layers) in segments[..again].iter().enumerate() {
        let plain = &model.plain;
        let input = begin(plain, number, hidden.clone());
        let stored = hidden.map(|input| Stored::new(input.inner(), config.offload));
        let before = layers.start..layers.end - 1;
        let input = before.fold(input, |h, i| plain.layer_once(i, h, &context, outer).0);
        let (how, offload) = how(number);
        let (output, inside) = plain.layer_once(layers.end - 1, input, &context, how);
        // Copies so far had the time of this segment; those of what it keeps have that of the next.
        let output = output.inner();
        hidden = Some(if config.offload { settle_copies(output) } else { output });
        let inside = inside.into_iter().map(|inside| Stored::new(inside.inner(), offload));
        kept.push(Kept { input: stored, inside: inside.collect() });
    }
    let mut tracked = None;
    if again == last {
        let input = hidden.map(|hidden| hidden.autodiff().require_grad());
        let output = through(segments[last].clone(), begin(model.tracked, last, input.clone()));
        hidden = Some(output.clone().inner());
        tracked = Some((output, input));
    }
    let hidden = hidden.expect("there is a segment");
    let mut outcome = objective.run(model.tracked, hidden, batch, &context, Some(&mut *sums));
    let mut grad = outcome.grad.take().expect("an objective gives the gradient that is asked for");
    let bring_back = |kept: Kept<_, _>| kept.map(Stored::bring_back, Stored::bring_back);
    let mut coming = kept.pop().map(bring_back);
    if let Some((output, input)) = tracked {
        match back(pull_back(output, grad), input, model.tracked, sums) {
            Some(before) => grad = before,
            None => return outcome,
        }
    }

    for number in (0..again).rev() {
        let arrived = coming.expect("each segment that is run again is kept");
        let Kept { input, inside } = arrived.map(Coming::arrived, Coming::arrived);
        let input = input.map(|input| input.autodiff().require_grad());
        // Early, to arrive while this segment runs.
        coming = kept.pop().map(bring_back);
        // It has layers.
        let Range { start, end } = segments[number].clone();
        let hidden = begin(model.tracked, number, input.clone());
        let hidden = through(start..end - 1, hidden);
        let mut found = |mut found| sums.add(model.tracked, &mut found);
        let layer = end - 1;
        let pulled = model.tracked.layer_pull_back(
            layer,
            hidden,
            &context,
            grad,
            inside,
            how(number).0,
            &mut found,
        );
        match back(pulled, input, model.tracked, sums) {
            Some(before) => grad = before,
            None => break,
        }
    }
    outcome
}

/// Goes backward through a segment: adds the gradients of its parameters to `sums`, and returns that of
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
    let context = model.context(&batch.segments);
    let tile = tile(batch.rows * batch.length, None, false);
    let embedded = model.embed(tokens(batch, &model.embedding_device()), &context);
    let how = Rerun { tile, keep: Keep::Inputs };
    let hidden = (0..model.depth()).fold(embedded, |h, i| model.layer_once(i, h, &context, how).0);
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
