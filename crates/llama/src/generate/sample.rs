//! Sampling: from the logits of a row to its next token.

use super::config::GenerateConfig;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::collections::HashSet;

/// Sampler of one row.
pub(super) struct Sampler {
    rng: Xoshiro256PlusPlus,
    seen: HashSet<u32>,
}

impl Sampler {
    /// Creates the sampler of a row with this prompt.
    pub fn new(config: &GenerateConfig, prompt: &[u32]) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            seen: prompt.iter().copied().collect(),
        }
    }

    /// Returns the next token; may change the logits.
    pub fn next(&mut self, config: &GenerateConfig, logits: &mut [f32]) -> u32 {
        if config.repetition_penalty != 1.0 {
            for &token in &self.seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    let penalty = config.repetition_penalty;
                    *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                }
            }
        }
        let token =
            if config.temperature == 0.0 { argmax(logits) } else { self.draw(config, logits) };
        self.seen.insert(token);
        token
    }

    fn draw(&mut self, config: &GenerateConfig, logits: &[f32]) -> u32 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - largest) / config.temperature).exp();
        let mut kept: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| (token as u32, weight(logit)))
            .collect();
        // By weight, ties by number: the same tokens whatever order a sort leaves ties in.
        let by_weight = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if config.top_k > 0 && config.top_k < kept.len() {
            kept.select_nth_unstable_by(config.top_k - 1, by_weight);
            kept.truncate(config.top_k);
        }
        if config.top_p < 1.0 {
            let limit = config.top_p * kept.iter().map(|item| item.1).sum::<f32>();
            kept.sort_unstable_by(by_weight);
            let mut sum = 0.0;
            let before = |&&(_, weight): &&(u32, f32)| {
                let reached = sum >= limit;
                sum += weight;
                !reached
            };
            let count = kept.iter().take_while(before).count();
            kept.truncate(count.max(1));
        }
        // Weights are relative to the likeliest token's.
        kept.retain(|item| item.1 >= config.min_p);
        kept.sort_unstable_by_key(|item| item.0);

        let total: f64 = kept.iter().map(|item| item.1 as f64).sum();
        let mut at = self.rng.random::<f64>() * total;
        for &(token, weight) in &kept {
            at -= weight as f64;
            if at < 0.0 {
                return token;
            }
        }
        // Rounding, or NaN logits.
        kept.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or_else(|| argmax(logits), |item| item.0)
    }
}

/// Index of the largest logit; of several, the first.
fn argmax(logits: &[f32]) -> u32 {
    let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
    let first = (0, f32::NEG_INFINITY);
    logits.iter().copied().enumerate().fold(first, better).0 as u32
}
