//! The frozen part of a layer, as adapter methods see it.

use crate::base::Base;
use burn::{
    module::Param,
    tensor::{Device, Tensor},
};
use burn_lora_quant::PackedWeight;

/// Kind of a layer.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let kinds: Vec<_> = model.layers().into_iter().map(|(path, l)| (path, l.kind())).collect();
/// assert_eq!(kinds, [("linear".to_owned(), LayerKind::Linear)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// [`AdaptedLinear`](crate::AdaptedLinear).
    Linear,
    /// [`AdaptedEmbedding`](crate::AdaptedEmbedding).
    Embedding,
    /// [`AdaptedVector`](crate::AdaptedVector): trained as a whole copy only.
    Vector,
    /// [`AdaptedLinear`](crate::AdaptedLinear) of one expert of several. To PEFT it is a part of the
    /// parameter that has all of them: `target_parameters` names it, and `target_modules` does not.
    Expert,
    /// [`AdaptedLinear`](crate::AdaptedLinear) that chooses experts: trained as a whole copy only, and
    /// never quantized.
    Router,
}

/// Frozen part of a layer, whatever it is and however its weight is stored: what an adapter method knows
/// of the layer that it adapts.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let model = doc::model();
/// let layer: &dyn FrozenLayer = &model.linear;
/// assert_eq!(layer.weight().dims(), layer.shape());
/// assert!(layer.kind() == LayerKind::Linear && !layer.is_quantized());
/// ```
pub trait FrozenLayer {
    /// Kind of the layer.
    fn kind(&self) -> LayerKind;

    /// Shape of the frozen weight in terms of A `[rank, in]` and B `[out, rank]`: `[out, in]`. For an
    /// embedding that is `[hidden, vocabulary]`, for a vector `[length, 1]`.
    fn shape(&self) -> [usize; 2];

    /// Shape of the weight in checkpoints: `[out, in]`, for an embedding `[vocabulary, hidden]`, for a
    /// vector `[length]`.
    fn file_shape(&self) -> Vec<usize> {
        self.shape().to_vec()
    }

    /// Converts a weight of [`shape`](Self::shape) to the layout of checkpoints, or back: an embedding is
    /// transposed there.
    fn file_layout(&self, weight: Tensor<2>) -> Tensor<2> {
        weight
    }

    /// Device of the layer.
    fn device(&self) -> Device;

    /// Returns the frozen weight, dequantized, in float32, with shape [`shape`](Self::shape).
    fn weight(&self) -> Tensor<2>;

    /// Replaces the frozen weight, keeping its dtype or quantization.
    fn set_weight(&mut self, weight: Tensor<2>);

    /// Frozen weight as a parameter, if it is a dense matrix: tied layers share it.
    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        None
    }

    /// Frozen weight as a mutable parameter; call [`refresh`](crate::AdaptedLayer::refresh) after changing it.
    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }

    /// Returns the product of a few rows with the frozen weight, `x · Wᵀ`, without bias, in float32 and
    /// without a copy of the weight.
    ///
    /// # Shapes
    /// - x: `[rows, in]`
    /// - output: `[rows, out]`
    fn product(&self, x: Tensor<2>) -> Tensor<2>;

    /// Bias of the base.
    fn bias(&self) -> Option<&Param<Tensor<1>>> {
        None
    }

    /// Bias of the base, mutable.
    fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        None
    }

    /// Base of a linear layer, the only kind that can be quantized.
    fn base(&self) -> Option<&Base> {
        None
    }

    /// 4-bit weight, if the base is stored as one.
    fn packed(&self) -> Option<&PackedWeight> {
        self.base()?.weight.downcast_ref()
    }

    /// Returns `true` if the base is quantized, in any storage.
    fn is_quantized(&self) -> bool {
        self.base().is_some_and(|base| base.weight.dense().is_none())
    }

    /// Base of a linear layer, mutable; call [`refresh`](crate::AdaptedLayer::refresh) after changing it.
    fn base_mut(&mut self) -> Option<&mut Base> {
        None
    }
}

/// Path of the parameter that has the weights of all experts, by the path of one of them:
/// `mlp.experts.gate_up_proj` of `mlp.experts.3.gate_up_proj`.
pub(crate) fn parameter(path: &str) -> String {
    let (module, name) = path.rsplit_once('.').unwrap_or(("", path));
    let (experts, _) = module.rsplit_once('.').unwrap_or((module, ""));
    format!("{experts}.{name}")
}
