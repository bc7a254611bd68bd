//! Generation of tokens.

use super::{
    config::{GenerateConfig, wrong},
    sample::Sampler,
};
use crate::{cache::KvCache, causal_lm::Generate, context::Segments, error::LlamaError};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use std::ops::ControlFlow;

/// Generated tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// Reason why the generation ended.
    pub stopped: Stopped,
}

/// Reason why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// `max_new_tokens` was reached.
    Length,
    /// An end-of-text token or a stop token was generated.
    Token,
    /// A stop string was found.
    Text,
    /// The callback ended the row.
    Callback,
}

/// Continues prompts of tokens until the end-of-text tokens `ends`.
pub(super) fn generate<M: Generate>(
    model: &M,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    ends: &[u32],
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generated>, LlamaError> {
    config.validate()?;
    check_prompts(prompts, model.vocabulary())?;
    let mut rows: Vec<Row<'_>> = prompts.iter().map(|prompt| Row::new(config, prompt)).collect();
    if rows.is_empty() || config.max_new_tokens == 0 {
        return Ok(rows.into_iter().map(Row::finish).collect());
    }
    // Without a graph for gradients.
    let model = model.valid();
    let device = model.embedding_device();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let padding = |prompt: &[u32]| longest - prompt.len();
    let padded = |prompt: &Vec<u32>| {
        let padding = std::iter::repeat_n(0, padding(prompt));
        padding.chain(prompt.iter().map(|token| *token as i32)).collect()
    };
    let mut texts: Vec<Vec<i32>> = prompts.iter().map(padded).collect();
    let capacity = longest.saturating_add(config.max_new_tokens - 1);
    let mut cache = KvCache::new(model.depth(), capacity);
    for length in longest..=capacity {
        if cache.length() > 0 && model.outdates_cache(cache.length(), length) {
            cache = KvCache::new(model.depth(), capacity);
        }
        let segments =
            Segments::ending_together(length, prompts.iter().map(|p| length - padding(p)));
        let segments = match &config.adapters {
            Some(adapters) => segments.with_adapters(adapters.clone()),
            None => segments,
        };
        let tokens = upload(&texts, cache.length(), &device);
        let logits = model.step(tokens, &segments, &mut cache);
        let next = choose(logits, &mut rows, config)?;
        for (number, (row, &token)) in rows.iter_mut().zip(&next).enumerate() {
            if row.stopped.is_some() {
                continue;
            }
            if ends.contains(&token) || config.stop_tokens.contains(&token) {
                row.stopped = Some(Stopped::Token);
                continue;
            }
            row.tokens.push(token);
            if on_token(number, token).is_break() {
                row.stopped = Some(Stopped::Callback);
            }
        }
        if rows.iter().all(|row| row.stopped.is_some()) {
            break;
        }
        for (text, token) in texts.iter_mut().zip(next) {
            text.push(token as i32);
        }
    }
    Ok(rows.into_iter().map(Row::finish).collect())
}

fn check_prompts(prompts: &[Vec<u32>], vocabulary: usize) -> Result<(), LlamaError> {
    for (number, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            let reason = "there is nothing to continue: give it a token, such as the first of all \
                          texts";
            return Err(wrong("prompt", format!("number {number}, empty"), reason));
        }
        if let Some(token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
            let found = format!("number {number} with token {token}");
            let reason = format!("the vocabulary has {vocabulary}: is this its tokenizer?");
            return Err(wrong("prompt", found, &reason));
        }
    }
    Ok(())
}

/// State of one prompt.
struct Row<'a> {
    sampler: Sampler<'a>,
    tokens: Vec<u32>,
    stopped: Option<Stopped>,
}

impl<'a> Row<'a> {
    fn new(config: &'a GenerateConfig, prompt: &[u32]) -> Self {
        Self { sampler: Sampler::new(config, prompt), tokens: vec![], stopped: None }
    }

    fn finish(self) -> Generated {
        Generated { tokens: self.tokens, stopped: self.stopped.unwrap_or(Stopped::Length) }
    }
}

/// Next token of each row, from logits `[rows, vocabulary]`.
fn choose(
    logits: Tensor<2>,
    rows: &mut [Row<'_>],
    config: &GenerateConfig,
) -> Result<Vec<u32>, LlamaError> {
    let failed = |error: String| LlamaError::Device { tensor: "logits".into(), reason: error };
    if config.is_plain_greedy() {
        let tokens = logits.argmax(1).cast(DType::I32);
        let tokens: Vec<i32> = tokens.try_into_vec_as().map_err(|e| failed(e.to_string()))?;
        return Ok(tokens.into_iter().map(|token| token as u32).collect());
    }
    let width = logits.dims()[1];
    let logits = logits.cast(FloatDType::F32);
    let mut logits: Vec<f32> = logits.try_into_vec_as().map_err(|e| failed(e.to_string()))?;
    let tokens = rows.iter_mut().zip(logits.chunks_mut(width));
    Ok(tokens.map(|(row, logits)| row.sampler.next(logits)).collect())
}

/// The tokens of texts of one length, from the token `start`.
fn upload(texts: &[Vec<i32>], start: usize, device: &Device) -> Tensor<2, Int> {
    let tokens: Vec<i32> = texts.iter().flat_map(|text| &text[start..]).copied().collect();
    let shape = [texts.len(), tokens.len() / texts.len()];
    Tensor::from_data(TensorData::new(tokens, shape), (device, DType::I32))
}
