//! Text generation.

use super::{
    GenerateConfig, Stopped,
    config::wrong,
    stop::{Found, StopText},
};
use crate::{error::LlamaError, llama::Llama};
use burn_lora_text::{ChatOptions, DecodeStream, Message, Tokenizer};
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

impl Llama {
    /// Continues texts, all in one batch. In addition to [`generate`](Self::generate), a row ends
    /// at the end-of-text tokens of the tokenizer's files, at the token with which the chat
    /// template ends an answer, and at the stop strings of the settings. `on_text` is called with
    /// the row and its text as it comes, and may end the row.
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::{GenerateConfig, Tokenizer};
    /// use std::ops::ControlFlow;
    ///
    /// let tokenizer = Tokenizer::from_pretrained("models/SmolLM2-135M")?;
    /// let config = GenerateConfig::new(64).temperature(0.7).top_p(0.9).seed(1).stop("\n\n");
    /// let found = model.generate_text(&tokenizer, &["Once upon a time"], &config, |_, text| {
    ///     print!("{text}");
    ///     ControlFlow::Continue(())
    /// })?;
    /// println!("{:?}", found[0].stopped);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// - [`LlamaError::Generate`] if a setting is outside its range, a text gives no token, or the
    ///   tokenizer is of another model: a token is not in the vocabulary.
    /// - [`LlamaError::Text`] if the tokenizer fails.
    /// - [`LlamaError::Device`] if the logits cannot be read from the device.
    pub fn generate_text(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[impl AsRef<str>],
        config: &GenerateConfig,
        on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedText>, LlamaError> {
        let prompts = prompts.iter().map(|prompt| tokenizer.encode(prompt.as_ref(), true));
        self.generate_decoded(tokenizer, &prompts.collect::<Result<Vec<_>, _>>()?, config, on_text)
    }

    /// Answers a chat; otherwise like [`generate_text`](Self::generate_text).
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::{GenerateConfig, Message, Tokenizer};
    /// use std::ops::ControlFlow;
    ///
    /// let tokenizer = Tokenizer::from_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf")?;
    /// let chat = [Message::user("What is the capital of France?")];
    /// let answer = model.chat(&tokenizer, &chat, &GenerateConfig::new(64), |text| {
    ///     print!("{text}");
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// As [`generate_text`](Self::generate_text); [`LlamaError::Text`] also if the tokenizer has no
    /// chat template, or the template rejects the messages.
    pub fn chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        config: &GenerateConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<GeneratedText, LlamaError> {
        let options = ChatOptions::new().add_generation_prompt(true);
        let prompt = tokenizer.apply_chat_template(messages, &options)?;
        // The template has written the special tokens.
        let prompts = [tokenizer.encode(&prompt, false)?];
        let mut found =
            self.generate_decoded(tokenizer, &prompts, config, |_, text| on_text(text))?;
        Ok(found.remove(0))
    }

    fn generate_decoded(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
        mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedText>, LlamaError> {
        let mut ends = self.config.eos_token_ids();
        ends.extend(tokenizer.eos_token_ids());
        // Models are trained to end an answer with it, though files may not say so.
        ends.extend(tokenizer.end_of_turn());
        let rows = self.config.vocab_size;
        if let Some(id) = prompts.iter().flatten().find(|id| **id as usize >= rows) {
            let token = tokenizer.id_to_token(*id).unwrap_or_default();
            let reason = format!("the model's embedding has {rows} rows: is this its tokenizer?");
            return Err(wrong("prompt", format!("a text with token {id}, `{token}`"), &reason));
        }
        let stops = &config.stop_strings;
        let mut rows: Vec<_> = prompts.iter().map(|_| TextRow::new(tokenizer, stops)).collect();
        let mut failed = None;
        let found = self.generate_until(prompts, config, &ends, |number, token| {
            let row = &mut rows[number];
            let new = row.push(token).unwrap_or_else(|error| {
                failed.get_or_insert(error);
                row.stopped = true;
                String::new()
            });
            let go_on =
                if new.is_empty() { ControlFlow::Continue(()) } else { on_text(number, &new) };
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
