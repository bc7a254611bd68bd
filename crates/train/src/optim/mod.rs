//! Optimizers, over parameters as vectors.

mod adamw;
mod simple;

use crate::TrainError;
use adamw::AdamW;
use burn::{
    optim::{LionConfig, SgdConfig, momentum::MomentumConfig},
    tensor::{DType, Device, Tensor, TensorData},
};
use serde::{Deserialize, Serialize};
use simple::Simple;
use std::{collections::BTreeMap, path::Path};

/// Which optimizer, with its settings. The learning rate and the weight decay are the run's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Optimizer {
    /// AdamW with PyTorch's arithmetic (arXiv:1711.05101): with `m` and `v` the moving averages of
    /// the gradient and its square, and `t` the number of the step,
    /// `p ← p · (1 - rate · decay) - rate / (1 - β₁ᵗ) · m / (sqrt(v) / sqrt(1 - β₂ᵗ) + eps)`.
    AdamW {
        /// The decay of the average of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// The decay of the average of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the average of squares.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// AdamW with bitsandbytes' 8-bit averages (arXiv:2110.02861): 2 bytes an element instead of 8.
    /// Blocks of 256 share a scale; parameters of fewer than 4096 elements keep float32. The decay
    /// comes after the step: `p ← (p - rate / (1 - β₁ᵗ) · ...) · (1 - rate · decay)`.
    AdamW8bit {
        /// The decay of the average of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// The decay of the average of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the average of squares.
        #[serde(default = "eps")]
        eps: f64,
    },
    /// Lion (arXiv:2302.06675), Burn's: with `m` an average of gradients,
    /// `p ← p · (1 - rate · decay) - rate · sign(β₁ m + (1 - β₁) g)`, `m ← β₂ m + (1 - β₂) g`. Rates
    /// are about a tenth of AdamW's.
    Lion {
        /// The part of the average in the direction.
        #[serde(default = "beta1")]
        beta1: f64,
        /// The decay of the average.
        #[serde(default = "lion_beta2")]
        beta2: f64,
    },
    /// Stochastic gradient descent, Burn's: `m ← momentum · m + g`,
    /// `p ← p · (1 - rate · decay) - rate · m`.
    Sgd {
        /// The decay of the sum of gradients; without one there is no state.
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

const fn lion_beta2() -> f64 {
    0.99
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::adamw()
    }
}

impl Optimizer {
    /// AdamW with PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8.
    pub const fn adamw() -> Self {
        Self::AdamW { beta1: beta1(), beta2: beta2(), eps: eps() }
    }

    /// AdamW with averages in 8 bits, and the same settings.
    pub const fn adamw_8bit() -> Self {
        Self::AdamW8bit { beta1: beta1(), beta2: beta2(), eps: eps() }
    }

    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let (betas, eps) = match *self {
            Self::AdamW { beta1, beta2, eps } | Self::AdamW8bit { beta1, beta2, eps } => {
                ([("beta1", beta1), ("beta2", beta2)], eps)
            }
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

    /// Bytes of the state of a parameter of `len` elements.
    pub(crate) fn state_bytes(&self, len: usize) -> usize {
        match self {
            Self::AdamW { .. } => AdamW::state_bytes(len, false),
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

    /// The optimizer before its first step.
    pub fn init(self) -> Box<dyn Running> {
        match self {
            Self::AdamW { beta1, beta2, eps } => Box::new(AdamW::new(beta1, beta2, eps, false)),
            Self::AdamW8bit { beta1, beta2, eps } => Box::new(AdamW::new(beta1, beta2, eps, true)),
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

/// An optimizer at work: its settings and its state.
pub trait Running: Send {
    /// Begins a step: each parameter is updated once in it.
    fn begin(&mut self);

    /// The parameter's new value. It takes the place of the old one in memory, where nothing else
    /// holds that.
    ///
    /// # Panics
    /// If the vectors are not of one length, in float32 and on one device.
    fn update(&mut self, update: Update<'_>) -> Tensor<1>;

    /// All that a checkpoint needs, beside the number of steps.
    fn state(&self) -> State;

    /// Goes on, bit for bit, from the state that `file` had after `step` steps, for parameters of
    /// these paths and lengths.
    ///
    /// # Errors
    /// If the state of a parameter is missing, or has another length or dtype, or if there is state of
    /// something else.
    fn load(
        &mut self,
        step: usize,
        state: State,
        lengths: &BTreeMap<String, usize>,
        file: &Path,
        device: &Device,
    ) -> Result<(), TrainError>;
}

/// The tensors of an optimizer by name, for a checkpoint.
pub type State = BTreeMap<String, TensorData>;

/// What one update of a parameter is about. Vectors are in float32 and without a graph.
pub struct Update<'a> {
    /// Its path in the model.
    pub path: &'a str,
    /// Its value.
    pub param: Tensor<1>,
    /// Its gradient.
    pub grad: Tensor<1>,
    /// What the gradient is multiplied by, `[1]`: one over the target tokens, and the clipping.
    pub factor: Tensor<1>,
    /// The learning rate.
    pub rate: f64,
    /// The weight decay.
    pub decay: f64,
}

/// A vector of a checkpoint.
fn take(
    state: &mut State,
    name: &str,
    len: usize,
    dtype: DType,
    file: &Path,
) -> Result<TensorData, TrainError> {
    let Some(data) = state.remove(name) else {
        return Err(TrainError::format(file, format!("it has no `{name}`")));
    };
    let found = (data.num_elements(), data.dtype());
    if found != (len, dtype) {
        let (elements, kind) = found;
        let reason =
            format!("`{name}` has {elements} elements in {kind:?}, not {len} in {dtype:?}");
        return Err(TrainError::format(file, reason));
    }
    Ok(data)
}

/// Nothing may be left of a state: it would be of a parameter that this run does not train.
fn all_taken(state: &State, file: &Path) -> Result<(), TrainError> {
    match state.keys().next() {
        Some(name) => Err(TrainError::format(file, format!("`{name}` is of no trained parameter"))),
        None => Ok(()),
    }
}
