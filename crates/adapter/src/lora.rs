//! Low-rank update of one layer: A, B, and DoRA's magnitude.

use crate::config::LoraConfig;
use burn::{
    module::{Module, Param},
    nn::{Dropout, DropoutConfig},
    tensor::{DType, FloatDType, Tensor},
};
use burn_lora_kernels::Gemm;
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
/// assert_eq!((lora.name(), lora.rank(), lora.alpha(), lora.scaling()), ("default", 2, 4.0, 2.0));
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
    pub(crate) base_norm: Option<Param<Tensor<1>>>,
    dropout: Dropout,
    #[module(skip)]
    name: String,
    #[module(skip)]
    config: Arc<LoraConfig>,
    #[module(skip)]
    scaling: f64,
    #[module(skip)]
    frozen_a: bool,
    /// A and B before training, if `scaling · B · A` was subtracted from the base. Kept as host
    /// vectors, not as Burn's data: the buffer that a read from CUDA returns is overwritten by a
    /// later read.
    #[module(skip)]
    pub(crate) initial: Option<Arc<[Vec<f32>; 2]>>,
}

impl LoraAdapter {
    /// Creates an update from its matrices.
    pub(crate) fn new(
        name: &str,
        config: Arc<LoraConfig>,
        alpha: f64,
        lora_a: Tensor<2>,
        lora_b: Tensor<2>,
    ) -> Self {
        let scaling = config.scaling(lora_a.dims()[0], alpha);
        Self {
            lora_a: Param::from_tensor(lora_a),
            lora_b: Param::from_tensor(lora_b),
            magnitude: None,
            base_norm: None,
            dropout: DropoutConfig::new(config.dropout).init(),
            name: name.to_owned(),
            config,
            scaling,
            frozen_a: false,
            initial: None,
        }
    }

    /// Name of the adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Settings of the adapter.
    pub fn config(&self) -> &Arc<LoraConfig> {
        &self.config
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
        self.scaling * if self.config.rslora { rank.sqrt() } else { rank }
    }

    /// Number of values in A, B and the magnitude, whether or not they currently require a gradient.
    pub fn num_values(&self) -> usize {
        let magnitude = self.magnitude.as_ref().map_or(0, |m| m.lazy_shape().num_elements());
        self.lora_a.lazy_shape().num_elements()
            + self.lora_b.lazy_shape().num_elements()
            + magnitude
    }

    /// Returns `true` if dropout is active for this input.
    pub(crate) fn drops<const D: usize>(&self, x: &Tensor<D>) -> bool {
        self.config.dropout > 0.0
            && self.dropout.training.is_enabled()
            && (x.is_autodiff() || self.lora_a.val().is_autodiff())
    }

    pub(crate) fn drop<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        // Burn's dropout checks whether the input's device is an autodiff one, which the input of a
        // frozen first layer is not.
        if self.drops(&x) { self.dropout.forward(x.autodiff()) } else { x }
    }

    /// Returns A and B in the dtype of the computation.
    pub(crate) fn factors(&self, dtype: DType) -> [Tensor<2>; 2] {
        [&self.lora_a, &self.lora_b].map(|param| param.val().cast(dtype))
    }

    /// Returns `scaling · B · A`, `[out, in]` in float32: for merging, not for a forward pass.
    pub fn delta_weight(&self) -> Tensor<2> {
        let [a, b] = [&self.lora_a, &self.lora_b].map(|p| p.val().inner().cast(FloatDType::F32));
        Gemm::new().alpha(self.scaling as f32).run(b, a)
    }

    /// Updates the squared norms of the frozen weight after it has changed.
    pub(crate) fn refresh(&mut self, row_norms: &Tensor<1>) {
        if let Some(norm) = &mut self.base_norm {
            *norm = norm.clone().map(|_| row_norms.clone());
        }
    }

    /// Freezes A permanently.
    pub(crate) fn freeze_a(&mut self) {
        self.frozen_a = true;
        self.lora_a = self.lora_a.clone().set_require_grad(false);
    }

    /// Sets whether A, B and the magnitude are trained.
    pub(crate) fn set_require_grad(&mut self, require_grad: bool) {
        let train_a = require_grad && !self.frozen_a;
        self.lora_a = self.lora_a.clone().set_require_grad(train_a);
        self.lora_b = self.lora_b.clone().set_require_grad(require_grad);
        if let Some(magnitude) = &mut self.magnitude {
            *magnitude = magnitude.clone().set_require_grad(require_grad);
        }
    }
}

/// Squared norm of each row.
pub(crate) fn squared_norms(weight: Tensor<2>) -> Tensor<1> {
    let weight = weight.inner().cast(FloatDType::F32);
    (weight.clone() * weight).sum_dim(1).squeeze_dim(1)
}
