//! RMSNorm.

use super::Parameters;
use crate::{context::Context, error::LlamaError};
use burn::{module::Module, tensor::Tensor};
use burn_lora_adapter::{Adaptable, AdaptedVector, Layers, LayersMut};
use burn_lora_kernels::{NormSpec, rms_norm};

/// RMSNorm, computed in float32.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Weight, `[width]`.
    pub weight: AdaptedVector,
    /// Epsilon, and offset of the weight.
    #[module(skip)]
    pub spec: NormSpec,
}

impl RmsNorm {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        width: usize,
        spec: NormSpec,
    ) -> Result<Self, LlamaError> {
        Ok(Self { weight: from.vector(path, &format!("{path}.weight"), width)?, spec })
    }

    /// Returns `x / sqrt(mean(x²) + eps) · (weight + offset)`, over the last dimension.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, context: &Context) -> Tensor<D> {
        rms_norm(x, self.weight.val_with(context.adapters()), self.spec)
    }
}

impl Adaptable for RmsNorm {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.weight.collect(path, layers);
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.weight.collect_mut(path, layers);
    }
}
