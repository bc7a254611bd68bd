//! Initialisations from a part of the weight: PiSSA, OLoRA, LoftQ.

use super::{
    Init,
    linalg::{Svd, svd, svd_accurate, svd_iterative, to_mat, to_tensor},
};
use crate::{error::AdapterError, frozen::FrozenLayer};
use burn::tensor::{FloatDType, Tensor};
use burn_lora_kernels::Gemm;
use burn_lora_quant::{PackedWeight, QuantConfig};
use faer::Mat;
use rand::rngs::Xoshiro256PlusPlus;

/// Computes A and B of PiSSA (`scaling · B · A` is the part of the largest singular values) or OLoRA
/// (`B · A` is the first part of the QR decomposition).
pub(crate) fn factors(
    init: &Init,
    layer: &dyn FrozenLayer,
    path: &str,
    rank: usize,
    scaling: f64,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<[Tensor<2>; 2], AdapterError> {
    let weight = to_mat(layer.weight(), path)?;
    let [a, b] = match init {
        Init::Pissa => halves(&svd(weight.as_ref(), rank, path)?, scaling),
        Init::PissaNiter(rounds) => {
            halves(&svd_iterative(weight.as_ref(), rank, *rounds, rng, path)?, scaling)
        }
        _ => {
            let qr = weight.qr();
            let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
            [r.subrows(0, rank).to_owned(), q.subcols(0, rank).to_owned()]
        }
    };
    Ok([a, b].map(|matrix| to_tensor(matrix.as_ref(), &layer.device())))
}

/// Splits the singular values evenly between A and B: `sqrt(s / scaling)` on each side.
fn halves(svd: &Svd, scaling: f64) -> [Mat<f32>; 2] {
    let half = |s: f32| (s / scaling as f32).sqrt();
    [svd.right(half), svd.left(half)]
}

/// Computes the packed weight, A and B of LoftQ.
///
/// Each round quantizes the weight without the update, `Q = quant(W - s·B·A)`, and sets the update to
/// the largest singular values of the quantization error, `W - Q`.
pub(crate) fn loftq(
    weight: &Tensor<2>,
    config: &QuantConfig,
    iterations: usize,
    path: &str,
    rank: usize,
    scaling: f64,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<(PackedWeight, [Tensor<2>; 2]), AdapterError> {
    let packed = loftq_base(weight, config, iterations, path, rank, rng)?;
    let error = loftq_error(weight, &packed, path, rank, rng)?;
    let device = weight.device();
    Ok((packed, halves(&error, scaling).map(|matrix| to_tensor(matrix.as_ref(), &device))))
}

/// Computes only the packed weight of LoftQ, for A and B that come from a file.
pub(crate) fn loftq_base(
    weight: &Tensor<2>,
    config: &QuantConfig,
    iterations: usize,
    path: &str,
    rank: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<PackedWeight, AdapterError> {
    let mut packed = PackedWeight::quantize(weight.clone(), config)?;
    for _ in 1..iterations {
        let error = loftq_error(weight, &packed, path, rank, rng)?;
        let [a, b] = halves(&error, 1.0).map(|matrix| to_tensor(matrix.as_ref(), &weight.device()));
        packed = PackedWeight::quantize(weight.clone() - Gemm::new().run(b, a), config)?;
    }
    Ok(packed)
}

/// Largest singular values of the quantization error.
fn loftq_error(
    weight: &Tensor<2>,
    packed: &PackedWeight,
    path: &str,
    rank: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<Svd, AdapterError> {
    let error = weight.clone() - packed.dequantize(FloatDType::F32);
    svd_accurate(to_mat(error, path)?.as_ref(), rank, rng, path)
}
