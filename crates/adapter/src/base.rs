//! The frozen part of a linear layer: dense or packed.

use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_quant::{Gemm, PackedLinear, PackedWeight, QuantConfig, QuantError, ScaleRule};

/// A linear layer with a dense weight in the layout of checkpoints: `y = x · Wᵀ + b`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_adapter::{AdaptedLinear, Base, DenseLinear};
///
/// let device = Device::default();
/// let weight = Tensor::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device); // [out, in]
/// let dense = DenseLinear::new(weight, Some(Tensor::from_floats([0.0, 0.0, 1.0], &device)));
/// let y = AdaptedLinear::new(Base::Dense(dense)).forward(Tensor::<1>::ones([2], &device));
/// y.into_data().assert_eq(&[3.0f32, 7.0, 12.0].into(), true);
/// ```
#[derive(Module, Debug)]
pub struct DenseLinear {
    /// The weight, `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// The bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl DenseLinear {
    /// A frozen layer from its parts.
    ///
    /// # Panics
    /// If the bias is not of shape `[out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.dims()[0], weight.dims()[0], "the bias of {:?}", weight.dims());
        }
        Self::from_params(Param::from_tensor(weight), bias.map(Param::from_tensor))
    }

    /// A frozen layer from parameters, which may not be initialised yet.
    pub fn from_params(weight: Param<Tensor<2>>, bias: Option<Param<Tensor<1>>>) -> Self {
        Self {
            weight: weight.set_require_grad(false),
            bias: bias.map(|bias| bias.set_require_grad(false)),
        }
    }
}

/// The frozen part of a linear layer.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_adapter::AdaptedLinear;
/// use burn_lora_quant::QuantConfig;
///
/// let linear = AdaptedLinear::dense(Tensor::ones([8, 64], &Device::default()), None);
/// assert_eq!((linear.base.shape(), linear.base.quant_config()), ([8, 64], None));
/// let packed = linear.quantize(&QuantConfig::nf4())?;
/// assert_eq!(packed.base.quant_config(), Some(QuantConfig::nf4()));
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub enum Base {
    /// A dense weight.
    Dense(DenseLinear),
    /// A 4-bit weight.
    Packed(PackedLinear),
}

impl Base {
    /// The shape of the weight, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) => dense.weight.lazy_shape().dims(),
            Self::Packed(packed) => packed.weight.shape(),
        }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(dense) => dense.weight.lazy_device(),
            Self::Packed(packed) => packed.weight.device(),
        }
    }

    /// `x · Wᵀ`, without bias.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of rank 2 or more
    /// - output: `[..., out]`, in the dtype of `x`
    pub(crate) fn product<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(dense) => dense_product(x, dense.weight.val()),
            Self::Packed(packed) => packed.weight.matmul(x),
        }
    }

    /// `x · Wᵀ + scaling · x · Aᵀ · Bᵀ`, without bias, with A and B in the dtype of `x`.
    pub(crate) fn low_rank_product<const D: usize>(
        &self,
        x: Tensor<D>,
        [a, b]: [Tensor<2>; 2],
        scaling: f32,
    ) -> Tensor<D> {
        match self {
            Self::Packed(packed) => packed.weight.matmul_low_rank(x, a, b, scaling),
            Self::Dense(dense) => {
                let y = dense_product(x.clone(), dense.weight.val());
                let h = Gemm::new().trans_rhs().run(x, a.unsqueeze());
                Gemm::new().trans_rhs().alpha(scaling).run_add(h, b.unsqueeze(), y)
            }
        }
    }

    /// `x · Wᵀ` for a few rows of float32, without bias and without a copy of the weight: from the
    /// codes, or in the dtype of a dense weight.
    pub(crate) fn few_rows_product(&self, x: Tensor<2>) -> Tensor<2> {
        /// So many rows are computed from the codes; for more the weight would be decoded.
        const ROWS: usize = 8;
        match self {
            Self::Dense(dense) => {
                let weight = dense.weight.val().inner();
                dense_product(x.cast(weight.dtype()), weight).cast(FloatDType::F32)
            }
            Self::Packed(packed) => {
                let chunks = x.split(ROWS, 0).into_iter().map(|rows| packed.weight.matmul(rows));
                Tensor::cat(chunks.collect(), 0)
            }
        }
    }

    /// The weight decoded, in float32.
    pub(crate) fn weight(&self) -> Tensor<2> {
        match self {
            Self::Dense(dense) => dense.weight.val().inner().cast(FloatDType::F32),
            Self::Packed(packed) => packed.weight.dequantize(FloatDType::F32),
        }
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Param<Tensor<1>>> {
        match self {
            Self::Dense(dense) => dense.bias.as_ref(),
            Self::Packed(packed) => packed.bias.as_ref(),
        }
    }

    pub(crate) fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        match self {
            Self::Dense(dense) => dense.bias.as_mut(),
            Self::Packed(packed) => packed.bias.as_mut(),
        }
    }

    /// The same layer with another dense weight, in `dtype`.
    pub(crate) fn with_dense(&self, weight: Tensor<2>, dtype: FloatDType) -> Self {
        let weight = Param::from_tensor(weight.cast(dtype)).set_require_grad(false);
        Self::Dense(DenseLinear { weight, bias: self.bias().cloned() })
    }

    /// The same layer with another weight, quantized.
    ///
    /// # Errors
    /// Settings that do not go together.
    pub(crate) fn with_packed(
        &self,
        weight: Tensor<2>,
        config: &QuantConfig,
    ) -> Result<Self, QuantError> {
        let weight = PackedWeight::quantize(weight, config)?;
        Ok(Self::Packed(PackedLinear { weight, bias: self.bias().cloned() }))
    }

    /// How the weight is quantized, if it is.
    pub fn quant_config(&self) -> Option<QuantConfig> {
        let Self::Packed(packed) = self else { return None };
        let layout = packed.weight.layout();
        let config = QuantConfig::new(layout.format).block_size(layout.block_size);
        Some(config.double_quant(layout.scales == ScaleRule::DoubleQuant))
    }
}

/// `x · Wᵀ` in the dtype of `x`.
pub(crate) fn dense_product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let weight = weight.cast(x.dtype()).unsqueeze();
    Gemm::new().trans_rhs().run(x, weight)
}

/// `y` plus a bias over its last dimension.
pub(crate) fn add_bias<const D: usize>(y: Tensor<D>, bias: Option<&Param<Tensor<1>>>) -> Tensor<D> {
    let Some(bias) = bias else { return y };
    let bias = broadcast(bias.val(), &y);
    y + bias
}

/// A value for each item of the last dimension of `like`, in its dtype.
pub(crate) fn broadcast<const D: usize>(values: Tensor<1>, like: &Tensor<D>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[D - 1] = values.dims()[0];
    values.cast(like.dtype()).reshape(shape)
}
