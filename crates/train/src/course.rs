//! How a step goes through the layers: which of them run without a graph, and what they keep.

use crate::step::StepConfig;
use burn_lora_llama::Keep;
use std::ops::Range;

/// Some layers that run without a graph, and again for their backward pass. They leave their input, and
/// what the last of them keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stretch {
    pub layers: Range<usize>,
    /// What the last layer keeps.
    pub keep: Keep,
    /// Whether what it keeps of its attention waits in host memory.
    pub offload: bool,
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
    /// Plans the way through `depth` layers, in [tiles](crate::step::tile) or not. `random`: the layers draw
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
            Stretch { whole: whole(&layers), layers, keep, offload }
        });
        let all = all.into_iter().map(|layers| {
            let offload = config.offload;
            Stretch { layers, keep: Keep::All, offload, whole: true }
        });
        Self { again: stretches.chain(all).collect(), graph }
    }
}
