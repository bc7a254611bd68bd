//! Small runs, for the tests of what surrounds them.

use crate::common::*;
use burn::tensor::Tensor;
use burn_lora_adapter::{Adaptable, AdaptableExt, Init, LoraConfig};
use burn_lora_llama::Llama;
use burn_lora_train::{Dataset, TrainConfig, data::Sample};
use std::path::Path;

pub fn lora() -> LoraConfig {
    LoraConfig::new(4, 12).all_linear().init(Init::Random).seed(3)
}

pub fn model() -> Llama {
    loader(&golden("gqa")).load(&device()).unwrap().with_adapter(&lora()).unwrap()
}

/// A base in which the embedding of one token is infinite.
pub fn with_infinite_token(token: usize) -> Llama {
    let mut model = loader(&golden("gqa")).load(&device()).unwrap();
    let mut layers = model.layers_mut();
    let (_, embedding) =
        layers.iter_mut().find(|(path, _)| path.ends_with("embed_tokens")).unwrap();
    let weight = embedding.weight();
    let [width, _] = weight.dims();
    let infinite = Tensor::full([width, 1], f32::INFINITY, &weight.device());
    let weight = weight.slice_assign([0..width, token..token + 1], infinite);
    embedding.set_weight(weight);
    drop(layers);
    model
}

/// Samples that can be learned: counting up.
pub fn data(from: u32, count: u32) -> Dataset {
    Dataset::from_samples((from..from + count).map(sample)).unwrap()
}

pub fn sample(number: u32) -> Sample {
    let length = 4 + number % 5;
    let ids: Vec<u32> = (0..length).map(|at| (number * 13 + at) % 120 + 1).collect();
    Sample { loss_mask: vec![true; ids.len()], ids }
}

/// Steps of four samples, each in the log.
pub fn small(output: &Path) -> TrainConfig {
    TrainConfig { log_steps: 1, ..TrainConfig::new(1e-3) }.batch_size(4).output(output)
}
