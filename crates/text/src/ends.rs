//! Tokens that end an answer of the assistant.

use crate::{
    chat::{ChatOptions, Message},
    error::TextError,
    files::GENERATION,
    tokenizer::Tokenizer,
};
use serde_json::Value;
use std::path::Path;

impl Tokenizer {
    /// Tokens that end a text: the end-of-text tokens of the tokenizer's files, and the one with which the chat template ends an
    /// answer, as models are trained to end an answer with it, though files may not say so.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_ids().iter().copied().chain(self.end_of_turn()).collect()
    }

    /// Returns the token with which the chat template ends an answer, whether or not the model's
    /// files declare it as an end token.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.end_of_turn(), Some(2));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn end_of_turn(&self) -> Option<u32> {
        let messages = [Message::user("a"), Message::assistant("b")];
        let chat = self.encode_chat(&messages, &ChatOptions::new()).ok()?;
        let (_, turn) = chat.turns.last()?;
        let last = *chat.ids[turn.clone()].last()?;
        self.is_added_token(last).then_some(last)
    }

    /// Writes `generation_config.json` into a folder: the one of the tokenizer's files, with more
    /// end tokens.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// tokenizer.save_generation_config(folder.path(), [5])?;
    /// let text = std::fs::read_to_string(folder.path().join("generation_config.json")).unwrap();
    /// assert!(text.contains("eos_token_id"));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Io`] if the file cannot be written; [`TextError::Format`] if the tokenizer's
    /// own one is malformed.
    pub fn save_generation_config(
        &self,
        folder: impl AsRef<Path>,
        ends: impl IntoIterator<Item = u32>,
    ) -> Result<(), TextError> {
        let mut config = match self.files().json(GENERATION)? {
            Value::Object(config) => config,
            _ => serde_json::Map::new(),
        };
        let mut ids = self.eos_token_ids().to_vec();
        ids.extend(ends);
        let mut seen = std::collections::BTreeSet::new();
        ids.retain(|id| seen.insert(*id));
        config.insert("eos_token_id".into(), ids.into());
        let path = folder.as_ref().join(GENERATION);
        let text = format!("{:#}\n", Value::Object(config));
        burn_lora_io::replace(&path, text.as_bytes()).map_err(TextError::io(&path))
    }
}
