//! Sums of squares on the CPU, on all cores.

use super::{PARTIALS, SumOfSquaresOps};
use crate::{flex::TASK, optimizer::Batch};
use burn::{
    backend::{Flex, tensor::FloatTensor},
    tensor::TensorData,
};
use burn_flex::FlexTensor;
use rayon::prelude::*;

impl SumOfSquaresOps for Flex {
    fn add_squares(
        x: FloatTensor<Self>,
        partials: FloatTensor<Self>,
        _batch: Batch,
    ) -> FloatTensor<Self> {
        let [x, mut partials] = [x, partials].map(|tensor| tensor.to_contiguous());
        let x = x.storage::<f32>();
        let used = x.len().div_ceil(TASK).min(PARTIALS);
        let sums = &mut partials.storage_mut::<f32>()[..used];
        sums.par_iter_mut().enumerate().for_each(|(i, sum)| {
            let chunks = x.chunks(TASK).skip(i).step_by(PARTIALS);
            *sum += chunks.map(squares).sum::<f64>() as f32;
        });
        partials
    }

    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self> {
        let partials = partials.to_contiguous();
        let sum: f64 = partials.storage::<f32>().iter().copied().map(f64::from).sum();
        FlexTensor::from_data(TensorData::new(vec![sum as f32], [1]))
    }
}

/// Sum of squares, in lanes that the compiler keeps in vector registers.
fn squares(x: &[f32]) -> f64 {
    let (vectors, rest) = x.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for vector in vectors {
        for (lane, x) in lanes.iter_mut().zip(vector) {
            *lane += f64::from(*x).powi(2);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
}
