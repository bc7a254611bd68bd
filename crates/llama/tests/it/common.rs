//! What the tests of this crate share.

#[path = "../../../../tests/common/mod.rs"]
mod shared;
pub use shared::*;
#[path = "../../../../tests/common/models.rs"]
mod models;
pub use models::models;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_llama::Segments;
use std::path::Path;

pub const VARIANTS: [&str; 2] = ["gqa", "llama3"];

/// The tokens of a golden batch.
pub fn batch(variant: &str, device: &Device) -> (Tensor<2, Int>, Segments, Vec<i32>) {
    batch_of(&golden(variant).join("io.safetensors"), device)
}

/// The tokens, the samples and the labels of a file.
pub fn batch_of(path: &Path, device: &Device) -> (Tensor<2, Int>, Segments, Vec<i32>) {
    let io = tensors(path);
    let ints = |name: &str| io[name].1.iter().map(|value| *value as i32).collect::<Vec<_>>();
    let shape = [io["input_ids"].0[0], io["input_ids"].0[1]];
    let mask: Vec<Vec<u8>> = ints("attention_mask")
        .chunks(shape[1])
        .map(|row| row.iter().map(|item| *item as u8).collect())
        .collect();
    let segments = Segments::from_mask(&mask).unwrap();
    (int(ints("input_ids"), shape, device), segments, ints("labels"))
}

pub fn int<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

pub fn float<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

pub fn vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().cast(DType::F32).into_data().try_into_vec().unwrap()
}

/// The largest absolute difference.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

/// The norm of the difference over the norm of what is expected.
pub fn relative(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    difference / norm(&mut expected.iter().copied()).max(1e-12)
}

/// Reproducible numbers, about normal.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..count).map(|_| (0..6).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1.4).collect()
}
