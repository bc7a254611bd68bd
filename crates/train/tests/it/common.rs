//! What the tests of this crate share.

#[path = "../../../../tests/common/mod.rs"]
mod shared;
pub use shared::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;

use burn::tensor::FloatDType;
use burn_lora_llama::{Llama, Loader};
use burn_lora_train::{Dataset, data::Sample};
use std::{
    path::Path,
    sync::{Mutex, MutexGuard},
};

pub fn loader(folder: &Path) -> Loader {
    Llama::from_pretrained(folder).dtype(FloatDType::F32)
}

/// The batch of the goldens, row by row without padding.
pub fn golden_samples(variant: &str) -> Vec<Sample> {
    let io = tensors(&golden(variant).join("io.safetensors"));
    let length = io["input_ids"].0[1];
    let rows = |name: &str| io[name].1.chunks(length).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (ids, mask, labels) = (rows("input_ids"), rows("attention_mask"), rows("labels"));
    (0..ids.len())
        .map(|row| {
            let kept: Vec<usize> = (0..length).filter(|at| mask[row][*at] > 0.0).collect();
            Sample {
                ids: kept.iter().map(|at| ids[row][*at] as u32).collect(),
                loss_mask: kept.iter().map(|at| labels[row][*at] >= 0.0).collect(),
            }
        })
        .collect()
}

pub fn golden_data(variant: &str) -> Dataset {
    Dataset::from_samples(golden_samples(variant)).unwrap()
}

/// The largest absolute difference.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

/// For tests that draw random numbers on the device: a process has one generator for all threads.
pub fn the_generator() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
