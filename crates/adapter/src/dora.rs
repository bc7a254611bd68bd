//! Application of an update to its layer, and DoRA's norms.

use crate::{
    base::broadcast,
    layer::AdaptedLayer,
    lora::{LoraAdapter, squared_norms},
};
use burn::{module::Param, tensor::Tensor};
use burn_lora_kernels::Gemm;

impl LoraAdapter {
    /// Adds the update for `x` to `y`.
    ///
    /// `base` computes the frozen product `x · Wᵀ` of `layer`, without bias.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - base_output: `[..., out]`, `base` of `x`
    /// - y and output: `[..., out]`
    pub(crate) fn add_to<const D: usize>(
        &self,
        y: Tensor<D>,
        x: Tensor<D>,
        base_output: Tensor<D>,
        layer: &dyn AdaptedLayer,
        base: impl Fn(Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        let dropped = self.drop(x.clone());
        let [a, b] = self.factors(dropped.dtype()).map(Tensor::unsqueeze::<D>);
        let h = Gemm::new().trans_rhs().run(dropped.clone(), a);
        let product = Gemm::new().trans_rhs().alpha(self.scaling() as f32);
        let Some(factor) = self.dora_factor(layer) else {
            return product.run_add(h, b, y);
        };
        let base_output = if self.drops(&x) { base(dropped) } else { base_output };
        let factor = broadcast(factor, &y);
        y + base_output * (factor.clone() - 1.0) + product.run(h, b) * factor
    }

    /// DoRA's `m / n`, `[out]` in float32; `None` without DoRA.
    pub(crate) fn dora_factor(&self, layer: &dyn AdaptedLayer) -> Option<Tensor<1>> {
        let magnitude = self.magnitude.as_ref()?.val();
        Some(magnitude / self.weight_norm(layer))
    }

    /// Norm of each row of `W + scaling · B · A`, `[out]` in float32, without a gradient.
    pub(crate) fn weight_norm(&self, layer: &dyn AdaptedLayer) -> Tensor<1> {
        let [a, b] = [&self.lora_a, &self.lora_b].map(|param| param.val().inner());
        let base_norm = match &self.base_norm {
            Some(norm) => norm.val().inner(),
            None => squared_norms(layer.weight()),
        };
        let scaling = self.scaling() as f32;
        let cross = (layer.product(a.clone()).transpose() * b.clone()).sum_dim(1);
        let gram = Gemm::new().trans_rhs().run(a.clone(), a);
        let square = (Gemm::new().run(b.clone(), gram) * b).sum_dim(1);
        let update = cross * (2.0 * scaling) + square * (scaling * scaling);
        // Cancellation can put the sum below its true value, which is never below zero.
        (base_norm + update.squeeze_dim::<1>(1)).clamp_min(0.0).sqrt()
    }

    /// Makes this a DoRA update of `layer`: the magnitude starts as the current norm.
    pub(crate) fn with_magnitude(mut self, layer: &dyn AdaptedLayer) -> Self {
        self.base_norm =
            Some(Param::from_tensor(squared_norms(layer.weight())).set_require_grad(false));
        self.magnitude = Some(Param::from_tensor(self.weight_norm(layer)));
        self
    }
}
