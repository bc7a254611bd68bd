//! Generation of tokens.

use super::{
    config::{GenerateConfig, wrong},
    engine::Engine,
    sample::Sampler,
};
use crate::{causal_lm::Generate, error::LlamaError};
use burn::tensor::{DType, FloatDType, Int, Tensor};
use burn_lora_adapter::AdaptableExt;
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
    let adapters = config.adapters.clone().unwrap_or_else(|| model.active());
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let capacity = longest.saturating_add(config.max_new_tokens - 1);
    let mut engine = Engine::new(model, rows.len(), capacity, adapters);
    let mut next = choose(engine.read(prompts), &mut rows, config)?;
    for left in (0..config.max_new_tokens).rev() {
        let mut ended = false;
        for (number, (row, &token)) in rows.iter_mut().zip(&next).enumerate() {
            if row.stopped.is_some() {
                continue;
            }
            if ends.contains(&token) || config.stop_tokens.contains(&token) {
                row.stopped = Some(Stopped::Token);
            } else {
                row.tokens.push(token);
                if on_token(number, token).is_break() {
                    row.stopped = Some(Stopped::Callback);
                }
            }
            ended |= row.stopped.is_some();
        }
        if left == 0 || rows.iter().all(|row| row.stopped.is_some()) {
            break;
        }
        let length = engine.longest() + 1;
        next = if model.outdates_cache(length - 1, length) {
            let texts = prompts.iter().zip(&rows);
            let texts: Vec<_> =
                texts.map(|(prompt, row)| [&prompt[..], &row.tokens[..]].concat()).collect();
            choose(engine.read(&texts), &mut rows, config)?
        } else {
            // The likeliest tokens are set already.
            if ended || !config.is_plain_greedy() || !engine.is_set() {
                let goes_on = rows.iter().zip(&next).map(|(row, token)| match row.stopped {
                    None => Some(*token),
                    Some(_) => None,
                });
                engine.set(&goes_on.collect::<Vec<_>>());
            }
            let logits = engine.step(left);
            match config.is_plain_greedy() {
                true => read(engine.next())?,
                false => choose(logits, &mut rows, config)?,
            }
        };
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
    if config.is_plain_greedy() {
        return read(logits.argmax(1).squeeze_dim(1));
    }
    let width = logits.dims()[1];
    let logits = logits.cast(FloatDType::F32);
    let mut logits: Vec<f32> = logits.try_into_vec_as().map_err(failed)?;
    let tokens = rows.iter_mut().zip(logits.chunks_mut(width));
    Ok(tokens.map(|(row, logits)| row.sampler.next(logits)).collect())
}

/// Reads tokens from the device.
fn read(tokens: Tensor<1, Int>) -> Result<Vec<u32>, LlamaError> {
    let tokens: Vec<i32> = tokens.cast(DType::I32).try_into_vec_as().map_err(failed)?;
    Ok(tokens.into_iter().map(|token| token as u32).collect())
}

fn failed(error: impl ToString) -> LlamaError {
    LlamaError::Device { tensor: "logits".into(), reason: error.to_string() }
}
