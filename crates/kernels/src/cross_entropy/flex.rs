//! Cross-entropy on the CPU: on all cores, in float32 for every dtype.

use super::CrossEntropyOps;
use crate::flex::{from_f32, to_f32};
use burn::{
    backend::{
        Flex, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape},
};
use rayon::prelude::*;

impl CrossEntropyOps for Flex {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (logits.shape(), logits.dtype());
        let (logits, targets) = (to_f32(logits), targets.to_contiguous());
        let (logits, targets): (&[f32], &[i32]) = (logits.storage(), targets.storage());
        let (count, width) = (shape[0], shape[1]);
        let known = |target: i32| usize::try_from(target).is_ok_and(|target| target < width);
        if let Some((row, target)) = targets.iter().enumerate().find(|(_, target)| !known(**target))
        {
            panic!("cross_entropy: target {target} of row {row}, a vocabulary of {width}");
        }
        let mut grad = vec![0.0f32; logits.len()];
        let mut of_rows = vec![[0.0f32; 4]; count];
        let spread = smoothing / width as f32;
        grad.par_chunks_mut(width.max(1))
            .zip(logits.par_chunks(width.max(1)))
            .zip(targets)
            .zip(&mut of_rows)
            .for_each(|(((grad, x), &target), of_row)| {
                let target = target as usize;
                let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut total = 0.0;
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad = (x - most).exp();
                    total += *grad;
                }
                // (About the largest, so that large terms do not cancel.)
                let (mut weighted, mut all) = (0.0, 0.0);
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad /= total;
                    weighted += *grad * (x - most);
                    all += x;
                    *grad -= spread;
                }
                grad[target] -= 1.0 - smoothing;
                let mean = if smoothing > 0.0 { spread * all } else { 0.0 };
                let loss = most + total.ln() - (1.0 - smoothing) * x[target] - mean;
                let correct = f32::from(u8::from(x[target] >= most));
                *of_row = [loss, correct, total.ln() - weighted, all / width as f32];
            });
        let of_rows = (0..4).flat_map(|which| of_rows.iter().map(move |of_row| of_row[which]));
        let of_rows = from_f32(of_rows.collect(), Shape::new([4, count]), DType::F32);
        (of_rows, from_f32(grad, shape, dtype))
    }
}
