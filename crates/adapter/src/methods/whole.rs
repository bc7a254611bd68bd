//! Whole layers that an adapter trains.

use crate::{
    frozen::FrozenLayer,
    method::{Role, UpdateTensor},
    update::{Replacement, Update},
};
use burn::{
    module::{Module, Param},
    tensor::{FloatDType, Tensor},
};

/// Copy of a whole layer that an adapter trains (`modules_to_save`).
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// model.add_adapter("default", &LoraConfig::new(2, 4).targets([""; 0]).modules_to_save(["linear"]))?;
/// let copy = model.linear.adapters().saved("default").unwrap();
/// assert_eq!(copy.weight.dims(), [16, 16]);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Module, Debug)]
pub struct SavedModule {
    /// Weight in float32, with the shape that it has in files.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl SavedModule {
    /// Creates a trainable copy of a layer.
    pub(crate) fn new(layer: &dyn FrozenLayer) -> Self {
        let autodiff = layer.device().is_autodiff();
        let weight = layer.file_layout(layer.weight());
        let bias = layer.bias().map(|bias| bias.val().inner().cast(FloatDType::F32));
        // A copy, even if the base is float32: training must not overwrite the base's memory.
        let weight = weight * 1.0;
        let (weight, bias) =
            if autodiff { (weight.autodiff(), bias.map(Tensor::autodiff)) } else { (weight, bias) };
        Self { weight: Param::from_tensor(weight), bias: bias.map(Param::from_tensor) }
    }
}

impl SavedModule {
    /// Parameters of the copy of a layer.
    pub(crate) fn tensors(file_shape: &[usize], bias: bool) -> Vec<UpdateTensor> {
        let tensor = |field: &'static str, shape: &[usize]| {
            let name = format!("modules_to_save.{field}");
            UpdateTensor::new(field, field, shape, Role::Saved).or(&name)
        };
        // The outputs of a linear layer come first.
        let bias = bias.then(|| tensor("bias", &file_shape[..1]));
        std::iter::once(tensor("weight", file_shape)).chain(bias).collect()
    }
}

impl Update for SavedModule {
    fn replacement(&self) -> Option<Replacement<'_>> {
        Some(Replacement { weight: &self.weight, bias: self.bias.as_ref() })
    }
}
