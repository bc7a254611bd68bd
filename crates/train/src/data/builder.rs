//! From files or records to a data set.

use super::{
    Dataset, Format, OnError, TrainOn, Truncation,
    conversation::{self, Roles},
    encode::{Encoder, Fault},
    format::{COLUMNS, Example},
    read::{self, Record},
    store::Writer,
};
use crate::error::TrainError;
use burn_lora_llama::{ChatOptions, Tokenizer};
use rayon::prelude::*;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// How many records are tokenized together, by all processors.
const CHUNK: usize = 512;

#[derive(Clone, Debug)]
pub(crate) enum Source {
    Files(Vec<PathBuf>),
    Records(Vec<Value>),
}

/// How data is read.
///
/// Made by [`Dataset::from_files`] and [`Dataset::from_records`].
///
/// ```
/// use burn_lora_llama::Tokenizer;
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
    source: Source,
    format: Option<Format>,
    columns: BTreeMap<String, String>,
    roles: Roles,
    max_length: Option<usize>,
    truncation: Truncation,
    train_on: Option<TrainOn>,
    on_error: OnError,
    on_empty: OnError,
    apply_chat_template: bool,
    chat_options: Option<ChatOptions>,
    temp_dir: Option<PathBuf>,
}

impl DatasetBuilder {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            format: None,
            columns: BTreeMap::new(),
            roles: conversation::roles(),
            max_length: None,
            truncation: Truncation::default(),
            train_on: None,
            on_error: OnError::default(),
            on_empty: OnError::default(),
            apply_chat_template: false,
            chat_options: None,
            temp_dir: None,
        }
    }

    /// The format. By default the columns of a file's first record tell it.
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Reads the column `name` of a [`Format`] from what is called `from` in the data:
    /// `.column("prompt", "question")`.
    pub fn column(mut self, name: impl Into<String>, from: impl Into<String>) -> Self {
        self.columns.insert(name.into(), from.into());
        self
    }

    /// Takes messages of the role `name` in the data for those of `role`: `.role("bard", "assistant")`.
    /// A role that templates know besides the usual ones is mapped to itself.
    pub fn role(mut self, name: impl Into<String>, role: impl Into<String>) -> Self {
        self.roles.insert(name.into(), role.into());
        self
    }

    /// How many tokens a sample may have; any number by default.
    pub fn max_length(mut self, tokens: usize) -> Self {
        self.max_length = Some(tokens);
        self
    }

    /// What becomes of examples with more tokens.
    pub fn truncation(mut self, truncation: Truncation) -> Self {
        self.truncation = truncation;
        self
    }

    /// Which tokens are trained on; see [`TrainOn`] for the defaults.
    pub fn train_on(mut self, train_on: TrainOn) -> Self {
        self.train_on = Some(train_on);
        self
    }

    /// What becomes of examples that cannot be read. A file that cannot be read on after one, such as
    /// a broken JSON list, is an error always.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }

    /// What becomes of examples of which no token is trained on, also after truncation.
    pub fn on_empty(mut self, on_empty: OnError) -> Self {
        self.on_empty = on_empty;
        self
    }

    /// Makes messages of prompts and instructions that are text: one of the user and one of the
    /// assistant, written by the tokenizer's chat template. Without it such text is taken as it is,
    /// instructions with the wording of Alpaca. Lists of messages always go through the template.
    pub fn apply_chat_template(mut self, apply: bool) -> Self {
        self.apply_chat_template = apply;
        self
    }

    /// Variables for the chat template, or another one of the tokenizer's.
    pub fn chat_options(mut self, options: ChatOptions) -> Self {
        self.chat_options = Some(options);
        self
    }

    /// The folder of the temporary file that keeps the tokens, 4 bytes each. By default it is the
    /// system's, which may be too small, or held in memory.
    pub fn temp_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.temp_dir = Some(folder.into());
        self
    }

    /// Reads and tokenizes the data.
    ///
    /// # Errors
    /// - a file that cannot be read, is of an unknown kind, or has no examples
    /// - an example that cannot be used, with its file and line, unless it is to be skipped
    /// - messages, and a tokenizer without a chat template
    /// - settings that contradict each other or the data
    pub fn load(&self, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        self.check()?;
        let files = match &self.source {
            Source::Files(paths) => paths.clone(),
            Source::Records(_) => vec!["records".into()],
        };
        let options = self.chat_options.clone().unwrap_or_default();
        let (max_length, truncation) = (self.max_length, self.truncation);
        let encoder = Encoder::new(tokenizer, self.train_on, &options, max_length, truncation)?;
        let writer = Writer::new(self.temp_dir.as_deref(), files.clone())?;
        let mut loader = Loader { config: self, encoder, writer, format: None, chunk: vec![] };
        match &self.source {
            Source::Files(paths) => {
                for (file, path) in paths.iter().enumerate() {
                    loader.format = self.format;
                    let read =
                        read::read(path, &mut |line, record| loader.push(file, line, record));
                    // What is wrong with a line comes before what is wrong with the lines after it.
                    loader.flush(file)?;
                    read?;
                }
            }
            Source::Records(records) => {
                loader.format = self.format;
                for (number, record) in records.iter().enumerate() {
                    loader.push(0, number + 1, read::columns(record.clone()))?;
                }
                loader.flush(0)?;
            }
        }
        let data = Dataset::new(loader.writer.finish(tokenizer.pad_token_id().unwrap_or(0))?);
        let report = data.report();
        if report.truncated + report.left_out() > 0 {
            tracing::warn!("{report}");
        }
        Ok(data)
    }

    fn check(&self) -> Result<(), TrainError> {
        for name in self.columns.keys() {
            if !COLUMNS.contains(&name.as_str()) {
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
            _ => Ok(()),
        }
    }

    /// The example of a record.
    fn example(&self, record: &Record, format: Format) -> Result<Example, String> {
        format.example(record, &self.roles, self.apply_chat_template)
    }
}

/// Data on its way from records to samples.
struct Loader<'a> {
    config: &'a DatasetBuilder,
    encoder: Encoder<'a>,
    writer: Writer,
    /// That of the file that is read, as soon as it is known.
    format: Option<Format>,
    /// Records of the file with their lines.
    chunk: Vec<(usize, Result<(Record, Format), String>)>,
}

impl Loader<'_> {
    fn push(
        &mut self,
        file: usize,
        line: usize,
        record: Result<Record, String>,
    ) -> Result<(), TrainError> {
        let record = record.and_then(|mut record| {
            let columns = self.config.columns.iter();
            let mapped = columns.filter_map(|(name, from)| Some((name, record.remove(from)?)));
            let mapped: Vec<_> = mapped.map(|(name, value)| (name.clone(), value)).collect();
            record.extend(mapped);
            let format = match self.format {
                Some(format) => format,
                None => Format::detect(&record)?,
            };
            self.format = Some(format);
            Ok((record, format))
        });
        self.chunk.push((line, record));
        if self.chunk.len() == CHUNK { self.flush(file) } else { Ok(()) }
    }

    /// Tokenizes what was read of a file.
    fn flush(&mut self, file: usize) -> Result<(), TrainError> {
        self.check_format()?;
        let chunk = std::mem::take(&mut self.chunk);
        let samples = chunk.into_par_iter().map(|(line, record)| {
            let sample = record.map_err(Fault::Malformed).and_then(|(record, format)| {
                self.encoder.sample(&self.config.example(&record, format)?)
            });
            (line, sample)
        });
        for (line, sample) in samples.collect::<Vec<_>>() {
            match sample {
                Ok((sample, truncated)) => {
                    self.writer.report.truncated += usize::from(truncated);
                    self.writer.push(&sample, file, line)?;
                }
                Err(fault) => self.leave_out(fault, file, line)?,
            }
        }
        Ok(())
    }

    /// Settings that no example of this format can be used with.
    fn check_format(&self) -> Result<(), TrainError> {
        match (self.format, self.config.train_on) {
            (
                Some(Format::Text),
                Some(part @ (TrainOn::Completion | TrainOn::AssistantTurns | TrainOn::LastTurn)),
            ) => Err(TrainError::setting(
                "train_on",
                format!("{part:?}"),
                "the examples are plain text, which has no such part: use `Everything`",
            )),
            _ => Ok(()),
        }
    }

    fn leave_out(&mut self, fault: Fault, file: usize, line: usize) -> Result<(), TrainError> {
        let report = &mut self.writer.report;
        let (skip, count, reason) = match fault {
            Fault::NoTemplate => {
                let reason = "messages need a chat template, and the tokenizer has none: give it one \
                              by `set_chat_template`, or use `prompt` and `completion` as text";
                return Err(self.writer.wrong(file, line, reason));
            }
            Fault::Malformed(reason) => {
                (self.config.on_error == OnError::Skip, &mut report.malformed, reason)
            }
            Fault::Empty(reason) => {
                (self.config.on_empty == OnError::Skip, &mut report.empty, reason)
            }
            Fault::TooLong(reason) => {
                (self.config.truncation == Truncation::Drop, &mut report.too_long, reason)
            }
        };
        *count += 1;
        let error = self.writer.wrong(file, line, reason);
        if !skip {
            return Err(error);
        }
        self.writer.report.first_left_out.get_or_insert_with(|| error.to_string());
        Ok(())
    }
}
