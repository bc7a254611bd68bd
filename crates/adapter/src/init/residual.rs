//! Initialisations that take a part of the weight: PiSSA, OLoRA, LoftQ.

use super::{
    Init,
    linalg::{Svd, svd, svd_accurate, svd_iterative, to_mat, to_tensor},
};
use crate::{error::AdapterError, layer::AdaptedLayer};
use burn::tensor::{FloatDType, Tensor};
use burn_lora_quant::{Gemm, PackedWeight, QuantConfig};
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
    weight: Tensor<2>,
    config: &QuantConfig,
    iterations: usize,
    path: &str,
    rank: usize,
    scaling: f64,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<(PackedWeight, [Tensor<2>; 2]), AdapterError> {
    let device = weight.device();
    let mut rest = weight.clone();
    let mut round = 1;
    loop {
        let packed = PackedWeight::quantize(rest, config)?;
        let error = weight.clone() - packed.dequantize(FloatDType::F32);
        let svd = svd_accurate(to_mat(error, path)?.as_ref(), rank, rng, path)?;
        let [a, b] = halves(&svd, scaling).map(|matrix| to_tensor(matrix.as_ref(), &device));
        if round == iterations {
            return Ok((packed, [a, b]));
        }
        rest = weight.clone() - Gemm::new().alpha(scaling as f32).run(b, a);
        round += 1;
    }
}
