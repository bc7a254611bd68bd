//! Products of few rows on the CPU, which are bound by the reading of the weight: each of its rows once, on all cores.

use super::Gemm;
use crate::flex::{TASK, dot, from_f32};
use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Most rows for which this is faster than a general product.
const ROWS: usize = 4;

/// Computes `alpha · x · Wᵀ` for few rows of float32 and a weight that lies in memory row after row.
pub(super) fn few_rows(x: &FlexTensor, weight: &FlexTensor, gemm: Gemm) -> Option<FlexTensor> {
    let (x_shape, w_shape) = (x.shape(), weight.shape());
    let last = x_shape.num_dims() - 1;
    let (width, height) = (x_shape[last], w_shape[last - 1]);
    let rows: usize = x_shape[..last].iter().product();
    let plain = gemm.trans_rhs && !gemm.trans_lhs && w_shape[..last - 1].iter().all(|n| *n == 1);
    let floats = x.dtype() == DType::F32 && weight.dtype() == DType::F32;
    let fits = (1..=ROWS).contains(&rows) && width > 0 && w_shape[last] == width;
    if !(plain && floats && fits && weight.is_contiguous()) {
        return None;
    }
    let x = x.to_contiguous();
    let (x, weight): (&[f32], &[f32]) = (x.storage(), weight.as_slice()?);
    // Transposed, so that the results of a task are contiguous.
    let mut found = vec![0.0f32; height * rows];
    let row_of = rows_of();
    let results = found.par_chunks_mut(rows).zip(weight.par_chunks(width));
    results.with_min_len(TASK.div_ceil(width)).for_each(|(sums, weight)| {
        row_of(weight, x, sums);
        sums.iter_mut().for_each(|sum| *sum *= gemm.alpha);
    });
    let mut shape = x_shape.to_vec();
    shape[last] = height;
    let values = match rows {
        1 => found,
        _ => (0..rows).flat_map(|row| found.iter().skip(row).step_by(rows).copied()).collect(),
    };
    Some(from_f32(values, Shape::from(shape), DType::F32))
}

/// A function for the dot products of a row of the weight with the rows of `x`.
fn rows_of() -> fn(&[f32], &[f32], &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return |weight, x, sums| {
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(weight.len())) {
                // SAFETY: the processor has the instructions.
                *sum = unsafe { dot_avx2(weight, x) };
            }
        };
    }
    |weight, x, sums| {
        let rows = sums.iter_mut().zip(x.chunks_exact(weight.len()));
        rows.for_each(|(sum, x)| *sum = dot(weight, x));
    }
}

/// Dot product of vectors of the same length.
///
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
    lanes.iter().sum::<f32>() + dot(a_rest, b_rest)
}
