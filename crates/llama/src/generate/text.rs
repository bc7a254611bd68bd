//! Generation of text.

use super::{GenerateConfig, GenerateExt, Stopped, TextStream, config::wrong, tokens};
use crate::{causal_lm::Generate, error::LlamaError};
use burn_lora_text::Tokenizer;
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
    let ends = model.end_tokens(tokenizer);
    let rows = model.vocabulary();
    if let Some(id) = prompts.iter().flatten().find(|id| **id as usize >= rows) {
        let token = tokenizer.id_to_token(*id).unwrap_or_default();
        let reason = format!("the model's embedding has {rows} rows: is this its tokenizer?");
        return Err(wrong("prompt", format!("a text with token {id}, `{token}`"), &reason));
    }
    let stops = &config.stop_strings;
    let row = || TextStream::new(tokenizer).stops(stops.iter().cloned());
    let mut rows: Vec<_> = prompts.iter().map(|_| row()).collect();
    let mut failed = None;
    let found = tokens::generate(model, prompts, config, &ends, |number, token| {
        let row = &mut rows[number];
        let new = row.push(token).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            String::new()
        });
        let go_on = if new.is_empty() { ControlFlow::Continue(()) } else { on_text(number, &new) };
        if row.is_stopped() || failed.is_some() { ControlFlow::Break(()) } else { go_on }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rows = rows.into_iter().zip(found).enumerate();
    rows.map(|(number, (mut row, found))| {
        let stopped = if row.is_stopped() { Stopped::Text } else { found.stopped };
        let rest = row.finish()?;
        if !rest.is_empty() {
            let _ = on_text(number, &rest);
        }
        Ok(GeneratedText { text: row.into_text(), tokens: found.tokens, stopped })
    })
    .collect()
}
