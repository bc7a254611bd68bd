//! Optimizers, over parameters as vectors.

mod adamw;
mod optimizer;
mod simple;

pub use optimizer::{Optimizer, State, Update};

use crate::TrainError;
use adamw::{AdamW, Arithmetic};
use burn::optim::{LionConfig, SgdConfig, momentum::MomentumConfig};
use serde::{Deserialize, Serialize};
use simple::Simple;

/// Optimizer and its settings. The learning rate and the weight decay are those of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// AdamW with PyTorch's arithmetic (arXiv:1711.05101): with `m` and `v` the moving averages of
    /// the gradient and its square, and `t` the number of the step,
    /// `p ← p · (1 - rate · decay) - rate / (1 - β₁ᵗ) · m / (sqrt(v) / sqrt(1 - β₂ᵗ) + eps)`.
    AdamW {
        /// Decay of the average of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the average of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the average of squares.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// AdamW with bitsandbytes' 8-bit averages (arXiv:2110.02861): 2 bytes per element instead of
    /// 8. Blocks of 256 share a scale; parameters of fewer than 4096 elements keep float32. The
    /// decay comes after the step: `p ← (p - rate / (1 - β₁ᵗ) · ...) · (1 - rate · decay)`.
    AdamW8bit {
        /// Decay of the average of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the average of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the average of squares.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// LoRA-FA (arXiv:2308.03303) as PEFT's `create_lorafa_optimizer` has it. A run with it freezes A
    /// of the trained adapters ([`freeze_a`](burn_lora_adapter::AdaptableExt::freeze_a)) and multiplies
    /// the gradient of each B, once it is clipped, by
    /// [`(A · Aᵀ + 1e-8 · I)⁺ / s²`](burn_lora_adapter::AdaptableExt::lora_fa), with `s` the scaling of
    /// the adapter. The step of every parameter is that of the AdamW which transformers had:
    /// `p ← (p - rate · sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (sqrt(v) + eps)) · (1 - rate · decay)`.
    /// The adapter has to be LoRA of linear layers, without DoRA.
    LoraFa {
        /// Decay of the average of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the average of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the average of squares.
        #[serde(default = "lora_fa_eps")]
        eps: f64,
    },
    /// Lion (arXiv:2302.06675), Burn's: with `m` an average of gradients,
    /// `p ← p · (1 - rate · decay) - rate · sign(β₁ m + (1 - β₁) g)`, `m ← β₂ m + (1 - β₂) g`. Rates
    /// are about a tenth of AdamW's.
    Lion {
        /// Weight of the average in the direction.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the average.
        #[serde(default = "lion_beta2")]
        beta2: f64,
    },
    /// Stochastic gradient descent, Burn's: `m ← momentum · m + g`,
    /// `p ← p · (1 - rate · decay) - rate · m`.
    Sgd {
        /// Decay of the sum of gradients; without momentum there is no state.
        #[serde(default)]
        momentum: f64,
    },
}

const fn beta1() -> f64 {
    0.9
}

const fn beta2() -> f64 {
    0.999
}

const fn eps() -> f64 {
    1e-8
}

const fn lora_fa_eps() -> f64 {
    1e-6
}

const fn lion_beta2() -> f64 {
    0.99
}

impl Default for OptimizerConfig {
    /// [`adamw`](Self::adamw).
    fn default() -> Self {
        Self::adamw()
    }
}

impl OptimizerConfig {
    /// AdamW with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8.
    pub const fn adamw() -> Self {
        Self::AdamW { beta1: beta1(), beta2: beta2(), eps: eps() }
    }

    /// AdamW with averages in 8 bits, and the same settings.
    pub const fn adamw_8bit() -> Self {
        Self::AdamW8bit { beta1: beta1(), beta2: beta2(), eps: eps() }
    }

    /// LoRA-FA with PEFT's defaults: betas 0.9 and 0.999, eps 1e-6.
    pub const fn lora_fa() -> Self {
        Self::LoraFa { beta1: beta1(), beta2: beta2(), eps: lora_fa_eps() }
    }

    /// Returns `true` if a step has about the size of the learning rate in each value, whatever the size of
    /// the gradients: all but SGD.
    pub(crate) const fn is_normalized(&self) -> bool {
        !matches!(self, Self::Sgd { .. })
    }

    /// Name in files.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::AdamW { .. } => "adamw",
            Self::AdamW8bit { .. } => "adamw8bit",
            Self::LoraFa { .. } => "lorafa",
            Self::Lion { .. } => "lion",
            Self::Sgd { .. } => "sgd",
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is out of its range.
    pub fn validate(&self) -> Result<(), TrainError> {
        let (betas, eps) = match *self {
            Self::AdamW { beta1, beta2, eps }
            | Self::AdamW8bit { beta1, beta2, eps }
            | Self::LoraFa { beta1, beta2, eps } => ([("beta1", beta1), ("beta2", beta2)], eps),
            Self::Lion { beta1, beta2 } => ([("beta1", beta1), ("beta2", beta2)], 0.0),
            Self::Sgd { momentum } => ([("momentum", momentum); 2], 0.0),
        };
        for (name, value) in betas {
            if !(0.0..1.0).contains(&value) {
                return Err(TrainError::setting(name, value, "it has to be in [0, 1)"));
            }
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(TrainError::setting("eps", eps, "it has to be 0 or more"));
        }
        Ok(())
    }

    /// Returns the bytes of the state of a parameter of `len` elements.
    pub(crate) fn state_bytes(&self, len: usize) -> usize {
        match self {
            Self::AdamW { .. } | Self::LoraFa { .. } => AdamW::state_bytes(len, false),
            Self::AdamW8bit { .. } => AdamW::state_bytes(len, true),
            Self::Lion { .. } => 4 * len,
            Self::Sgd { momentum } => {
                if *momentum > 0.0 {
                    4 * len
                } else {
                    0
                }
            }
        }
    }

    /// Creates the optimizer, before its first step. That of LoRA-FA takes the gradients that its run
    /// has multiplied.
    pub fn init(self) -> Box<dyn Optimizer> {
        match self {
            Self::AdamW { beta1, beta2, eps } => {
                Box::new(AdamW::new(beta1, beta2, eps, Arithmetic::PyTorch))
            }
            Self::AdamW8bit { beta1, beta2, eps } => {
                Box::new(AdamW::new(beta1, beta2, eps, Arithmetic::BitsAndBytes))
            }
            Self::LoraFa { beta1, beta2, eps } => {
                Box::new(AdamW::new(beta1, beta2, eps, Arithmetic::Transformers))
            }
            Self::Lion { beta1, beta2 } => {
                let config = LionConfig::new().with_beta_1(beta1 as f32);
                Box::new(Simple::new(config.with_beta_2(beta2 as f32).build(), 1))
            }
            Self::Sgd { momentum } => {
                let momentum = MomentumConfig { momentum, dampening: 0.0, nesterov: false };
                let used = (momentum.momentum > 0.0).then_some(momentum);
                let tensors = usize::from(used.is_some());
                Box::new(Simple::new(SgdConfig::new().with_momentum(used).build(), tensors))
            }
        }
    }
}
