//! Memory of a run, by part.

use serde::Serialize;
use std::fmt;

/// Memory of a GPU that CUDA itself takes: 527 MiB on an H200 (`docs/MEASUREMENTS.md`).
const CONTEXT: u64 = 527 << 20;

/// Moment of a step at which memory peaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Moment {
    /// At the end of the forward pass, in the head and the loss.
    #[default]
    Loss,
    /// In an MLP: backward, where there are gradients.
    Mlp,
    /// In an attention: backward, where there are gradients.
    Attention,
    /// When the optimizer updates the parameters.
    Update,
}

/// Memory in use at one moment, in bytes. `Display` is a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// Frozen model.
    pub base: u64,
    /// Adapter: A, B, magnitudes, trained copies.
    pub adapter: u64,
    /// Optimizer state.
    pub optimizer: u64,
    /// Gradients of trained parameters.
    pub gradients: u64,
    /// Inputs from which layers are recomputed.
    pub inputs: u64,
    /// Activations that layers keep for their backward pass, and their gradients.
    pub activations: u64,
    /// Logits of a chunk of tokens, their gradient, and the gradients of the chunks before.
    pub loss: u64,
    /// Temporaries of an operation: a decoded weight, attention scores, cuBLASLt's workspace.
    pub scratch: u64,
    /// Host memory: embeddings, offloaded inputs. Not part of [`total`](Self::total).
    pub host: u64,
    /// Moment of the peak.
    pub moment: Moment,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loss => "in the loss",
            Self::Mlp => "in an MLP",
            Self::Attention => "in an attention",
            Self::Update => "in the optimizer",
        })
    }
}

impl Memory {
    fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("base", self.base),
            ("adapter", self.adapter),
            ("optimizer", self.optimizer),
            ("gradients", self.gradients),
            ("kept inputs", self.inputs),
            ("activations", self.activations),
            ("loss chunk", self.loss),
            ("scratch", self.scratch),
        ]
    }

    /// Returns the bytes of all parts but host memory.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the GPU memory required: a tenth more than the total, because CubeCL's pool reserves
    /// whole pages and has gaps, and CUDA's own half a GiB. With memory to spare, the pool reserved
    /// 4 to 20 % more than was in use (`docs/MEASUREMENTS.md`); with less, it moves its contents
    /// together, which was not measured.
    pub fn needed(&self) -> u64 {
        let total = self.total();
        total + total / 10 + CONTEXT
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let mut row = |name: &str, bytes| writeln!(f, "  {name:<28}{:>9.2} GiB", gib(bytes));
        for (name, bytes) in self.parts() {
            row(name, bytes)?;
        }
        row(&format!("peak, {}", self.moment), self.total())?;
        if self.host > 0 {
            row("in host memory", self.host)?;
        }
        write!(f, "  {:<28}{:>9.2} GiB", "a GPU has to have", gib(self.needed()))
    }
}
