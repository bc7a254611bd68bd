//! Generation with a key-value cache.

mod config;
mod engine;
mod generation;
mod lookup;
mod sample;
mod step;
mod stop;
mod text;
mod text_stream;
mod tokens;

pub use config::GenerateConfig;
pub use generation::{Generation, NextToken, Stopped};
pub use sample::LogProbs;
pub use text::GeneratedText;
pub use text_stream::TextStream;
pub use tokens::Generated;

use crate::{causal_lm::Generate, error::LlamaError, vocabulary};
use burn_lora_text::{ChatOptions, Message, Tokenizer};
use std::ops::ControlFlow;

/// Generation of tokens and text, which every model that implements [`Generate`] has.
pub trait GenerateExt: Generate {
    /// Continues prompts of tokens in batches of up to 64, which others join as some end; there is no padding, and the answer
    /// to a prompt is the one that it would get alone. Uses the adapters of the settings, or else those selected in the
    /// model; the same seed gives the same tokens.
    ///
    /// A row ends at an end-of-text token of the model (for a [`Llama`](crate::Llama), of
    /// `config.json`) or a stop token of the settings. `on_token` is called with the row and each
    /// of its new tokens, and may end the row.
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::{GenerateConfig, GenerateExt};
    /// use std::ops::ControlFlow;
    ///
    /// let prompts = [vec![1, 450, 7483], vec![1, 15043]];
    /// let found = model.generate(&prompts, &GenerateConfig::new(16), |row, token| {
    ///     println!("{row}: {token}");
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert_eq!(found.len(), 2);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// - [`LlamaError::Generate`] if a setting is outside its range, a prompt is empty, or a token
    ///   is not in the vocabulary.
    /// - [`LlamaError::Device`] if the logits cannot be read from the device.
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
        on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, LlamaError> {
        tokens::generate(self, prompts, config, &self.eos_token_ids(), on_token)
    }

    /// Continues texts. In addition to [`generate`](Self::generate), a row ends
    /// at the end-of-text tokens of the tokenizer's files, at the token with which the chat
    /// template ends an answer, and at the stop strings of the settings. `on_text` is called with
    /// the row and its text as it comes, and may end the row.
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::{GenerateConfig, GenerateExt, Tokenizer};
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
    fn generate_text(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[impl AsRef<str>],
        config: &GenerateConfig,
        on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedText>, LlamaError> {
        let prompts = prompts.iter().map(|prompt| tokenizer.encode(prompt.as_ref(), true));
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        self.continue_text(tokenizer, &prompts, config, on_text)
    }

    /// [`generate_text`](Self::generate_text) after prompts that are tokens already.
    ///
    /// # Errors
    /// As [`generate_text`](Self::generate_text).
    fn continue_text(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
        on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedText>, LlamaError> {
        text::generate(self, tokenizer, prompts, config, on_text)
    }

    /// Answers a chat; otherwise like [`generate_text`](Self::generate_text).
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::{GenerateConfig, GenerateExt, Message, Tokenizer};
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
    fn chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        config: &GenerateConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<GeneratedText, LlamaError> {
        let mut found = self.chats(tokenizer, &[messages], config, |_, text| on_text(text))?;
        Ok(found.remove(0))
    }

    /// Answers several chats, as [`chat`](Self::chat) does each.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    fn chats(
        &self,
        tokenizer: &Tokenizer,
        chats: &[impl AsRef<[Message]>],
        config: &GenerateConfig,
        on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedText>, LlamaError> {
        let options = ChatOptions::new().add_generation_prompt(true);
        let prompts = chats.iter().map(|messages| {
            let prompt = tokenizer.apply_chat_template(messages.as_ref(), &options)?;
            // The template has written the special tokens.
            tokenizer.encode(&prompt, false)
        });
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        self.continue_text(tokenizer, &prompts, config, on_text)
    }

    /// Tokens that end a text: those of the model and of the tokenizer's files, and the one with which the chat template ends an
    /// answer.
    fn end_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ends = self.eos_token_ids();
        ends.extend(tokenizer.end_tokens());
        ends
    }

    /// Warns where a tokenizer and the model disagree: tokens without a row in the embeddings,
    /// end-of-text tokens outside the vocabulary, and a beginning-of-text token with another id
    /// than the model's. Texts are encoded as the tokenizer says, as in transformers.
    ///
    /// ```
    /// # use burn::tensor::Device;
    /// # use burn_lora_llama::{GenerateExt, Llama, Tokenizer};
    /// let model = Llama::from_pretrained("../../testdata/gqa").load(&Device::default())?;
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let (_, warnings) = burn_lora_io::collect(|| model.check_tokenizer(&tokenizer));
    /// assert!(warnings[0].contains("the vocabulary of the model has 128"));
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    fn check_tokenizer(&self, tokenizer: &Tokenizer) {
        vocabulary::check(self, tokenizer);
    }
}

impl<M: Generate> GenerateExt for M {}
