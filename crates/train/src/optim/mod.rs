//! Optimizers, over parameters as vectors.

mod adamw;

pub(crate) use adamw::AdamW;

use crate::TrainError;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        let Self::AdamW { beta1, beta2, eps } = self;
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(value) {
                return Err(TrainError::setting(name, value, "it has to be in [0, 1)"));
            }
        }
        if !(*eps >= 0.0 && eps.is_finite()) {
            return Err(TrainError::setting("eps", eps, "it has to be 0 or more"));
        }
        Ok(())
    }

    pub(crate) fn init(self) -> AdamW {
        let Self::AdamW { beta1, beta2, eps } = self;
        AdamW::new(beta1, beta2, eps)
    }
}

/// The tensors of an optimizer by name, for a checkpoint.
pub(crate) type State = BTreeMap<String, TensorData>;

/// What one update of a parameter is about.
pub(crate) struct Update<'a> {
    /// Its path in the model.
    pub path: &'a str,
    pub param: Tensor<1>,
    pub grad: Tensor<1>,
    /// What the gradient is multiplied by, `[1]`: one over the target tokens, and the clipping.
    pub factor: Tensor<1>,
    pub rate: f64,
    pub decay: f64,
}

/// A vector of a checkpoint.
fn vector(state: &mut State, name: &str, device: &Device) -> Option<Tensor<1>> {
    let data = state.remove(name)?;
    let dtype = data.dtype();
    Some(Tensor::from_data(data, (device, dtype)))
}
