//! Builder of data sets from files or records.

use super::{
    Dataset, Format, OnError, TrainOn, Truncation,
    conversation::{self, Roles},
    example::Example,
    format::COLUMNS,
    read::Record,
    values::{self, Column, LABEL},
};
use crate::error::TrainError;
use burn_lora_text::{ChatOptions, ChatValue as Value};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Files(Vec<PathBuf>),
    Records(Vec<Result<Value, String>>),
}

/// Builder of a [`Dataset`]: how data is read.
///
/// Created by [`Dataset::from_files`] and [`Dataset::from_records`].
///
/// ```
/// use burn_lora_text::Tokenizer;
/// use burn_lora_train::data::{Dataset, Truncation};
/// use serde_json::json;
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let records = [json!({ "question": "hello", "answer": " world" })];
/// let data = Dataset::from_records(records)
///     .column("prompt", "question")
///     .column("completion", "answer")
///     .max_length(512)
///     .truncation(Truncation::Drop)
///     .load(&tokenizer)?;
/// assert_eq!(data.preview(0, &tokenizer, false)?, "hello« world<|im_end|>»");
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DatasetBuilder {
    pub(super) source: Source,
    pub(super) format: Option<Format>,
    pub(super) columns: BTreeMap<String, String>,
    roles: Roles,
    pub(super) max_length: Option<usize>,
    pub(super) limit: Option<usize>,
    pub(super) truncation: Truncation,
    pub(super) train_on: Option<TrainOn>,
    pub(super) on_error: OnError,
    pub(super) on_empty: OnError,
    apply_chat_template: bool,
    pub(super) chat_options: ChatOptions,
    pub(super) temp_dir: Option<PathBuf>,
    /// Columns of numbers beside the text.
    pub(super) values: BTreeMap<String, Column>,
    /// Names of the labels of words.
    pub(super) token_labels: Vec<String>,
    /// Whether answers have labels.
    pub(super) labeled: bool,
    /// Whether both answers of a pair become examples of their own.
    pub(super) unpaired: bool,
}

impl Dataset {
    /// Reads files. Their extensions determine their kind: `.json`, `.jsonl`, `.csv`, `.parquet`. With the
    /// feature `hub` the id of a dataset is one, too: `owner/name` (its split `train`),
    /// `owner/name:validation`, `owner/name:configuration`, `owner/name:configuration:validation`,
    /// `owner/name/file.jsonl`, each with `@revision` after the name.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::Dataset;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("data.csv");
    /// std::fs::write(&path, "prompt,completion\nhello, world\n").unwrap();
    /// let data = Dataset::from_files([&path]).load(&tokenizer)?;
    /// assert_eq!(data.source(0), format!("{}:2", path.display()));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn from_files<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> DatasetBuilder {
        DatasetBuilder::new(Source::Files(paths.into_iter().map(Into::into).collect()))
    }

    /// Reads records in memory: objects with the columns of a [`Format`](super::Format), of any
    /// type that serializes to JSON with these fields. A `serde_json::Value` sorts its keys; a
    /// [`ChatValue`](burn_lora_text::ChatValue) keeps their order, in which the schemas of tools
    /// are written.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::Dataset;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = serde_json::json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).load(&tokenizer)?;
    /// assert_eq!(data.source(0), "records:1");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn from_records<T: Serialize>(records: impl IntoIterator<Item = T>) -> DatasetBuilder {
        let value = |record| Value::new(record).map_err(|error| format!("no JSON: {error}"));
        DatasetBuilder::new(Source::Records(records.into_iter().map(value).collect()))
    }
}

impl DatasetBuilder {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            format: None,
            columns: BTreeMap::new(),
            roles: conversation::roles(),
            max_length: None,
            limit: None,
            truncation: Truncation::default(),
            train_on: None,
            on_error: OnError::default(),
            on_empty: OnError::default(),
            apply_chat_template: false,
            chat_options: ChatOptions::new(),
            temp_dir: None,
            values: BTreeMap::new(),
            token_labels: vec![],
            labeled: false,
            unpaired: false,
        }
    }

    /// Sets the format. By default, it is detected from the columns of a file's first record.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "text": "hello", "prompt": "", "completion": "" });
    /// let data = Dataset::from_records([record]).format(Format::Text).load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "hello«<|im_end|>»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Reads the column `name` of a [`Format`] from the column `from` of the data:
    /// `.column("prompt", "question")`.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "poem": "hello world" });
    /// let data = Dataset::from_records([record]).column("text", "poem").load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "hello« world<|im_end|>»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn column(mut self, name: impl Into<String>, from: impl Into<String>) -> Self {
        self.columns.insert(name.into(), from.into());
        self
    }

    /// Maps the role `name` in the data to `role`: `.role("bard", "assistant")`. A role that
    /// templates know besides the usual ones is mapped to itself.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "messages": [{ "role": "bard", "content": "hello" }] });
    /// let data = Dataset::from_records([record]).role("bard", "assistant").load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "<|im_start|>assistant\n«hello<|im_end|>»\n");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn role(mut self, name: impl Into<String>, role: impl Into<String>) -> Self {
        self.roles.insert(name.into(), role.into());
        self
    }

    /// Sets the maximum number of examples, the first ones; unlimited by default. Reading ends with the last
    /// of them, and of a dataset on the hub no more files are downloaded than have been read.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let records = ["hello", "hello world", "world"].map(|text| json!({ "text": text }));
    /// let data = Dataset::from_records(records).limit(2).load(&tokenizer)?;
    /// assert_eq!(data.len(), 2);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn limit(mut self, examples: usize) -> Self {
        self.limit = Some(examples);
        self
    }

    /// Sets the maximum number of tokens per sample; unlimited by default.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).max_length(2).load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "hello« world»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn max_length(mut self, tokens: usize) -> Self {
        self.max_length = Some(tokens);
        self
    }

    /// Sets the handling of examples with more tokens than the maximum.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).max_length(2).truncation(Truncation::KeepEnd);
    /// assert_eq!(data.load(&tokenizer)?.preview(0, &tokenizer, false)?, " world«<|im_end|>»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn truncation(mut self, truncation: Truncation) -> Self {
        self.truncation = truncation;
        self
    }

    /// Sets which tokens are trained on; see [`TrainOn`] for the defaults.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "prompt": "hello world", "completion": "" });
    /// let data = Dataset::from_records([record]).train_on(TrainOn::Everything).load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "hello« world<|im_end|>»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn train_on(mut self, train_on: TrainOn) -> Self {
        self.train_on = Some(train_on);
        self
    }

    /// Sets the handling of examples that cannot be read. If the rest of a file cannot be read
    /// after one, as in a broken JSON list, it is always an error.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let records = [json!({ "text": "hello" }), json!({ "text": 7 })];
    /// let data = Dataset::from_records(records).on_error(OnError::Skip).load(&tokenizer)?;
    /// assert_eq!(data.report().malformed, 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }

    /// Sets the handling of examples of which no token is trained on, also after truncation.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let message = |role| json!({ "messages": [{ "role": role, "content": "hello" }] });
    /// let records = [message("assistant"), message("user")];
    /// let data = Dataset::from_records(records).on_empty(OnError::Skip).load(&tokenizer)?;
    /// assert_eq!(data.report().empty, 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn on_empty(mut self, on_empty: OnError) -> Self {
        self.on_empty = on_empty;
        self
    }

    /// Sets whether prompts and instructions that are text become messages: one of the user and one
    /// of the assistant, rendered by the tokenizer's chat template. Otherwise such text is taken
    /// unchanged, instructions with the wording of Alpaca. Lists of messages always go through the
    /// template.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "prompt": "a", "completion": "b" });
    /// let data = Dataset::from_records([record]).apply_chat_template(true).load(&tokenizer)?;
    /// let text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n";
    /// assert_eq!(data.preview(0, &tokenizer, false)?, text);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn apply_chat_template(mut self, apply: bool) -> Self {
        self.apply_chat_template = apply;
        self
    }

    /// Sets variables for the chat template, or selects another one of the tokenizer's.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_text::ChatOptions;
    ///
    /// let options = ChatOptions::new().variable("enable_thinking", false);
    /// let record = json!({ "messages": [{ "role": "assistant", "content": "hello" }] });
    /// let data = Dataset::from_records([record]).chat_options(options).load(&tokenizer)?;
    /// assert_eq!(data.len(), 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn chat_options(mut self, options: ChatOptions) -> Self {
        self.chat_options = options;
        self
    }

    /// Sets the folder of the temporary file that keeps the tokens, 4 bytes each. The default is
    /// the system's, which may be too small, or held in memory.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let folder = tempfile::tempdir().unwrap();
    /// let record = json!({ "text": "hello" });
    /// let data = Dataset::from_records([record]).temp_dir(folder.path()).load(&tokenizer)?;
    /// assert_eq!(data.len(), 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn temp_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.temp_dir = Some(folder.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        values::check(&self.values)?;
        for name in self.columns.keys() {
            let kept = self.values.contains_key(name) || self.labeled && name == LABEL;
            if !COLUMNS.contains(&name.as_str()) && !kept {
                let known = format!("no format reads such a column; known: {}", COLUMNS.join(", "));
                return Err(TrainError::setting("column", name, known));
            }
        }
        match self.max_length {
            Some(tokens @ ..2) => Err(TrainError::setting(
                "max_length",
                tokens,
                "a sample needs two tokens at least, one to predict the other from",
            )),
            _ if self.limit == Some(0) => Err(TrainError::setting(
                "limit",
                0,
                "it has to be above 0; leave it out for no limit",
            )),
            _ => Ok(()),
        }
    }

    /// Returns `true` if a column of a record is read.
    pub(super) fn reads(&self, format: Format, record: &Record, column: &str) -> bool {
        format.reads(record, column, self.apply_chat_template)
    }

    /// Parses the example of a record.
    pub(super) fn example(&self, record: &Record, format: Format) -> Result<Example, String> {
        format.example(record, &self.roles, self.apply_chat_template)
    }
}
