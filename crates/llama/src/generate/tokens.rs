//! Generation of tokens.

use super::{
    config::{GenerateConfig, wrong},
    engine::Engine,
    sample::Sampler,
};
use crate::{causal_lm::Generate, error::LlamaError};
use burn::tensor::{DType, FloatDType, Int, Tensor};
use burn_lora_adapter::{AdaptableExt, Selection};
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

/// Most rows at a time: further prompts wait until one of these has ended.
const ROWS: usize = 64;

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
    let texts = prompts.iter().enumerate();
    let mut texts: Vec<_> =
        texts.map(|(number, prompt)| Text::new(config, number, prompt)).collect();
    if texts.is_empty() || config.max_new_tokens == 0 {
        return Ok(texts.into_iter().map(Text::finish).collect());
    }
    let adapters = config.adapters.clone().unwrap_or_else(|| model.active());
    // Rows with adapters of their own are those of the prompts.
    let rows = match adapters.selection() {
        Selection::Rows(_) => texts.len(),
        Selection::Adapters(_) => texts.len().min(ROWS),
    };
    let mut engine = Engine::new(model, rows, adapters);
    let mut waiting = rows..texts.len();
    // The text of each row; and rows whose texts are to be read.
    let mut texts_of: Vec<usize> = (0..rows).collect();
    let mut unread = texts_of.clone();
    let mut accept = |text: &mut Text<'_>, number: usize, token: u32| {
        if ends.contains(&token) || config.stop_tokens.contains(&token) {
            text.stopped = Some(Stopped::Token);
            return;
        }
        text.tokens.push(token);
        if on_token(number, token).is_break() {
            text.stopped = Some(Stopped::Callback);
        } else if text.tokens.len() == config.max_new_tokens {
            text.stopped = Some(Stopped::Length);
        }
    };
    loop {
        while !unread.is_empty() {
            let all: Vec<_> =
                unread.iter().map(|row| (*row, texts[texts_of[*row]].all())).collect();
            let some: Vec<_> = all.iter().map(|(row, text)| (*row, &text[..])).collect();
            let logits = engine.read(&some);
            let of_rows: Vec<_> = unread.iter().map(|row| texts_of[*row]).collect();
            let next = choose(logits, &mut texts, &of_rows, config)?;
            for (row, token) in std::mem::take(&mut unread).into_iter().zip(next) {
                accept(&mut texts[texts_of[row]], texts_of[row], token);
                engine.set(row, texts[texts_of[row]].next());
                if texts[texts_of[row]].stopped.is_some()
                    && let Some(text) = waiting.next()
                {
                    texts_of[row] = text;
                    unread.push(row);
                }
            }
        }
        let going: Vec<_> =
            (0..rows).filter(|row| texts[texts_of[*row]].stopped.is_none()).collect();
        if going.is_empty() {
            break;
        }
        if engine.is_outdated() {
            unread = going;
            continue;
        }
        let left = |row: &usize| config.max_new_tokens - texts[texts_of[*row]].tokens.len();
        let left = going.iter().map(left).max().unwrap_or(0);
        let logits = engine.step(left);
        let next = if config.is_plain_greedy() {
            let next = read(engine.likeliest())?;
            engine.keep_likeliest(&next);
            next
        } else {
            choose(logits, &mut texts, &texts_of, config)?
        };
        for row in going {
            let text = &mut texts[texts_of[row]];
            accept(text, texts_of[row], next[row]);
            // The likeliest tokens are set already.
            if text.stopped.is_some() || !config.is_plain_greedy() {
                engine.set(row, text.next());
            }
            if text.stopped.is_some()
                && let Some(text) = waiting.next()
            {
                texts_of[row] = text;
                unread.push(row);
            }
        }
    }
    Ok(texts.into_iter().map(Text::finish).collect())
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

/// A prompt, and what follows it.
struct Text<'a> {
    prompt: &'a [u32],
    sampler: Sampler<'a>,
    tokens: Vec<u32>,
    stopped: Option<Stopped>,
}

impl<'a> Text<'a> {
    fn new(config: &'a GenerateConfig, number: usize, prompt: &'a [u32]) -> Self {
        let sampler = Sampler::new(config, number, prompt);
        Self { prompt, sampler, tokens: vec![], stopped: None }
    }

    /// All tokens so far.
    fn all(&self) -> Vec<u32> {
        [self.prompt, &self.tokens].concat()
    }

    /// The last token, if the text goes on.
    fn next(&self) -> Option<u32> {
        self.tokens.last().copied().filter(|_| self.stopped.is_none())
    }

    fn finish(self) -> Generated {
        Generated { tokens: self.tokens, stopped: self.stopped.unwrap_or(Stopped::Length) }
    }
}

/// Next token of each row, from logits `[rows, vocabulary]`, given the text of each.
fn choose(
    logits: Tensor<2>,
    texts: &mut [Text<'_>],
    of_rows: &[usize],
    config: &GenerateConfig,
) -> Result<Vec<u32>, LlamaError> {
    if config.is_plain_greedy() {
        return read(logits.argmax(1).squeeze_dim(1));
    }
    let width = logits.dims()[1];
    let logits = logits.cast(FloatDType::F32);
    let mut logits: Vec<f32> = logits.try_into_vec_as().map_err(failed)?;
    let tokens = of_rows.iter().zip(logits.chunks_mut(width));
    Ok(tokens.map(|(text, logits)| texts[*text].sampler.next(logits)).collect())
}

/// Reads tokens from the device.
fn read(tokens: Tensor<1, Int>) -> Result<Vec<u32>, LlamaError> {
    let tokens: Vec<i32> = tokens.cast(DType::I32).try_into_vec_as().map_err(failed)?;
    Ok(tokens.into_iter().map(|token| token as u32).collect())
}

fn failed(error: impl ToString) -> LlamaError {
    LlamaError::Device { tensor: "logits".into(), reason: error.to_string() }
}
