//! LoRA and DoRA at one layer: A, B, DoRA's magnitude.

use super::dora::{squared_norms, weight_norm};
use crate::{
    frozen::FrozenLayer,
    update::{LowRank, Update},
};
use burn::{
    module::{Module, Param},
    tensor::{FloatDType, Tensor},
};
use std::sync::Arc;

/// Low-rank update of one layer: `x -> scaling · B · A · dropout(x)` (arXiv:2106.09685).
///
/// A and B are float32; the update is computed in the dtype of its input. With DoRA
/// (arXiv:2402.09353) the layer is `m / n · (W · x + scaling · B · A · x)`, where `m` is trained and
/// `n`, the norm of each row of `W + scaling · B · A`, is a constant in the backward pass. It is
/// computed from `n² = |w|² + 2s · b·(A·w) + s² · b·(A·Aᵀ)·b`, without a matrix of the weight's size.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// model.add_adapter("default", &lora)?;
/// let lora = model.linear.adapters_mut().lora_mut("default").unwrap();
/// assert_eq!((lora.rank(), lora.alpha(), lora.scaling()), (2, 4.0, 2.0));
/// assert_eq!(lora.num_values(), 2 * (16 + 16));
/// let full = lora.delta_weight();
/// lora.set_scaling(1.0); // half of it
/// assert_eq!((lora.delta_weight() * 2.0 - full).abs().max().into_scalar::<f32>(), 0.0);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// A, `[rank, in]`.
    pub lora_a: Param<Tensor<2>>,
    /// B, `[out, rank]`.
    pub lora_b: Param<Tensor<2>>,
    /// DoRA's magnitude, `[out]`.
    pub magnitude: Option<Param<Tensor<1>>>,
    /// Squared norm of each row of the frozen weight, for DoRA; not trained.
    base_norm: Option<Param<Tensor<1>>>,
    #[module(skip)]
    scaling: f64,
    #[module(skip)]
    rslora: bool,
    /// A and B before training, if `scaling · B · A` was subtracted from the base. Kept as host
    /// vectors, not as Burn's data: the buffer that a read from CUDA returns is overwritten by a
    /// later read.
    #[module(skip)]
    pub(crate) initial: Option<Arc<[Vec<f32>; 2]>>,
}

impl LoraAdapter {
    /// Creates an update from its matrices.
    pub(crate) fn new(scaling: f64, rslora: bool, lora_a: Tensor<2>, lora_b: Tensor<2>) -> Self {
        Self {
            lora_a: Param::from_tensor(lora_a),
            lora_b: Param::from_tensor(lora_b),
            magnitude: None,
            base_norm: None,
            scaling,
            rslora,
            initial: None,
        }
    }

    /// Makes this a DoRA update of `layer`: the magnitude starts as the current norm.
    pub(crate) fn with_magnitude(mut self, layer: &dyn FrozenLayer) -> Self {
        let norms = squared_norms(layer.weight());
        self.base_norm = Some(Param::from_tensor(norms).set_require_grad(false));
        self.magnitude = Some(Param::from_tensor(self.weight_norm(layer)));
        self
    }

    /// Scaling of `B · A`: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// Sets the scaling of `B · A`, to blend adapters or to strengthen or weaken one. It is not saved.
    pub fn set_scaling(&mut self, scaling: f64) {
        self.scaling = scaling;
    }

    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.lora_a.lazy_shape()[0]
    }

    /// Alpha that corresponds to the current scaling at this rank.
    pub fn alpha(&self) -> f64 {
        let rank = self.rank() as f64;
        self.scaling * if self.rslora { rank.sqrt() } else { rank }
    }

    /// Number of values in A, B and the magnitude, whether or not they currently require a gradient.
    pub fn num_values(&self) -> usize {
        let magnitude = self.magnitude.as_ref().map_or(0, |m| m.lazy_shape().num_elements());
        self.lora_a.lazy_shape().num_elements()
            + self.lora_b.lazy_shape().num_elements()
            + magnitude
    }

    /// Returns `scaling · B · A`, `[out, in]` in float32: for merging, not for a forward pass.
    pub fn delta_weight(&self) -> Tensor<2> {
        self.factors().product(FloatDType::F32)
    }

    fn factors(&self) -> LowRank {
        LowRank { a: self.lora_a.val(), b: self.lora_b.val(), scaling: self.scaling }
    }

    /// Norm of each row of `W + scaling · B · A`.
    fn weight_norm(&self, layer: &dyn FrozenLayer) -> Tensor<1> {
        let [a, b] = [&self.lora_a, &self.lora_b].map(|param| param.val().inner());
        let base = self.base_norm.as_ref().map(|norm| norm.val().inner());
        weight_norm(layer, base, a, b, self.scaling as f32)
    }
}

impl Update for LoraAdapter {
    fn low_rank(&self) -> Option<LowRank> {
        Some(self.factors())
    }

    fn rescales(&self) -> bool {
        self.magnitude.is_some()
    }

    /// DoRA's `m / n`.
    fn factor(&self, layer: &dyn FrozenLayer) -> Option<Tensor<1>> {
        let magnitude = self.magnitude.as_ref()?.val();
        Some(magnitude / self.weight_norm(layer))
    }

    fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>) {
        if let Some(norm) = &mut self.base_norm {
            *norm = norm.clone().map(|_| squared_norms(weight()));
        }
    }
}
