//! Random initialisations, determined by the seed and the layer's path.

use super::linalg::{normal, tensor, to_tensor};
use crate::frozen::{FrozenLayer, LayerKind};
use burn::tensor::Tensor;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use rand_distr::{Distribution, StandardNormal, Uniform};

/// Random generator of one layer: the same on every device, whichever other layers there are.
pub(crate) fn generator(seed: u64, path: &str) -> Xoshiro256PlusPlus {
    // FNV-1a: unlike the standard library's hash it is the same in every version.
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Xoshiro256PlusPlus::seed_from_u64(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn fill<D: Distribution<f32>>(
    shape: [usize; 2],
    distribution: D,
    layer: &dyn FrozenLayer,
    rng: &mut Xoshiro256PlusPlus,
) -> Tensor<2> {
    let values = distribution.sample_iter(rng).take(shape[0] * shape[1]).collect();
    tensor(values, shape, &layer.device())
}

/// Samples U(-1/sqrt(columns), 1/sqrt(columns)): PyTorch's `kaiming_uniform_(a=sqrt(5))`, the default
/// of its linear layers.
pub(crate) fn kaiming(
    shape: [usize; 2],
    layer: &dyn FrozenLayer,
    rng: &mut Xoshiro256PlusPlus,
) -> Tensor<2> {
    let bound = 1.0 / (shape[1] as f32).sqrt();
    fill(shape, Uniform::new(-bound, bound).expect("a bound over zero"), layer, rng)
}

/// Samples N(0, std²).
pub(crate) fn gaussian(
    shape: [usize; 2],
    std: f32,
    layer: &dyn FrozenLayer,
    rng: &mut Xoshiro256PlusPlus,
) -> Tensor<2> {
    fill(shape, StandardNormal.map(move |value: f32| value * std), layer, rng)
}

/// Zeros, in float32.
pub(crate) fn zeros(shape: [usize; 2], layer: &dyn FrozenLayer) -> Tensor<2> {
    tensor(vec![0.0; shape[0] * shape[1]], shape, &layer.device())
}

/// A and B of an embedding: B from N(0, 1), A zero if `zero`, else from N(0, 1).
pub(crate) fn embedding(
    rank: usize,
    layer: &dyn FrozenLayer,
    zero: bool,
    rng: &mut Xoshiro256PlusPlus,
) -> [Tensor<2>; 2] {
    debug_assert_eq!(layer.kind(), LayerKind::Embedding);
    let [hidden, vocabulary] = layer.shape();
    let b = gaussian([hidden, rank], 1.0, layer, rng);
    let a = [rank, vocabulary];
    [if zero { zeros(a, layer) } else { gaussian(a, 1.0, layer, rng) }, b]
}

/// A and B from the even and the odd rows of one orthogonal matrix, scaled by 0.1: `B · A` is zero,
/// and neither of them is.
pub(crate) fn orthogonal(
    rank: usize,
    layer: &dyn FrozenLayer,
    rng: &mut Xoshiro256PlusPlus,
) -> [Tensor<2>; 2] {
    let [out, width] = layer.shape();
    let q = normal(rank, rank, rng).qr().compute_thin_Q();
    let half =
        |first: usize| faer::Mat::from_fn(rank / 2, rank, |i, j| q[(2 * i + first, j)] * 0.1);
    let a = (normal(width, rank / 2, rng) * half(0)).transpose().to_owned();
    let b = normal(out, rank / 2, rng) * half(1);
    [a, b].map(|matrix| to_tensor(matrix.as_ref(), &layer.device()))
}
