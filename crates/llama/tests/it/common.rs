//! What the tests of this crate share.

#[path = "../../../../tests/common/mod.rs"]
mod shared;
pub use shared::*;
#[path = "../../../../tests/common/models.rs"]
mod models;
pub use models::models;
#[path = "../../../../tests/common/tensors.rs"]
mod tensors;
pub use tensors::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;

use burn::tensor::{Device, Int, Tensor};
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
