//! A linear layer with a packed weight.

use crate::packed::PackedWeight;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

/// A frozen linear layer with a 4-bit weight: `y = x · W^T + b`.
///
/// Gradients flow to `x` only.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_lora_quant::{PackedLinear, PackedWeight, QuantConfig};
///
/// let device = Device::default();
/// let dense = Tensor::<2>::random([8, 64], Distribution::Default, &device);
/// let linear = PackedLinear::new(PackedWeight::quantize(dense, &QuantConfig::nf4())?, None);
/// let y = linear.forward(Tensor::<3>::ones([2, 5, 64], &device));
/// assert_eq!(y.dims(), [2, 5, 8]);
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub struct PackedLinear {
    /// The weight, `[out, in]`.
    pub weight: PackedWeight,
    /// The bias, `[out]`; it never requires a gradient.
    pub bias: Option<Param<Tensor<1>>>,
}

impl PackedLinear {
    /// Creates a layer from a weight and an optional bias.
    ///
    /// # Panics
    /// If the bias is not of shape `[out]`.
    pub fn new(weight: PackedWeight, bias: Option<Tensor<1>>) -> Self {
        let bias = bias.map(|bias| {
            assert_eq!(bias.dims(), [weight.shape()[0]], "the bias of {:?}", weight.shape());
            Param::from_tensor(bias).set_require_grad(false)
        });
        Self { weight, bias }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - output: `[..., out]`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let y = self.weight.matmul(x);
        match &self.bias {
            Some(bias) => {
                let mut shape = [1; D];
                shape[D - 1] = self.weight.shape()[0];
                y + bias.val().cast(dtype).reshape(shape)
            }
            None => y,
        }
    }
}
