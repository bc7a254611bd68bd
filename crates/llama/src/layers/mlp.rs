//! Gated MLP.

use super::{
    LinearCosts, Parameters, TokenCost,
    cost::{all_beside, any_keeps_input},
};
use crate::{context::Context, error::LlamaError, spec::GatedMlpSpec};
use burn::{module::Module, tensor::Tensor};
use burn_lora_adapter::{AdaptedLinear, adaptable};
use burn_lora_kernels::gated;

/// Gated MLP: `down(activation(gate(x)) · up(x))`.
///
/// The projections of gate and up are two layers, or one.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Projection of gate and up (Phi), `[2 * intermediate, hidden]`.
    pub gate_up_proj: Option<AdaptedLinear>,
    /// Gate projection, `[intermediate, hidden]`.
    pub gate_proj: Option<AdaptedLinear>,
    /// Up projection, `[intermediate, hidden]`.
    pub up_proj: Option<AdaptedLinear>,
    /// Down projection, `[hidden, intermediate]`.
    pub down_proj: AdaptedLinear,
    /// Specification.
    #[module(skip)]
    pub spec: GatedMlpSpec,
}
adaptable!(Mlp { gate_up_proj, gate_proj, up_proj, down_proj });

impl Mlp {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        hidden: usize,
        spec: &GatedMlpSpec,
    ) -> Result<Self, LlamaError> {
        let inner = spec.intermediate_size;
        let linear = |name: &str, shape| from.linear(&format!("{path}.{name}"), shape, spec.bias);
        let separate = |name| (!spec.fused).then(|| linear(name, [inner, hidden])).transpose();
        let both = spec.fused.then(|| linear("gate_up_proj", [2 * inner, hidden]));
        Ok(Self {
            gate_up_proj: both.transpose()?,
            gate_proj: separate("gate_proj")?,
            up_proj: separate("up_proj")?,
            down_proj: linear("down_proj", [hidden, inner])?,
            spec: spec.clone(),
        })
    }

    /// Returns the output of the MLP.
    ///
    /// # Shapes
    /// - x, output: `[batch, sequence, hidden]`
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let adapters = context.adapters();
        let [gate, up] = match &self.gate_up_proj {
            Some(both) => {
                let (all, width) = (both.forward_with(x, adapters), self.spec.intermediate_size);
                [0, width].map(|start| all.clone().narrow(2, start, width))
            }
            None => [&self.gate_proj, &self.up_proj].map(|layer| {
                let layer = layer.as_ref().expect("two projections, or one");
                layer.forward_with(x.clone(), adapters)
            }),
        };
        self.down_proj.forward_with(gated(gate, up, self.spec.activation), adapters)
    }
}

const DOWN: &str = "mlp.down_proj";

impl GatedMlpSpec {
    /// Projections of gate and up.
    fn projections(&self) -> &'static [&'static str] {
        match self.fused {
            true => &["mlp.gate_up_proj"],
            false => &["mlp.gate_proj", "mlp.up_proj"],
        }
    }

    /// Returns what is kept: the input of the norm, its output, gate and up, and their product.
    pub fn kept(&self, hidden: usize, costs: &dyn LinearCosts) -> TokenCost {
        let inner = self.intermediate_size;
        let normed = if any_keeps_input(costs, self.projections()) { hidden } else { 0 };
        let product = if costs.keeps_input(DOWN) { inner } else { 0 };
        let beside = all_beside(costs, self.projections()) + costs.beside(DOWN);
        TokenCost { values: hidden + normed + 2 * inner + product + beside, floats: 0 }
    }

    /// Returns what the backward pass has beside the kept: the output (forward) and its gradient;
    /// the gradient of the product, which reuses the memory of the product if that is kept (those
    /// of gate and up reuse the memory of gate and up, unless they are parts of one tensor). The
    /// input of a dense layer with an update (`twice`) has two gradients, which are added.
    pub fn backward(&self, hidden: usize, costs: &dyn LinearCosts, twice: bool) -> TokenCost {
        let products = usize::from(!costs.keeps_input(DOWN)) + usize::from(twice);
        let parts = if self.fused { 2 } else { 0 };
        TokenCost { values: 2 * hidden + (products + parts) * self.intermediate_size, floats: 0 }
    }

    /// Returns what a pass without gradients has: the residual and the norm's output; gate, up and
    /// their product.
    pub fn forward(&self, hidden: usize) -> TokenCost {
        let parts = if self.fused { 5 } else { 3 };
        TokenCost { values: 2 * hidden + parts * self.intermediate_size, floats: 0 }
    }
}
