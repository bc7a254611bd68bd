//! Frozen base of a linear layer.

use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::{Gemm, persist};
use burn_lora_quant::{DenseWeight, Frozen, QuantError, StorageFormat};

/// Frozen base of a linear layer: a weight `[out, in]` in any storage, and a bias `[out]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_adapter::{AdaptedLinear, Base};
/// use burn_lora_quant::QuantConfig;
///
/// let device = Device::default();
/// let weight = Tensor::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device); // [out, in]
/// let dense = Base::dense(weight, Some(Tensor::from_floats([0.0, 0.0, 1.0], &device)));
/// let linear = AdaptedLinear::new(dense);
/// let y = linear.forward(Tensor::<1>::ones([2], &device));
/// y.into_data().assert_eq(&[3.0f32, 7.0, 12.0].into(), true);
///
/// let packed = linear.quantize(&QuantConfig::nf4())?;
/// assert!(packed.base.weight.dense().is_none() && packed.base.bias.is_some());
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub struct Base {
    /// Weight, `[out, in]`.
    pub weight: Frozen,
    /// Bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Base {
    /// Creates a base from its parts, frozen.
    ///
    /// # Panics
    /// If the bias is not of shape `[out]`.
    pub fn new(weight: Frozen, bias: Option<Tensor<1>>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.dims()[0], weight.shape()[0], "the bias of {:?}", weight.shape());
        }
        let bias = bias.map(|bias| Param::from_tensor(bias).set_require_grad(false));
        Self { weight, bias }
    }

    /// Creates a base with a dense weight `[out, in]`, frozen.
    ///
    /// # Panics
    /// If the bias is not of shape `[out]`.
    pub fn dense(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self::new(Frozen::new(DenseWeight::new(weight)), bias)
    }

    /// Creates a dense base from parameters, which need not be initialised yet.
    pub fn from_params(weight: Param<Tensor<2>>, bias: Option<Param<Tensor<1>>>) -> Self {
        Self {
            weight: Frozen::new(DenseWeight::from_param(weight)),
            bias: bias.map(|bias| bias.set_require_grad(false)),
        }
    }

    /// Shape of the weight, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// Device of the weight.
    pub fn device(&self) -> Device {
        self.weight.device()
    }

    /// Returns a copy with a dense weight, in `dtype`.
    pub(crate) fn with_dense(&self, weight: Tensor<2>, dtype: FloatDType) -> Self {
        let weight = Frozen::new(DenseWeight::new(weight.cast(dtype)));
        persist(Self { weight, bias: self.bias.clone() })
    }

    /// Returns a copy with another weight, stored in `format`.
    ///
    /// # Errors
    /// That of [`StorageFormat::store`].
    pub(crate) fn with_stored(
        &self,
        weight: Tensor<2>,
        format: &dyn StorageFormat,
    ) -> Result<Self, QuantError> {
        Ok(persist(Self { weight: format.store(weight.inner())?, bias: self.bias.clone() }))
    }

    /// Returns a copy with another weight, in the current storage.
    ///
    /// # Errors
    /// That of [`Frozen::store`].
    pub(crate) fn with_weight(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        Ok(persist(Self { weight: self.weight.store(weight.inner())?, bias: self.bias.clone() }))
    }
}

/// Returns `x · Wᵀ` in the dtype of `x`.
pub(crate) fn dense_product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let weight = weight.cast(x.dtype()).unsqueeze();
    Gemm::new().trans_rhs().run(x, weight)
}

/// Adds a bias to the last dimension of `y`.
pub(crate) fn add_bias<const D: usize>(y: Tensor<D>, bias: Option<&Param<Tensor<1>>>) -> Tensor<D> {
    let Some(bias) = bias else { return y };
    let bias = broadcast(bias.val(), &y);
    y + bias
}

/// Reshapes one value per item of the last dimension of `like` for broadcasting, in its dtype.
pub(crate) fn broadcast<const D: usize>(values: Tensor<1>, like: &Tensor<D>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[D - 1] = values.dims()[0];
    values.cast(like.dtype()).reshape(shape)
}
