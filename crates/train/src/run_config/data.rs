//! The data of a run.

use crate::{
    data::{Dataset, DatasetBuilder, Format, OnError, TrainOn, Truncation},
    error::TrainError,
};
use burn_lora_text::ChatOptions;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// `[data]` of a run: the examples, and how they become samples.
///
/// ```
/// use burn_lora_train::DataConfig;
///
/// let data = DataConfig { files: vec!["chats.jsonl".into()], valid_split: 0.05, ..DataConfig::default() };
/// assert!(data.validate().is_ok());
/// let error = DataConfig { valid_split: 1.5, ..data }.validate().unwrap_err();
/// assert_eq!(error.to_string(), "`data.valid_split` is 1.5: it has to be in [0, 1)");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Files to train on: `.jsonl`, `.json`, `.csv`, `.parquet`.
    pub files: Vec<PathBuf>,
    /// Files to validate on.
    pub valid: Vec<PathBuf>,
    /// Maximum number of examples of `files`, the first ones; 0 is no limit.
    pub limit: usize,
    /// Fraction of the examples to keep for validation, if no file is named; 0 is none.
    pub valid_split: f64,
    /// Seed of this split.
    pub split_seed: u64,
    /// Format of the files; by default detected from the columns.
    pub format: Option<Format>,
    /// Maximum number of tokens per example; 0 is no limit.
    pub max_length: usize,
    /// Handling of longer examples.
    pub truncation: Truncation,
    /// Tokens that are trained on; by default depends on the format.
    pub train_on: Option<TrainOn>,
    /// Handling of lines that cannot be read.
    pub on_error: OnError,
    /// Handling of examples of which no token is trained on.
    pub on_empty: OnError,
    /// `true` if prompts and instructions that are text become messages.
    pub apply_chat_template: bool,
    /// Name of the chat template, if the tokenizer has several.
    pub chat_template: Option<String>,
    /// Folder for tokens while the run lasts; by default the system's temporary folder.
    pub temp_dir: Option<PathBuf>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[serde(deserialize_with = "without_null")]
    pub chat_variables: BTreeMap<String, Value>,
    /// Columns by the name that the format has for them: `prompt = "question"`.
    pub columns: BTreeMap<String, String>,
    /// Roles by their name in the data: `bard = "assistant"`.
    pub roles: BTreeMap<String, String>,
}

impl Default for DataConfig {
    /// Examples of at most 2,048 tokens; nothing is kept for validation.
    fn default() -> Self {
        Self {
            files: vec![],
            valid: vec![],
            limit: 0,
            valid_split: 0.0,
            split_seed: 42,
            format: None,
            max_length: 2048,
            truncation: Truncation::default(),
            train_on: None,
            on_error: OnError::default(),
            on_empty: OnError::default(),
            apply_chat_template: false,
            chat_template: None,
            temp_dir: None,
            chat_variables: BTreeMap::new(),
            columns: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl DataConfig {
    /// Returns `true` if there is something to validate on.
    pub fn has_validation(&self) -> bool {
        self.valid_split > 0.0 || !self.valid.is_empty()
    }

    /// Checks the settings, independent of the files.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        let split = self.valid_split;
        let wrong = |reason| Err(TrainError::setting("data.valid_split", split, reason));
        if !(0.0..1.0).contains(&split) {
            return wrong("it has to be in [0, 1)");
        }
        if split > 0.0 && !self.valid.is_empty() {
            return wrong("`data.valid` is set, too: leave one out");
        }
        if self.max_length == 1 {
            let reason = "a sample needs two tokens at least, one to predict the other from; 0 is \
                any number";
            return Err(TrainError::setting("data.max_length", 1, reason));
        }
        Ok(())
    }

    /// Returns the builder of a data set of `files`, such as [`files`](Self::files) or
    /// [`valid`](Self::valid), with these settings.
    pub fn builder(&self, files: &[PathBuf]) -> DatasetBuilder {
        let mut chat = ChatOptions::new();
        for (name, value) in &self.chat_variables {
            chat = chat.variable(name, value);
        }
        if let Some(name) = &self.chat_template {
            chat = chat.template(name);
        }
        let mut data = Dataset::from_files(files)
            .truncation(self.truncation)
            .on_error(self.on_error)
            .on_empty(self.on_empty)
            .apply_chat_template(self.apply_chat_template)
            .chat_options(chat);
        for (name, from) in &self.columns {
            data = data.column(name, from);
        }
        for (name, role) in &self.roles {
            data = data.role(name, role);
        }
        if self.max_length > 0 {
            data = data.max_length(self.max_length);
        }
        if let Some(format) = self.format {
            data = data.format(format);
        }
        if let Some(train_on) = self.train_on {
            data = data.train_on(train_on);
        }
        if let Some(folder) = &self.temp_dir {
            data = data.temp_dir(folder);
        }
        data
    }
}

/// Variables of a chat template that a file can hold: TOML has no null, and JSON no NaN.
fn without_null<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Value>, D::Error> {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(fields) => fields.values().any(has_null),
            _ => false,
        }
    }
    let variables = BTreeMap::<String, Value>::deserialize(from)?;
    match variables.iter().find(|(_, value)| has_null(value)) {
        Some((name, _)) => {
            Err(D::Error::custom(format!("`{name}` has a number that is not finite")))
        }
        None => Ok(variables),
    }
}
