//! Random numbers that weights start from.

use crate::config::LlamaConfig;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::f32::consts::TAU;

/// Standard deviation of initial weights: `initializer_range`.
pub(super) fn deviation(config: &LlamaConfig) -> f32 {
    config.raw["initializer_range"].as_f64().unwrap_or(0.02) as f32
}

/// Normally distributed numbers (Box and Muller).
pub(super) fn normal(seed: u64, deviation: f32, count: usize) -> Vec<f32> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let pairs = std::iter::repeat_with(move || {
        // In (0, 1], whose logarithm is finite.
        let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
        let angle = TAU * random.random::<f32>();
        [radius * angle.cos(), radius * angle.sin()]
    });
    pairs.flatten().map(|value| value * deviation).take(count).collect()
}
