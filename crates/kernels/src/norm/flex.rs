//! RMSNorm on the CPU: on all cores, in float32 for every dtype.

use super::{NormOps, NormSpec};
use crate::flex::{dot, from_f32, rows_of, to_f32};
use burn::backend::{Flex, TensorMetadata, tensor::FloatTensor};
use rayon::prelude::*;

/// `1 / sqrt(mean(x²) + eps)`.
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + eps).sqrt().recip()
}

impl NormOps for Flex {
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let (eps, offset) = (spec.eps as f32, spec.offset as f32);
        let (shape, dtype) = (x.shape(), x.dtype());
        let (x, weight) = (to_f32(x), to_f32(weight));
        let (x, weight): (&[f32], &[f32]) = (x.storage(), weight.storage());
        let width = weight.len().max(1);
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(rows_of(width)).for_each(
            |(out, x)| {
                let factor = inverse_rms(x, eps);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * factor * (weight + offset);
                }
            },
        );
        from_f32(out, shape, dtype)
    }

    fn rms_norm_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let (eps, offset) = (spec.eps as f32, spec.offset as f32);
        let (shape, dtype) = (x.shape(), x.dtype());
        let [grad, x, weight] = [grad, x, weight].map(to_f32);
        let (x, weight, grad): (&[f32], &[f32], &[f32]) =
            (x.storage(), weight.storage(), grad.storage());
        let width = weight.len().max(1);
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .zip(grad.par_chunks(width))
            .with_min_len(rows_of(width))
            .for_each(|((out, x), grad)| {
                let factor = inverse_rms(x, eps);
                for ((out, grad), weight) in out.iter_mut().zip(grad).zip(weight) {
                    *out = grad * (weight + offset);
                }
                let along = dot(out, x) * factor * factor / width as f32;
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (*out - x * along) * factor;
                }
            });
        from_f32(out, shape, dtype)
    }
}
