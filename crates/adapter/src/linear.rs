//! Linear layer that can carry adapters.

use crate::{
    active::{ActiveAdapters, Rows, Stack},
    base::{Base, add_bias, broadcast, dense_product},
    layer::{AdaptedLayer, Adapters, LayerKind},
    lora::LoraAdapter,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::Gemm;
use burn_lora_quant::{Frozen, PackedWeight, QuantError, StorageFormat};

/// Drop-in replacement for Burn's `Linear`: a frozen base, dense or packed, with any number of adapters.
///
/// ```text
/// y = x · Wᵀ + Σ scaling · dropout(x) · Aᵀ · Bᵀ + b
/// ```
///
/// Without an adapter it computes exactly its base. The update is computed in activation space: no
/// matrix of the weight's size is made, and the base never gets a gradient. With DoRA
/// (arXiv:2402.09353) the product with `W + scaling · B · A` is scaled by `m / n` per output.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::{Device, Tensor}};
/// use burn_lora_adapter::AdaptedLinear;
/// use burn_lora_quant::QuantConfig;
///
/// let device = Device::default();
/// let linear = LinearConfig::new(64, 32).init(&device);
/// let x = Tensor::<3>::ones([2, 5, 64], &device);
/// let expected = linear.forward(x.clone());
///
/// let adapted = AdaptedLinear::from(linear);
/// adapted.forward(x.clone()).into_data().assert_approx_eq::<f32>(
///     &expected.into_data(), burn::tensor::Tolerance::default());
///
/// let packed = adapted.quantize(&QuantConfig::nf4())?; // QLoRA's base
/// assert_eq!(packed.forward(x).dims(), [2, 5, 32]);
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub struct AdaptedLinear {
    /// Frozen base. Call [`refresh`](AdaptedLayer::refresh) after changing its weight.
    pub base: Base,
    adapters: Adapters,
}

impl AdaptedLinear {
    /// Creates a layer without adapters.
    pub fn new(base: Base) -> Self {
        Self { base, adapters: Adapters::default() }
    }

    /// Creates a layer with a dense weight `[out, in]` and a bias `[out]`, both frozen.
    pub fn dense(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self::new(Base::dense(weight, bias))
    }

    /// Creates a layer with a packed weight and a bias `[out]`, both frozen.
    pub fn packed(weight: PackedWeight, bias: Option<Tensor<1>>) -> Self {
        Self::new(Base::new(Frozen::new(weight), bias))
    }

    /// Quantizes a dense base; a base that is already quantized is left as it is.
    ///
    /// # Errors
    /// [`QuantError`] if the settings do not go together ([`StorageFormat::validate`]).
    pub fn quantize(mut self, format: &impl StorageFormat) -> Result<Self, QuantError> {
        if let Some(dense) = self.base.weight.dense() {
            self.base = self.base.with_stored(dense.val(), format)?;
            self.refresh();
        }
        Ok(self)
    }

    /// Applies the layer with the selected adapters.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - output: `[..., out]`, in the dtype of `x`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`, or the selection is by rows and their number is not
    /// the first dimension of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_with(x, None)
    }

    /// Applies the layer with the adapters of the batch, or the selected ones if `None`.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - output: `[..., out]`, in the dtype of `x`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`, or the adapters are selected by rows and their number
    /// is not the first dimension of `x`.
    pub fn forward_with<const D: usize>(
        &self,
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Tensor<D> {
        if D == 1 {
            let out = self.base.shape()[0];
            return self.forward_with::<2>(x.unsqueeze(), active).reshape([out; D]);
        }
        let active = active.unwrap_or(&self.adapters.selected);
        match active.rows(x.dims()[0], &x.device()) {
            Some(rows) => self.forward_rows(x, &rows),
            None => self.forward_all(x, active.names()),
        }
    }

    /// Applies the same adapters to the whole batch.
    fn forward_all<const D: usize>(&self, x: Tensor<D>, names: &[String]) -> Tensor<D> {
        if let Some(saved) = self.adapters.active_saved(names) {
            return add_bias(dense_product(x, saved.weight.val()), saved.bias.as_ref());
        }
        let active: Vec<_> = self.adapters.active(names).collect();
        let y = match active.as_slice() {
            [] => self.base.weight.matmul(x),
            [lora] if !lora.drops(&x) => self.forward_one(x, lora),
            _ => {
                let y = self.base.weight.matmul(x.clone());
                active.into_iter().fold(y.clone(), |sum, lora| {
                    lora.add_to(sum, x.clone(), y.clone(), self, |x| self.base.weight.matmul(x))
                })
            }
        };
        add_bias(y, self.base.bias.as_ref())
    }

    /// Applies one adapter without dropout: base and update are one product.
    fn forward_one<const D: usize>(&self, x: Tensor<D>, lora: &LoraAdapter) -> Tensor<D> {
        let ([a, b], scaling) = (lora.factors(x.dtype()), lora.scaling() as f32);
        let y = self.base.weight.matmul_low_rank(x, a, b, scaling);
        match lora.dora_factor(self) {
            None => y,
            Some(factor) => y.clone() * broadcast(factor, &y),
        }
    }

    /// Applies to each row of the batch its own adapter. The base runs once.
    fn forward_rows<const D: usize>(&self, x: Tensor<D>, rows: &Rows) -> Tensor<D> {
        let adapters = &self.adapters;
        let here: Vec<_> = rows
            .names()
            .enumerate()
            .filter_map(|(number, name)| Some((number, adapters.active_lora(name)?)))
            .collect();
        let saved = rows.names().any(|name| adapters.saved(name).is_some());
        let plain = |lora: &LoraAdapter| lora.magnitude.is_none() && !lora.drops(&x);
        if !saved && here.iter().all(|(_, lora)| plain(lora)) {
            let y = self.base.weight.matmul(x.clone());
            let y = if here.is_empty() { y } else { add_stacked(y, x, &here, rows) };
            return add_bias(y, self.base.bias.as_ref());
        }
        let base = self.base.weight.matmul(x.clone());
        rows.each(|name, rows| {
            let x = x.clone().select(0, rows.clone());
            if let Some(saved) = adapters.active_saved(name) {
                return add_bias(dense_product(x, saved.weight.val()), saved.bias.as_ref());
            }
            let base = base.clone().select(0, rows.clone());
            let y = adapters.active(name).fold(base.clone(), |y, lora| {
                lora.add_to(y, x.clone(), base.clone(), self, |x| self.base.weight.matmul(x))
            });
            add_bias(y, self.base.bias.as_ref())
        })
    }
}

/// Adds to each row of `y` the update of its adapter. All updates are one product, in which the ranks
/// of other adapters are masked to zero, so that host work does not grow with the number of adapters.
fn add_stacked<const D: usize>(
    y: Tensor<D>,
    x: Tensor<D>,
    loras: &[(usize, &LoraAdapter)],
    rows: &Rows,
) -> Tensor<D> {
    let part = |(number, lora): &(usize, &LoraAdapter)| {
        (*number, lora.rank(), (lora.scaling() as f32).to_bits())
    };
    let Stack { others, scaling, scalings } =
        rows.stack(&loras.iter().map(part).collect::<Vec<_>>());
    let stacked = |of: fn(&LoraAdapter) -> &Param<Tensor<2>>, dim| {
        let parts = loras.iter().map(|(_, lora)| of(lora).val());
        Tensor::cat(parts.collect(), dim).cast(x.dtype()).unsqueeze::<D>()
    };
    let (a, b) = (stacked(|lora| &lora.lora_a, 0), stacked(|lora| &lora.lora_b, 1));
    let h = Gemm::new().trans_rhs().run(x, a);
    let mut shape = [1; D];
    (shape[0], shape[D - 1]) = (others.dims()[0], others.dims()[1]);
    let others = others.reshape(shape).expand(h.shape());
    // Masked, not multiplied by 0: an infinite item of another adapter's ranks would become NaN.
    let h = h.mask_fill(others, 0.0);
    let h = match scalings {
        None => h,
        Some(scalings) => {
            let scalings = broadcast(scalings, &h);
            h * scalings
        }
    };
    Gemm::new().trans_rhs().alpha(scaling).run_add(h, b, y)
}

impl From<burn::nn::Linear> for AdaptedLinear {
    /// Freezes Burn's layer.
    fn from(linear: burn::nn::Linear) -> Self {
        let weight = linear.weight.val().transpose();
        Self::dense(weight, linear.bias.map(|bias| bias.val()))
    }
}

impl AdaptedLayer for AdaptedLinear {
    fn kind(&self) -> LayerKind {
        LayerKind::Linear
    }

    fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }

    fn device(&self) -> Device {
        self.base.device()
    }

    fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.adapters
    }

    fn weight(&self) -> Tensor<2> {
        self.base.weight.dequantize(FloatDType::F32)
    }

    fn set_weight(&mut self, weight: Tensor<2>) {
        self.base = self.base.with_weight(weight).expect("a weight of the same shape");
        self.refresh();
    }

    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        self.base.weight.dense()
    }

    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        self.base.weight.dense_mut()
    }

    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        self.base.weight.few_rows(x)
    }

    fn bias(&self) -> Option<&Param<Tensor<1>>> {
        self.base.bias.as_ref()
    }

    fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        self.base.bias.as_mut()
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn base_mut(&mut self) -> Option<&mut Base> {
        Some(&mut self.base)
    }
}
