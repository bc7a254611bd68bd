//! Helpers of kernels on the CPU.

use burn::{
    backend::{Flex, ops::FloatTensorOps},
    tensor::{DType, FloatDType, Shape, TensorData},
};
use burn_flex::FlexTensor;

/// Minimal number of elements per task: for fewer, parallelism costs more than it saves.
pub(crate) const TASK: usize = 16 << 10;

/// Minimal number of rows of `width` elements per task.
pub(crate) fn rows_of(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

/// Returns a tensor in float32, contiguous, without a copy if it is so already.
pub fn to_f32(tensor: FlexTensor) -> FlexTensor {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::F32 => tensor,
        _ => Flex::float_cast(tensor, FloatDType::F32),
    }
}

/// Creates a tensor in `dtype` from float32 values.
pub fn from_f32(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    let tensor = FlexTensor::from_data(TensorData::new(values, shape));
    if dtype == DType::F32 { tensor } else { Flex::float_cast(tensor, dtype.into()) }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
