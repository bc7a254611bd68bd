//! Generation of text.

use super::{
    GenerateConfig, Stopped,
    config::wrong,
    stop::{Found, StopText},
    tokens,
};
use crate::{causal_lm::Generate, error::LlamaError};
use burn_lora_text::{DecodeStream, Tokenizer};
use std::ops::ControlFlow;

/// Generated text of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedText {
    /// New text, without the stop string or special tokens.
    pub text: String,
    /// New tokens, without the one that ended them, but with those of a stop string.
    pub tokens: Vec<u32>,
    /// Reason why the generation ended.
    pub stopped: Stopped,
}

/// Continues prompts that the tokenizer has encoded.
pub(super) fn generate<M: Generate>(
    model: &M,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
) -> Result<Vec<GeneratedText>, LlamaError> {
    let mut ends = model.eos_token_ids();
    ends.extend(tokenizer.eos_token_ids());
    // Models are trained to end an answer with it, though files may not say so.
    ends.extend(tokenizer.end_of_turn());
    let rows = model.vocabulary();
    if let Some(id) = prompts.iter().flatten().find(|id| **id as usize >= rows) {
        let token = tokenizer.id_to_token(*id).unwrap_or_default();
        let reason = format!("the model's embedding has {rows} rows: is this its tokenizer?");
        return Err(wrong("prompt", format!("a text with token {id}, `{token}`"), &reason));
    }
    let stops = &config.stop_strings;
    let mut rows: Vec<_> = prompts.iter().map(|_| TextRow::new(tokenizer, stops)).collect();
    let mut failed = None;
    let found = tokens::generate(model, prompts, config, &ends, |number, token| {
        let row = &mut rows[number];
        let new = row.push(token).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            row.stopped = true;
            String::new()
        });
        let go_on = if new.is_empty() { ControlFlow::Continue(()) } else { on_text(number, &new) };
        if row.stopped { ControlFlow::Break(()) } else { go_on }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rows = rows.into_iter().zip(found).enumerate();
    rows.map(|(number, (row, found))| {
        let stopped = if row.stopped { Stopped::Text } else { found.stopped };
        let (text, rest) = row.finish()?;
        if !rest.is_empty() {
            let _ = on_text(number, &rest);
        }
        Ok(GeneratedText { text, tokens: found.tokens, stopped })
    })
    .collect()
}
/// Text of one row in progress.
struct TextRow<'a> {
    stream: DecodeStream,
    stop: StopText<'a>,
    text: String,
    /// `true` if a stop string was found.
    stopped: bool,
}

impl<'a> TextRow<'a> {
    fn new(tokenizer: &Tokenizer, stops: &'a [String]) -> Self {
        let (stream, stop) = (tokenizer.decode_stream(true), StopText::new(stops));
        Self { stream, stop, text: String::new(), stopped: false }
    }

    /// Returns the text that a token adds.
    fn push(&mut self, token: u32) -> Result<String, LlamaError> {
        let new = self.stream.push(token)?.unwrap_or_default();
        Ok(self.take(&new))
    }

    fn take(&mut self, new: &str) -> String {
        let new = match self.stop.push(new) {
            Found::Go(new) => new,
            Found::Stop(new) => {
                self.stopped = true;
                new
            }
        };
        self.text.push_str(&new);
        new
    }

    /// Returns the whole text, and the part of it that had been held back.
    fn finish(mut self) -> Result<(String, String), LlamaError> {
        if self.stopped {
            return Ok((self.text, String::new()));
        }
        let left = self.stream.clone().finish()?;
        let mut rest = self.take(&left);
        let Self { stop, mut text, stopped, .. } = self;
        if !stopped {
            let held = stop.finish();
            text.push_str(&held);
            rest.push_str(&held);
        }
        Ok((text, rest))
    }
}
