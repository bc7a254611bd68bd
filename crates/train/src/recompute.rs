//! Which layers are run again in the backward pass.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Layer recomputation ("gradient checkpointing", arXiv:1604.06174): what lies inside of a stretch of
/// layers is not kept for the backward pass, only what goes into it; the stretch is run again when its
/// gradients are due. The gradients are the same; memory falls, and a forward pass is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Keep everything: the fastest, where the memory is there.
    None,
    /// Keep the input of every layer.
    #[default]
    EveryLayer,
    /// Keep the input of every n-th layer: fewer inputs, but the insides of n layers at a time.
    Every(usize),
}

impl Recompute {
    /// The stretches of `depth` layers. The insides of the last are always kept: its backward pass
    /// comes at once.
    pub(crate) fn stretches(self, depth: usize) -> Vec<Range<usize>> {
        let length = match self {
            Self::None => depth,
            Self::EveryLayer => 1,
            Self::Every(count) => count,
        };
        let length = length.max(1);
        let starts = (0..depth.max(1)).step_by(length);
        starts.map(|start| start..start.saturating_add(length).min(depth)).collect()
    }
}
