//! Loading of data: from records to samples.

use super::{
    Dataset, DatasetBuilder, Format, OnError, TrainOn, Truncation,
    builder::Source,
    encode::{Encoded, Encoder, Fault},
    format::Kind,
    notes::Notes,
    read::{self, Record, Stop},
    store::Writer,
    unpaired, values,
};
use crate::error::TrainError;
use burn_lora_io::{hub::DataFile, progress::Work};
use burn_lora_text::Tokenizer;
use rayon::prelude::*;
use std::path::PathBuf;

/// Number of records tokenized together, by all processors.
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
    /// - [`TrainError::Io`] if a file cannot be read, or the temporary file cannot be written
    /// - [`TrainError::Format`] if a file is of an unknown kind, damaged, or has no examples
    /// - [`TrainError::Example`] if an example cannot be used, with its file and line, unless it is
    ///   to be skipped, or if there are messages and the tokenizer has no chat template
    /// - [`TrainError::Setting`] if settings contradict each other or the data
    /// - [`TrainError::Text`] if the tokenizer fails
    pub fn load(&self, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        self.check()?;
        load(self, tokenizer)
    }
}

/// Reads and tokenizes all data.
pub(super) fn load(config: &DatasetBuilder, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
    let files = match &config.source {
        Source::Files(paths) => {
            let files = paths.iter().map(burn_lora_io::hub::resolve_data);
            files.collect::<Result<Vec<_>, _>>()?.concat()
        }
        Source::Records(_) => vec![DataFile::from(PathBuf::from("records"))],
    };
    let encoder = Encoder::new(config, tokenizer)?;
    let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    let mut writer = Writer::new(config.temp_dir.as_deref(), paths.clone())?;
    writer.max_length = config.max_length;
    let mut loader = Loader {
        work: Work::unknown("encoding examples"),
        config,
        encoder,
        writer,
        file: 0,
        format: config.format,
        kind: None,
        notes: Notes::default(),
        chunk: vec![],
    };
    for (file, (data, path)) in files.iter().zip(&paths).enumerate() {
        if loader.left() == 0 {
            break;
        }
        if paths[..file].contains(path) {
            let path = path.display();
            burn_lora_io::warn!("{path}: it is named twice, and so its examples are there twice");
        }
        (loader.file, loader.format) = (file, config.format);
        loader.notes = Notes::new(config.columns.values().cloned());
        let read = match &config.source {
            Source::Files(_) => {
                let path = data.obtain()?;
                read::read(path, &mut |line, record| loader.push(line, record))
            }
            Source::Records(records) => {
                let mut records = records.iter().enumerate();
                Stop::error_of(records.try_for_each(|(number, record)| {
                    loader.push(number + 1, record.clone().and_then(read::columns))
                }))
            }
        };
        // An error of a line comes before errors of the lines after it.
        loader.flush()?;
        read?;
        std::mem::take(&mut loader.notes).report(path, tokenizer, config.max_length);
    }
    drop(loader.work);
    let data = Dataset::new(loader.writer.finish(Some(tokenizer))?);
    let report = data.report();
    if report.left_out() > 0 {
        burn_lora_io::warn!("{report}");
    }
    Ok(if config.unpaired { data.unpaired() } else { data })
}

/// A record with its format and numbers, or the error in it.
type Recognized = Result<(Record, Format, Vec<f32>), String>;

/// Loader of records to samples.
struct Loader<'a> {
    work: Work,
    config: &'a DatasetBuilder,
    encoder: Encoder<'a>,
    writer: Writer,
    /// Index of the file being read.
    file: usize,
    /// Its format, once known.
    format: Option<Format>,
    /// What the examples are, in all files.
    kind: Option<Kind>,
    /// Its oddities.
    notes: Notes,
    /// Its records with their lines, before tokenization.
    chunk: Vec<(usize, Recognized)>,
}

impl Loader<'_> {
    fn push(&mut self, line: usize, record: Result<Record, String>) -> Result<(), Stop> {
        let record = record.and_then(|record| self.recognize(record));
        self.chunk.push((line, record));
        if self.chunk.len() >= self.left().min(CHUNK) {
            self.flush()?;
        }
        if self.left() == 0 { Err(Stop::Enough) } else { Ok(()) }
    }

    /// Number of samples that are still wanted.
    fn left(&self) -> usize {
        self.config.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.writer.len()))
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
        let values = self.config.values.iter().map(|(name, column)| {
            let value = record.shift_remove(name).ok_or_else(|| format!("no column `{name}`"))?;
            column.read(name, &value)
        });
        let mut values = values.collect::<Result<Vec<_>, _>>()?.concat();
        let format = match self.format {
            Some(format) => format,
            None => Format::detect(&record)?,
        };
        let kind = format.kind();
        if self.config.labeled && kind != Kind::Pair {
            values.push(unpaired::label(&mut record)?);
        }
        if *self.kind.get_or_insert(kind) != kind {
            let both = [Some(kind), self.kind];
            let name = if both.contains(&Some(Kind::Pair)) {
                "`chosen` and `rejected`"
            } else {
                "words and labels"
            };
            return Err(format!(
                "pairs of {name} do not mix with examples of another kind, such as those of files before"
            ));
        }
        self.format = Some(format);
        for (name, value) in &record {
            if !value.is_null() && !self.config.reads(format, &record, name) {
                self.notes.unused(name);
            }
        }
        Ok((record, format, values))
    }

    /// Tokenizes the records read so far.
    fn flush(&mut self) -> Result<(), TrainError> {
        self.check_format()?;
        if self.kind == Some(Kind::Pair) {
            self.writer.set_group(2);
        }
        let chunk = std::mem::take(&mut self.chunk);
        let records = chunk.len() as u64;
        let columns = self.config.values.iter();
        let mut names: Vec<_> = columns.flat_map(|(name, column)| column.names(name)).collect();
        if self.config.labeled && self.kind != Some(Kind::Pair) {
            names.push(values::LABEL);
        }
        let samples = chunk.into_par_iter().map(|(line, record)| {
            let sample = record.map_err(Fault::Malformed).and_then(|(record, format, values)| {
                let encoded = self.encoder.samples(&self.config.example(&record, format)?)?;
                Ok((encoded, values))
            });
            (line, sample)
        });
        for (line, sample) in samples.collect::<Vec<_>>() {
            match sample {
                Ok((samples, values)) => {
                    let truncated = samples.iter().any(Encoded::truncated);
                    self.writer.report.truncated += usize::from(truncated);
                    for encoded in samples {
                        self.writer.push(&encoded.sample, self.file, line)?;
                        self.writer.labels(&encoded.labels);
                        for (name, value) in names.iter().zip(&values) {
                            self.writer.value(name, *value);
                        }
                        self.writer.ends.extend(encoded.ends);
                        for oddity in encoded.oddities {
                            self.notes.add(oddity, line);
                        }
                    }
                }
                Err(fault) => self.leave_out(fault, line)?,
            }
        }
        self.work.advance(records);
        Ok(())
    }

    /// Rejects settings that no example of this format can be used with.
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
            Fault::Equal => {
                let reason = "both answers are the same, so that there is nothing to prefer";
                (self.config.on_empty == OnError::Skip, &mut report.equal, reason.into())
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
