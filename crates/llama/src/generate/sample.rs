//! Sampling: from the logits of a row to its next token.

use super::config::GenerateConfig;
use burn_lora_kernels::argmax;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::{cmp::Ordering, collections::HashMap};

/// Sampler of one row.
pub(super) struct Sampler {
    rng: Xoshiro256PlusPlus,
    /// Tokens of the row, and how often each was generated.
    seen: HashMap<u32, usize>,
}

/// Log-probabilities of a place of a text: logarithms of the softmax of the model's logits, before any setting changes them.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// Of the token that was taken.
    pub taken: f32,
    /// Of the likeliest tokens, from the likeliest on.
    pub likeliest: Vec<(u32, f32)>,
}

/// By value, ties by number: the same tokens whatever order a sort leaves ties in.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `count` largest, in no order.
fn largest(values: &mut Vec<(u32, f32)>, count: usize) {
    if count < values.len() {
        values.select_nth_unstable_by(count.max(1) - 1, descending);
        values.truncate(count);
    }
}

/// Log-probabilities of the logits of a place.
pub(super) fn log_probs(logits: &[f32], taken: u32, count: usize) -> LogProbs {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let of = |logit: f32| (f64::from(logit - most) - sum.ln()) as f32;
    let mut likeliest: Vec<_> = (0..).zip(logits.iter().copied()).collect();
    largest(&mut likeliest, count);
    likeliest.sort_unstable_by(descending);
    let likeliest = likeliest.into_iter().map(|(token, logit)| (token, of(logit)));
    LogProbs { taken: of(logits[taken as usize]), likeliest: likeliest.collect() }
}

impl Sampler {
    /// Creates the sampler of a row with this prompt.
    pub fn new(config: &GenerateConfig, prompt: &[u32]) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            seen: prompt.iter().map(|token| (*token, 0)).collect(),
        }
    }

    /// Returns the next token; may change the logits.
    pub fn next(&mut self, config: &GenerateConfig, logits: &mut [f32]) -> u32 {
        if config.has_penalties() {
            for (&token, &times) in &self.seen {
                let Some(logit) = logits.get_mut(token as usize) else { continue };
                let penalty = config.repetition_penalty;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                if times > 0 {
                    *logit -= config.presence_penalty + config.frequency_penalty * times as f32;
                }
            }
        }
        let token = if config.temperature == 0.0 {
            argmax(logits) as u32
        } else {
            self.draw(config, logits)
        };
        *self.seen.entry(token).or_default() += 1;
        token
    }

    fn draw(&mut self, config: &GenerateConfig, logits: &[f32]) -> u32 {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - most) / config.temperature).exp();
        let mut kept: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| (token as u32, weight(logit)))
            .collect();
        if config.top_k > 0 {
            largest(&mut kept, config.top_k);
        }
        if config.top_p < 1.0 {
            let limit = config.top_p * kept.iter().map(|item| item.1).sum::<f32>();
            kept.sort_unstable_by(descending);
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
        kept.iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or_else(|| argmax(logits) as u32, |item| item.0)
    }
}
