//! The memory of a run, part by part.

use std::fmt;

/// What CUDA itself takes of a GPU: 527 MiB on an H200 (`docs/MEASUREMENTS.md`).
const CONTEXT: u64 = 527 << 20;

/// When a step needs most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moment {
    /// At the end of the forward pass, in the head and the loss.
    #[default]
    Loss,
    /// In an MLP: backward, where there are gradients.
    Mlp,
    /// In an attention: backward, where there are gradients.
    Attention,
    /// When the optimizer changes the parameters.
    Update,
}

/// What is in memory at one moment, in bytes. `Display` is a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// The frozen model.
    pub base: u64,
    /// The adapter: A, B, magnitudes, copies that are trained.
    pub adapter: u64,
    /// The state of the optimizer.
    pub optimizer: u64,
    /// Gradients of trained parameters.
    pub gradients: u64,
    /// The inputs that layers are run again from.
    pub inputs: u64,
    /// What layers keep for their backward pass, and its gradients.
    pub activations: u64,
    /// The logits of a chunk of tokens, their gradient, and what the chunks before gave.
    pub loss: u64,
    /// What does not outlive an operation: a decoded weight, scores, cuBLASLt's workspace.
    pub scratch: u64,
    /// In host memory instead: embeddings, offloaded inputs. Not part of [`total`](Self::total).
    pub host: u64,
    /// Which moment it is.
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

    /// All but what is in host memory.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What a GPU has to have for it: a tenth more, because CubeCL's pool reserves whole pages and has
    /// gaps, and CUDA's own half a GiB. Where there was room the pool reserved 4 to 20 % more than was in
    /// use (`docs/MEASUREMENTS.md`); with less it moves what is there together, which was not measured.
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
