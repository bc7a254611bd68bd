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
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
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
        let (mut loss, mut correct) = (vec![0.0f32; count], vec![0.0f32; count]);
        let spread = smoothing / width as f32;
        grad.par_chunks_mut(width.max(1))
            .zip(logits.par_chunks(width.max(1)))
            .zip(targets)
            .zip(loss.par_iter_mut().zip(&mut correct))
            .for_each(|(((grad, x), &target), (loss, hit))| {
                let target = target as usize;
                let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut total = 0.0;
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad = (x - most).exp();
                    total += *grad;
                }
                for grad in grad.iter_mut() {
                    *grad = *grad / total - spread;
                }
                grad[target] -= 1.0 - smoothing;
                let mean = if smoothing > 0.0 { x.iter().sum::<f32>() * spread } else { 0.0 };
                *loss = most + total.ln() - (1.0 - smoothing) * x[target] - mean;
                *hit = f32::from(u8::from(x[target] >= most));
            });
        let rows = |values| from_f32(values, Shape::new([count]), DType::F32);
        (rows(loss), rows(correct), from_f32(grad, shape, dtype))
    }
}
