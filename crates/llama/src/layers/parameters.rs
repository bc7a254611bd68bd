//! Source of the parameters that modules are built from.

use crate::error::LlamaError;
use burn::{
    module::{Param, ParamId},
    tensor::{Device, Shape, Tensor},
};
use burn_lora_adapter::{AdaptedEmbedding, AdaptedLinear, AdaptedVector, Base};
use std::cell::RefCell;

/// Source of parameters by path and shape: a checkpoint, or [`Recorder`]. What a module asks for is
/// the only statement of its tensors.
///
/// Errors are those of the source.
pub(crate) trait Parameters {
    /// Linear layer `[out, in]` of a block, quantized if that is asked for.
    fn linear(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError>;

    /// Linear layer whose rows are those of some weights of the checkpoint, each `[out, in]`;
    /// quantized if that is asked for.
    fn joined(
        &self,
        path: &str,
        parts: &[String],
        shape: [usize; 2],
    ) -> Result<AdaptedLinear, LlamaError>;

    /// Linear layer `[out, in]` that is never quantized.
    fn dense(&self, path: &str, shape: [usize; 2], bias: bool)
    -> Result<AdaptedLinear, LlamaError>;

    /// Embedding `[vocabulary, hidden]`.
    fn embedding(&self, path: &str, shape: [usize; 2]) -> Result<AdaptedEmbedding, LlamaError>;

    /// Vector, such as the weight of a norm, with the full name of its tensor.
    fn vector(&self, path: &str, name: &str, length: usize) -> Result<AdaptedVector, LlamaError>;
}

/// Tensor of a checkpoint that is not quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name: the path of its module, and `weight` or `bias` unless it is a parameter itself.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Path of the layer that it is a part of.
    pub layer: String,
    /// Its first row in the layer.
    pub start: usize,
    /// `true` if it is the weight of a linear layer that is quantized if that is asked for.
    pub quantizable: bool,
}

/// Records which parameters are asked for. The modules that it gives have shapes, and no memory.
#[derive(Default)]
pub(crate) struct Recorder(RefCell<Vec<TensorSpec>>);

impl Recorder {
    /// Tensors that were asked for, in this order.
    pub fn into_tensors(self) -> Vec<TensorSpec> {
        self.0.into_inner()
    }

    fn tensor(&self, layer: &str, name: String, shape: &[usize], quantizable: bool) {
        let (shape, layer) = (shape.to_vec(), layer.to_owned());
        self.0.borrow_mut().push(TensorSpec { name, shape, layer, start: 0, quantizable });
    }

    fn weight(&self, path: &str, shape: &[usize], quantizable: bool) {
        self.tensor(path, format!("{path}.weight"), shape, quantizable);
    }

    fn layer(&self, path: &str, shape: [usize; 2], bias: bool, quantizable: bool) -> AdaptedLinear {
        self.weight(path, &shape, quantizable);
        if bias {
            self.tensor(path, format!("{path}.bias"), &shape[..1], false);
        }
        let bias = bias.then(|| unset([shape[0]]));
        AdaptedLinear::new(Base::from_params(unset(shape), bias))
    }
}

/// Parameter of which only the shape is used.
fn unset<const D: usize>(shape: [usize; D]) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, _| Tensor::zeros(shape, device);
    Param::uninitialized(ParamId::new(), zeros, Device::default(), false, Shape::from(shape))
}

impl Parameters for Recorder {
    fn linear(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError> {
        Ok(self.layer(path, shape, bias, true))
    }

    fn joined(
        &self,
        path: &str,
        parts: &[String],
        [out, width]: [usize; 2],
    ) -> Result<AdaptedLinear, LlamaError> {
        for (index, part) in parts.iter().enumerate() {
            self.tensor(path, format!("{part}.weight"), &[out, width], true);
            self.0.borrow_mut().last_mut().expect("just pushed").start = index * out;
        }
        let weight = unset([parts.len() * out, width]);
        Ok(AdaptedLinear::new(Base::from_params(weight, None)))
    }

    fn dense(
        &self,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<AdaptedLinear, LlamaError> {
        Ok(self.layer(path, shape, bias, false))
    }

    fn embedding(&self, path: &str, shape: [usize; 2]) -> Result<AdaptedEmbedding, LlamaError> {
        self.weight(path, &shape, false);
        Ok(AdaptedEmbedding::from_param(unset(shape)))
    }

    fn vector(&self, path: &str, name: &str, length: usize) -> Result<AdaptedVector, LlamaError> {
        self.tensor(path, name.to_owned(), &[length], false);
        Ok(AdaptedVector::from_param(unset([length])))
    }
}
