//! Tokens that a run adds to the vocabulary.

use crate::error::TrainError;
use burn_lora_adapter::LoraConfig;
use burn_lora_text::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Embedding and output head.
const LAYERS: [&str; 2] = ["embed_tokens", "lm_head"];

/// `[tokens]` of a run: tokens that the tokenizer and the model get, such as the markers of a format.
///
/// The tokenizer is saved beside the adapter. The vocabulary of the model grows if it has too few rows
/// ([`Llama::fit_tokenizer`](burn_lora_llama::Llama::fit_tokenizer)), and never becomes smaller.
///
/// ```
/// use burn_lora_train::{RunConfig, TrainTokens};
///
/// let run = RunConfig::default()
///     .with_setting("tokens.add=['<tool>']")?
///     .with_setting("tokens.train=whole")?;
/// assert_eq!(run.tokens.train, TrainTokens::Whole);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Tokens to add. One that the tokenizer has keeps its id.
    pub add: Vec<String>,
    /// Special tokens to add: those that are left out where a text is shown.
    pub special: Vec<String>,
    /// What is trained of embedding and output head.
    pub train: TrainTokens,
}

/// What a run trains of embedding and output head for its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainTokens {
    /// The rows of these tokens ([`LoraConfig::trainable_tokens`]).
    #[default]
    Rows,
    /// Whole copies of both ([`LoraConfig::modules_to_save`]).
    Whole,
    /// Nothing beside what `[adapter]` says: new rows stay the mean of the others.
    None,
}

impl TokensConfig {
    /// Returns `true` if there are no tokens to add.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Number of the tokens.
    pub(super) fn count(&self) -> usize {
        self.add.len() + self.special.len()
    }

    /// Checks the settings, together with those of the adapter.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is invalid.
    pub fn validate(&self, adapter: &LoraConfig) -> Result<(), TrainError> {
        for (name, tokens) in [("tokens.add", &self.add), ("tokens.special", &self.special)] {
            if tokens.iter().any(String::is_empty) {
                return Err(TrainError::setting(name, "['']", "an empty text can be no token"));
            }
        }
        if let Some(both) = self.add.iter().find(|token| self.special.contains(token)) {
            let reason = "it is in `tokens.special`, too: leave one out";
            return Err(TrainError::setting("tokens.add", both, reason));
        }
        let indices = &fields(adapter)["trainable_token_indices"];
        if self.train == TrainTokens::Rows && !self.is_empty() && !indices.is_null() {
            let reason =
                "`tokens.train` is rows, and sets it: leave it out, or set `tokens.train` to none";
            return Err(TrainError::setting("adapter.trainable_token_indices", indices, reason));
        }
        Ok(())
    }

    /// Adds the tokens to a tokenizer; returns their ids.
    ///
    /// # Errors
    /// Those of [`Tokenizer::add_tokens`].
    pub fn add_to(&self, tokenizer: &mut Tokenizer) -> Result<Vec<u32>, TrainError> {
        let mut ids = tokenizer.add_tokens(&self.add)?;
        ids.extend(tokenizer.add_special_tokens(&self.special)?);
        Ok(ids)
    }

    /// Returns the settings of an adapter that trains the rows of these tokens, or all rows.
    pub(super) fn adapter(&self, lora: LoraConfig, ids: &[u32], tied: bool) -> LoraConfig {
        if self.is_empty() {
            return lora;
        }
        let ids: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        match self.train {
            TrainTokens::None => lora,
            TrainTokens::Rows if tied => lora.trainable_tokens(ids),
            TrainTokens::Rows => lora.trainable_tokens_of(LAYERS.map(|name| (name, ids.clone()))),
            TrainTokens::Whole => {
                let fields = fields(&lora);
                let saved = fields["modules_to_save"].as_array().into_iter().flatten();
                let mut names: Vec<&str> = saved.filter_map(Value::as_str).collect();
                names
                    .extend(LAYERS.iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
                lora.clone().modules_to_save(names)
            }
        }
    }
}

/// Fields of an adapter's settings, by PEFT's names.
fn fields(adapter: &LoraConfig) -> Value {
    serde_json::to_value(adapter).unwrap_or_default()
}
