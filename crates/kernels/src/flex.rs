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

/// Dot product of vectors of the same length, by AVX2 where the processor has it.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the instructions.
        return unsafe { dot_avx2(a, b) };
    }
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_ps(); 4];
    let (a_parts, a_rest) = a.as_chunks::<32>();
    let (b_parts, b_rest) = b.as_chunks::<32>();
    for (a, b) in a_parts.iter().zip(b_parts) {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight of 32 elements.
            let [a, b] = [a, b].map(|x| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * part)) });
            *sum = _mm256_fmadd_ps(a, b, *sum);
        }
    }
    let [a, b, c, d] = sums;
    let sum = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
    let mut lanes = [0.0f32; 8];
    // SAFETY: there are eight.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}
