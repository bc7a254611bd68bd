//! Recomputation of layers in the backward pass.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Layer recomputation ("gradient checkpointing", arXiv:1604.06174): of a segment of layers only
/// the input is kept for the backward pass, not the intermediate activations; the segment is run
/// again when its gradients are due. The gradients are the same; memory falls, at the cost of a
/// second forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Keeps all activations: the fastest, if memory suffices.
    None,
    /// Keeps the input of every layer.
    #[default]
    EveryLayer,
    /// Keeps the input of every n-th layer: fewer inputs, but the activations of n layers at a
    /// time.
    Every(usize),
    /// Keeps the activations of the last n layers, and of the others the input of every layer:
    /// [`MemoryPlan::train_within`](crate::MemoryPlan::train_within) has the n for a memory.
    AllBut(usize),
}

impl Recompute {
    /// Segments of `depth` layers. The activations of the last are always kept: its backward pass
    /// comes at once.
    pub(crate) fn segments(self, depth: usize) -> Vec<Range<usize>> {
        let kept = match self {
            Self::None => depth,
            Self::EveryLayer => 1,
            Self::AllBut(kept) => kept.max(1),
            Self::Every(count) => {
                let starts = (0..depth.max(1)).step_by(count.max(1));
                return starts.map(|start| start..start.saturating_add(count).min(depth)).collect();
            }
        };
        let from = depth.saturating_sub(kept);
        (0..from).map(|layer| layer..layer + 1).chain(std::iter::once(from..depth)).collect()
    }
}
