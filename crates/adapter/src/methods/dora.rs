//! Norms of DoRA.

use crate::frozen::FrozenLayer;
use burn::tensor::{FloatDType, Tensor};
use burn_lora_kernels::Gemm;

/// Norm of each row of `W + scaling · B · A`, `[out]` in float32, without a gradient.
pub(super) fn weight_norm(
    layer: &dyn FrozenLayer,
    base_norm: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f32,
) -> Tensor<1> {
    let base_norm = base_norm.unwrap_or_else(|| squared_norms(layer.weight()));
    let cross = (layer.product(a.clone()).transpose() * b.clone()).sum_dim(1);
    let gram = Gemm::new().trans_rhs().run(a.clone(), a);
    let square = (Gemm::new().run(b.clone(), gram) * b).sum_dim(1);
    let update = cross * (2.0 * scaling) + square * (scaling * scaling);
    // Cancellation can put the sum below its true value, which is never below zero.
    (base_norm + update.squeeze_dim::<1>(1)).clamp_min(0.0).sqrt()
}

/// Squared norm of each row.
pub(super) fn squared_norms(weight: Tensor<2>) -> Tensor<1> {
    let weight = weight.inner().cast(FloatDType::F32);
    (weight.clone() * weight).sum_dim(1).squeeze_dim(1)
}
