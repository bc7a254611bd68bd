//! Gated MLP.

use super::{
    LinearCosts, Parameters, TokenCost,
    attention::forward,
    cost::{all_beside, any_keeps_input},
};
use crate::{
    context::Context,
    error::LlamaError,
    spec::{GateUp, GatedMlpSpec},
};
use burn::{
    module::Module,
    tensor::{Gradients, Tensor},
};
use burn_lora_adapter::{AdaptedLinear, LayerKind, adaptable};
use burn_lora_kernels::{gated, gated_grad};

/// Gated MLP: `down(activation(gate(x)) · up(x))`.
///
/// The projections of gate and up are two layers, or one ([`GateUp`]).
#[derive(Module, Debug)]
pub struct Mlp {
    /// Projection of gate and up (Phi, experts), `[2 * intermediate, hidden]`.
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
        let separate = |name| {
            let is = spec.gate_up == GateUp::Separate;
            is.then(|| linear(name, [inner, hidden])).transpose()
        };
        let both = match spec.gate_up {
            GateUp::Separate => None,
            GateUp::Fused | GateUp::Interleaved => {
                Some(linear("gate_up_proj", [2 * inner, hidden])?)
            }
            GateUp::Joined => {
                let parts = ["gate_proj", "up_proj"].map(|name| format!("{path}.{name}"));
                let path = format!("{path}.gate_up_proj");
                Some(from.joined(&path, &parts, [inner, hidden])?)
            }
        };
        Ok(Self {
            gate_up_proj: both,
            gate_proj: separate("gate_proj")?,
            up_proj: separate("up_proj")?,
            down_proj: linear("down_proj", [hidden, inner])?,
            spec: spec.clone(),
        })
    }

    /// Makes it the MLP of an expert.
    pub(crate) fn of_expert(mut self) -> Self {
        let of = |linear: AdaptedLinear| linear.of_kind(LayerKind::Expert);
        self.gate_up_proj = self.gate_up_proj.map(of);
        self.gate_proj = self.gate_proj.map(of);
        self.up_proj = self.up_proj.map(of);
        Self { down_proj: of(self.down_proj), ..self }
    }

    /// Returns the output of the MLP.
    ///
    /// # Shapes
    /// - x, output: `[.., hidden]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>, context: &Context) -> Tensor<D> {
        let inner = self.inner(self.project(x, context));
        self.down_proj.forward_with(inner, context.adapters())
    }

    /// Returns the output, and what [`pull_back`](Self::pull_back) then need not compute: with `all` gate and
    /// up, as vectors, and the inputs times A of the projections' updates, before and after the activation.
    pub(super) fn forward_keeping<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &Context,
        all: bool,
    ) -> (Tensor<D>, Vec<Tensor<1>>, [Option<Tensor<2>>; 2]) {
        let (projected, before) = self.project_once(x, context, None);
        let kept = match all {
            true => projected.each_ref().map(|x| x.clone().flatten(0, D - 1)).into(),
            false => vec![],
        };
        let (out, after) = forward(&self.down_proj, self.inner(projected), context);
        (out, kept, [before, after])
    }

    /// Returns `true` if its backward pass needs no graph from input to output.
    pub(super) fn is_plain(&self, context: &Context) -> bool {
        let interleaved = self.spec.gate_up == GateUp::Interleaved;
        let mut layers = self.projections().into_iter().chain([&self.down_proj]);
        let plain = layers.all(|layer| layer.is_plain(context.adapters()));
        plain && !interleaved && self.spec.limit.is_none()
    }

    /// Returns `pull_back(forward(x, context), grad)`, without the last product, and without what
    /// [`forward_keeping`](Self::forward_keeping) gave. `found` gets the gradients of the last projection's parameters.
    ///
    /// # Shapes
    /// - x, grad: `[.., hidden]`
    pub(super) fn pull_back<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &Context,
        grad: Tensor<D>,
        kept: Vec<Tensor<1>>,
        [before, after]: [Option<Tensor<2>>; 2],
        found: &mut dyn FnMut(Gradients),
    ) -> Tensor<1> {
        let adapters = context.adapters();
        if !self.is_plain(context) {
            let inner = self.inner(self.project(x, context));
            return self.down_proj.pull_back(inner, adapters, grad);
        }
        let mut dims = x.dims();
        dims[D - 1] = self.spec.intermediate_size;
        let (before, [gate, up]) = match <[_; 2]>::try_from(kept) {
            Ok(kept) => (before, kept.map(|x| x.reshape(dims))),
            Err(_) => {
                let (projected, h) = self.project_once(x.clone().inner(), context, before);
                (h, projected.map(Tensor::inner))
            }
        };
        let inner = gated(gate.clone(), up.clone(), self.spec.activation);
        let inner = inner.autodiff().require_grad();
        let (layers, grads) = ([&self.down_proj], vec![grad]);
        let zero = AdaptedLinear::pull_back_all(&layers, inner.clone(), adapters, grads, after);
        let mut of_inner = zero.backward();
        let grad = inner.grad_remove(&mut of_inner).expect("an input has a gradient");
        drop(inner);
        found(of_inner);
        let grads = gated_grad(grad, [gate, up], self.spec.activation).to_vec();
        let grads = match &self.gate_up_proj {
            Some(_) => vec![Tensor::cat(grads, D - 1)],
            None => grads,
        };
        AdaptedLinear::pull_back_all(&self.projections(), x, adapters, grads, before)
    }

    /// The projections of gate and up, or their one.
    fn projections(&self) -> Vec<&AdaptedLinear> {
        [&self.gate_up_proj, &self.gate_proj, &self.up_proj].into_iter().flatten().collect()
    }

    /// Returns gate and up.
    fn project<const D: usize>(&self, x: Tensor<D>, context: &Context) -> [Tensor<D>; 2] {
        self.both(AdaptedLinear::forward_all(&self.projections(), x, context.adapters()))
    }

    /// Returns gate and up without a graph, and the input times A of their updates, which is not computed if
    /// it is given.
    fn project_once<const D: usize>(
        &self,
        x: Tensor<D>,
        context: &Context,
        h: Option<Tensor<2>>,
    ) -> ([Tensor<D>; 2], Option<Tensor<2>>) {
        let projections = self.projections();
        let (outputs, h) = AdaptedLinear::forward_once(&projections, x, context.adapters(), h);
        (self.both(outputs), h)
    }

    /// Returns gate and up, which may be parts of one output.
    fn both<const D: usize>(&self, outputs: Vec<Tensor<D>>) -> [Tensor<D>; 2] {
        <[_; 2]>::try_from(outputs)
            .unwrap_or_else(|one| [0, 1].map(|part| self.part(one[0].clone(), part)))
    }

    /// Returns the input of the last projection.
    fn inner<const D: usize>(&self, [gate, up]: [Tensor<D>; 2]) -> Tensor<D> {
        let (gate, up) = match self.spec.limit {
            None => (gate, up),
            Some(limit) => (gate.clamp_max(limit), up.clamp(-limit, limit) + 1.0),
        };
        gated(gate, up, self.spec.activation)
    }

    /// Returns gate (0) or up (1) of what their one projection gave.
    fn part<const D: usize>(&self, all: Tensor<D>, part: usize) -> Tensor<D> {
        let width = self.spec.intermediate_size;
        if self.spec.gate_up != GateUp::Interleaved {
            return all.narrow(D - 1, part * width, width);
        }
        let mut shape = all.dims();
        shape[D - 1] = width;
        let rows = shape[..D - 1].iter().product::<usize>();
        all.reshape([rows, width, 2]).narrow(2, part, 1).reshape(shape)
    }
}

impl GatedMlpSpec {
    /// Number of values of gate and up that are parts of one tensor, which are copied.
    fn parts(&self) -> usize {
        if self.gate_up == GateUp::Separate { 0 } else { 2 * self.intermediate_size }
    }

    /// Number of values of gate and up beside those within their limit.
    fn limited(&self) -> usize {
        if self.limit.is_some() { 2 * self.intermediate_size } else { 0 }
    }

    /// Returns what is kept of a token for the backward pass: the input, gate and up, and their
    /// product. `path` is the MLP's in its layer.
    pub fn kept(&self, path: &str, hidden: usize, costs: &dyn LinearCosts) -> TokenCost {
        let projections: &[&str] = match self.gate_up {
            GateUp::Separate => &["gate_proj", "up_proj"],
            GateUp::Fused | GateUp::Joined | GateUp::Interleaved => &["gate_up_proj"],
        };
        let paths = projections.iter().map(|name| format!("{path}.{name}"));
        let (paths, down) = (paths.collect::<Vec<_>>(), format!("{path}.down_proj"));
        let input = if any_keeps_input(costs, &paths) { hidden } else { 0 };
        let product = if costs.keeps_input(&down) { self.intermediate_size } else { 0 };
        let beside = all_beside(costs, &paths) + costs.beside(&down);
        // Which values of gate and up were beyond their limits: three masks, in words at most.
        let floats = if self.limit.is_some() { 3 * self.intermediate_size } else { 0 };
        TokenCost { values: input + 2 * self.intermediate_size + product + beside, floats }
    }

    /// Returns what the backward pass of a token has beside the kept: the gradient of the product,
    /// which reuses the memory of the product if that is kept (those of gate and up reuse the memory
    /// of gate and up, unless they are parts of one tensor). The input of a dense layer with an
    /// update (`twice`) has two gradients, which are added.
    pub fn backward(&self, path: &str, costs: &dyn LinearCosts, twice: bool) -> TokenCost {
        let own = !costs.keeps_input(&format!("{path}.down_proj"));
        let products = usize::from(own) + usize::from(twice);
        let values = products * self.intermediate_size + self.parts() + self.limited();
        TokenCost { values, floats: 0 }
    }

    /// Returns what a pass without gradients has: gate, up and their product.
    pub fn inference(&self) -> TokenCost {
        let values = 3 * self.intermediate_size + self.parts() + self.limited();
        TokenCost { values, floats: 0 }
    }
}
