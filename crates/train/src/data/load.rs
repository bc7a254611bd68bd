//! Records on their way to samples.

use super::{
    Dataset, DatasetBuilder, Format, OnError, TrainOn, Truncation,
    builder::Source,
    encode::{Encoder, Fault},
    notes::Notes,
    read::{self, Record},
    store::Writer,
};
use crate::error::TrainError;
use burn_lora_io::escaped;
use burn_lora_text::{ChatValue as Value, Tokenizer};
use rayon::prelude::*;

/// How many records are tokenized together, by all processors.
const CHUNK: usize = 512;

impl DatasetBuilder {
    /// Reads and tokenizes the data.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # use burn_lora_train::data::*;
    /// # use serde_json::json;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).load(&tokenizer)?;
    /// assert_eq!(data.len(), 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// - a file that cannot be read, is of an unknown kind, or has no examples
    /// - an example that cannot be used, with its file and line, unless it is to be skipped
    /// - messages, and a tokenizer without a chat template
    /// - settings that contradict each other or the data
    pub fn load(&self, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        self.check()?;
        load(self, tokenizer)
    }
}

/// Reads and tokenizes all data.
pub(super) fn load(config: &DatasetBuilder, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
    let files = match &config.source {
        Source::Files(paths) => paths.clone(),
        Source::Records(_) => vec!["records".into()],
    };
    let encoder = Encoder::new(config, tokenizer)?;
    let writer = Writer::new(config.temp_dir.as_deref(), files.clone())?;
    let mut loader = Loader {
        config,
        encoder,
        writer,
        file: 0,
        format: config.format,
        notes: Notes::default(),
        chunk: vec![],
    };
    for (file, path) in files.iter().enumerate() {
        if files[..file].contains(path) {
            let path = path.display();
            burn_lora_io::warn!("{path}: it is named twice, and so its examples are there twice");
        }
        (loader.file, loader.format) = (file, config.format);
        loader.notes = Notes::new(config.columns.values().cloned());
        let read = match &config.source {
            Source::Files(_) => read::read(path, &mut |line, record| loader.push(line, record)),
            Source::Records(records) => {
                records.iter().enumerate().try_for_each(|(number, record)| {
                    loader.push(number + 1, record.clone().and_then(read::columns))
                })
            }
        };
        // What is wrong with a line comes before what is wrong with the lines after it.
        loader.flush()?;
        read?;
        std::mem::take(&mut loader.notes).report(path, tokenizer, config.max_length);
    }
    let data = Dataset::new(loader.writer.finish(Some(tokenizer))?);
    let report = data.report();
    if report.left_out() > 0 {
        burn_lora_io::warn!("{report}");
    }
    Ok(data)
}

/// A record and its format, or what is wrong with it.
type Recognized = Result<(Record, Format, Vec<f32>), String>;

/// Data on its way from records to samples.
struct Loader<'a> {
    config: &'a DatasetBuilder,
    encoder: Encoder<'a>,
    writer: Writer,
    /// The file that is read.
    file: usize,
    /// Its format, as soon as it is known.
    format: Option<Format>,
    /// What is odd about it.
    notes: Notes,
    /// Its records with their lines, before they are tokenized.
    chunk: Vec<(usize, Recognized)>,
}

impl Loader<'_> {
    fn push(&mut self, line: usize, record: Result<Record, String>) -> Result<(), TrainError> {
        let record = record.and_then(|record| self.recognize(record));
        self.chunk.push((line, record));
        if self.chunk.len() == CHUNK { self.flush() } else { Ok(()) }
    }

    fn recognize(&mut self, mut record: Record) -> Recognized {
        let columns = self.config.columns.iter();
        let mapped =
            columns.filter_map(|(name, from)| Some((name, from, record.shift_remove(from)?)));
        for (name, from, value) in mapped.collect::<Vec<_>>() {
            self.notes.found(from);
            if record.insert(name.clone(), value).is_some() {
                self.notes.unused(name);
            }
        }
        let values = self.config.values.iter().map(|(name, labels)| {
            let value = record.shift_remove(name).ok_or_else(|| format!("no column `{name}`"))?;
            number(&value, labels).map_err(|reason| format!("`{name}` is {reason}"))
        });
        let values = values.collect::<Result<_, _>>()?;
        let format = match self.format {
            Some(format) => format,
            None => Format::detect(&record)?,
        };
        self.format = Some(format);
        for (name, value) in &record {
            if !value.is_null() && !self.config.reads(format, &record, name) {
                self.notes.unused(name);
            }
        }
        Ok((record, format, values))
    }

    /// Tokenizes what was read.
    fn flush(&mut self) -> Result<(), TrainError> {
        self.check_format()?;
        let chunk = std::mem::take(&mut self.chunk);
        let samples = chunk.into_par_iter().map(|(line, record)| {
            let sample = record.map_err(Fault::Malformed).and_then(|(record, format, values)| {
                let encoded = self.encoder.sample(&self.config.example(&record, format)?)?;
                Ok((encoded, values))
            });
            (line, sample)
        });
        for (line, sample) in samples.collect::<Vec<_>>() {
            match sample {
                Ok((encoded, values)) => {
                    self.writer.report.truncated += usize::from(encoded.truncated());
                    self.writer.push(&encoded.sample, self.file, line)?;
                    for (name, value) in self.config.values.keys().zip(values) {
                        self.writer.value(name, value);
                    }
                    self.writer.ends.extend(encoded.ends);
                    for oddity in encoded.oddities {
                        self.notes.add(oddity, line);
                    }
                }
                Err(fault) => self.leave_out(fault, line)?,
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

    fn leave_out(&mut self, fault: Fault, line: usize) -> Result<(), TrainError> {
        let report = &mut self.writer.report;
        let (skip, count, reason) = match fault {
            Fault::NoTemplate => {
                let reason = "messages need a chat template, and the tokenizer has none: give it one \
                              by `set_chat_template`, or use `prompt` and `completion` as text";
                return Err(self.writer.wrong(self.file, line, reason));
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
        let error = self.writer.wrong(self.file, line, reason);
        if !skip {
            return Err(error);
        }
        self.writer.report.first_left_out.get_or_insert_with(|| error.to_string());
        Ok(())
    }
}

/// The number that a value is, or stands for by its place among names.
fn number(value: &Value, names: &[String]) -> Result<f32, String> {
    match value {
        Value::Int(number) => Ok(*number as f32),
        Value::Float(number) if number.is_finite() => Ok(*number as f32),
        Value::Bool(is) => Ok((*is).into()),
        Value::Text(name) => match names.iter().position(|known| known == name) {
            Some(place) => Ok(place as f32),
            None if names.is_empty() => {
                Err("text, but must be a number: name what it stands for by `labels`".into())
            }
            None => Err(format!("`{}`, expected one of {}", escaped(name), names.join(", "))),
        },
        other => Err(format!("{}, but must be a number", other.kind())),
    }
}
