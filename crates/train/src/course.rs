//! How a step goes through the layers: which of them run without a graph, and what they keep.

use crate::recompute::Recompute;
use burn_lora_llama::Keep;
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

/// Some layers that run without a graph, and again for their backward pass. They leave their input, and
/// what the last of them keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stretch {
    pub layers: Range<usize>,
    /// What the last layer keeps.
    pub keep: Keep,
    /// Whether what it keeps of its attention, and of low-rank updates, waits in host memory.
    pub offload: bool,
    /// Whether its input does.
    pub offload_input: bool,
    /// Whether each of the layers goes backward without a graph
    /// ([`CausalLm::keeps`](burn_lora_llama::CausalLm::keeps)).
    pub whole: bool,
}

/// All layers: stretches, and behind them those that keep their graph.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Course {
    pub again: Vec<Stretch>,
    pub graph: Option<Range<usize>>,
}

impl Course {
    /// Plans the way through `depth` layers, in [tiles](tile) or not. `random`: the layers draw
    /// random numbers, in another order if something is kept. `keeps`: whether a layer can keep all that its
    /// backward pass needs.
    ///
    /// The layers that are not run again keep that, or their graph. In tiles a last layer by itself is run
    /// again like the others.
    pub fn new(
        config: &StepConfig,
        depth: usize,
        tile: Option<usize>,
        random: bool,
        keeps: impl Fn(usize) -> bool,
    ) -> Self {
        let mut segments = config.recompute.segments(depth);
        let whole = |layers: &Range<usize>| !random && layers.clone().all(&keeps);
        let last = segments.pop().expect("there is a layer");
        let (mut all, mut graph) = (vec![], None);
        if tile.is_some() && last.len() == 1 {
            segments.push(last);
        } else if whole(&last) && !last.is_empty() {
            all = last.map(|layer| layer..layer + 1).collect();
        } else {
            graph = Some(last);
        }
        let again = segments.len();
        let stretches = segments.into_iter().enumerate().map(|(number, layers)| {
            let (keep, offload) = match random {
                true => (Keep::Inputs, false),
                false if again - number <= config.keep_attention_of => {
                    (config.keep.max(Keep::Attention), false)
                }
                false => (config.keep, config.offload),
            };
            let offload_input = config.offload;
            Stretch { whole: whole(&layers), layers, keep, offload, offload_input }
        });
        let all = all.into_iter().map(|layers| {
            let offload = config.offload;
            Stretch { layers, keep: Keep::All, offload, offload_input: offload, whole: true }
        });
        let mut again: Vec<_> = stretches.chain(all).collect();
        if let (Some(last), None) = (again.last_mut(), &graph) {
            // Its backward pass comes first: it would wait for what has only just left.
            (last.offload, last.offload_input) = (false, false);
        }
        Self { again, graph }
    }
}

/// Returns how many tokens of a batch a layer computes at a time of what it computes for each alone, if
/// not all: as is asked for, or 8,192 of more. `random`: the layers draw random numbers, which would
/// differ.
pub(crate) fn tile(tokens: usize, chunk: Option<usize>, random: bool) -> Option<usize> {
    let tile = chunk.unwrap_or(8192);
    (tokens > tile && !random).then_some(tile)
}
