//! Initialisations that take a part of the weight: PiSSA, OLoRA, LoftQ.

use super::{
    Init,
    linalg::{Svd, svd, svd_accurate, svd_iterative, to_mat, to_tensor},
};
use crate::{error::AdapterError, layer::AdaptedLayer};
use burn::tensor::{FloatDType, Tensor};
use burn_lora_kernels::Gemm;
use burn_lora_quant::{PackedWeight, QuantConfig};
use faer::Mat;
use rand::rngs::Xoshiro256PlusPlus;

/// A and B so that `scaling · B · A` is the part of the weight that `init` names.
pub(crate) fn factors(
    init: &Init,
    layer: &dyn AdaptedLayer,
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

/// A and B of the same size: `sqrt(s / scaling)` on each side.
fn halves(svd: &Svd, scaling: f64) -> [Mat<f32>; 2] {
    let half = |s: f32| (s / scaling as f32).sqrt();
    [svd.right(half), svd.left(half)]
}

/// LoftQ: the packed weight, A and B.
///
/// Each round quantizes what the update leaves of the weight, `Q = quant(W - s·B·A)`, and gives the
/// update the largest singular values of what quantization left, `W - Q`.
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

/// The packed weight alone: all that is needed where A and B come from a file.
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

/// The largest singular values of what quantization left.
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
