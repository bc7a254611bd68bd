//! What kernels share on the CPU.

use burn::{
    backend::{Flex, ops::FloatTensorOps},
    tensor::{DType, FloatDType, Shape, TensorData},
};
use burn_flex::FlexTensor;

/// Elements a task, at least: below that, sharing costs more than it brings.
pub(crate) const TASK: usize = 16 << 10;

/// Rows a task of so many elements.
pub(crate) fn rows_of(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

/// A tensor in float32, with nothing before, between and after its values; itself where it is so.
pub fn to_f32(tensor: FlexTensor) -> FlexTensor {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::F32 => tensor,
        _ => Flex::float_cast(tensor, FloatDType::F32),
    }
}

/// A tensor of float32 values in `dtype`.
pub fn from_f32(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    let tensor = FlexTensor::from_data(TensorData::new(values, shape));
    if dtype == DType::F32 { tensor } else { Flex::float_cast(tensor, dtype.into()) }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
