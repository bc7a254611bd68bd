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

use burn::tensor::{Device, Int, Tensor, activation::log_softmax};
use burn_lora_llama::{Llama, Segments};
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

/// Runs the batch of a file, compares the logits of tokens that are no padding and the loss, and returns the
/// loss.
pub fn compare(model: &Llama, path: &Path) -> Tensor<1> {
    let (tokens, segments, labels) = batch_of(path, &device());
    let io = tensors(path);
    let logits = model.forward(tokens, &segments);

    let [_, length, vocabulary] = logits.dims();
    let mask = &io["attention_mask"].1;
    let real = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(vocabulary).zip(mask).filter(|(_, mask)| **mask != 0.0);
        rows.flat_map(|(row, _)| row.iter().copied()).collect()
    };
    let found = difference(&real(&vec(logits.clone())), &real(&io["logits"].1));
    assert!(found < 1e-4, "{}: logits differ by {found}", path.display());

    let targets = (0..labels.len() - 1).filter(|at| at % length != length - 1).filter_map(|at| {
        let target = usize::try_from(labels[at + 1]).ok()?;
        Some((at * vocabulary + target) as i32)
    });
    let targets: Vec<i32> = targets.collect();
    let count = targets.len();
    let log = log_softmax(logits, 2).reshape([-1]);
    let loss = -log.select(0, int(targets, [count], &device())).mean();
    let found = (vec(loss.clone())[0] - io["loss"].1[0]).abs();
    assert!(found < 1e-5, "{}: the loss differs by {found}", path.display());
    loss
}
