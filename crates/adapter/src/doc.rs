//! The model of the doc examples.

use crate::{adaptable, linear::AdaptedLinear};
use burn::{module::Module, nn::LinearConfig, tensor::Device};

/// A model of one linear layer.
#[derive(Module, Debug)]
pub struct Model {
    /// Linear layer, `[16, 16]`.
    pub linear: AdaptedLinear,
}

adaptable!(Model { linear });

/// Creates the model on the default device.
pub fn model() -> Model {
    Model { linear: LinearConfig::new(16, 16).init(&Device::default()).into() }
}
