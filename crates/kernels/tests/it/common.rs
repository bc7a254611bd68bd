//! What the tests of this crate share.

#[path = "../../../../tests/common/devices.rs"]
mod devices;
pub use devices::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;
#[path = "../../../../tests/common/tensors.rs"]
mod tensors;
pub use tensors::*;

/// The device under test: the GPU that `BURN_LORA_GPU` names, or the CPU.
pub fn device() -> burn::tensor::Device {
    devices().pop().expect("a build for the CPU, or BURN_LORA_GPU")
}

/// Reproducible numbers, about normal.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..count).map(|_| (0..6).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1.4).collect()
}
