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
    let results = found.par_chunks_mut(rows).zip(weight.par_chunks(width));
    results.with_min_len(TASK.div_ceil(width)).for_each(|(sums, weight)| {
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(width)) {
            *sum = gemm.alpha * dot(weight, x);
        }
    });
    let mut shape = x_shape.to_vec();
    shape[last] = height;
    let values = match rows {
        1 => found,
        _ => (0..rows).flat_map(|row| found.iter().skip(row).step_by(rows).copied()).collect(),
    };
    Some(from_f32(values, Shape::from(shape), DType::F32))
}
