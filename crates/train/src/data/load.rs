//! Records on their way to samples.

use super::{
    Dataset, DatasetBuilder, Format, OnError, TrainOn, Truncation,
    builder::Source,
    encode::{Encoder, Fault},
    read::{self, Record},
    store::Writer,
};
use crate::error::TrainError;
use burn_lora_llama::Tokenizer;
use rayon::prelude::*;

/// How many records are tokenized together, by all processors.
const CHUNK: usize = 512;

/// Reads and tokenizes all data.
pub(super) fn load(config: &DatasetBuilder, tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
    let files = match &config.source {
        Source::Files(paths) => paths.clone(),
        Source::Records(_) => vec!["records".into()],
    };
    let encoder = Encoder::new(config, tokenizer)?;
    let writer = Writer::new(config.temp_dir.as_deref(), files)?;
    let mut loader =
        Loader { config, encoder, writer, file: 0, format: config.format, chunk: vec![] };
    match &config.source {
        Source::Files(paths) => {
            for (file, path) in paths.iter().enumerate() {
                (loader.file, loader.format) = (file, config.format);
                let read = read::read(path, &mut |line, record| loader.push(line, record));
                // What is wrong with a line comes before what is wrong with the lines after it.
                loader.flush()?;
                read?;
            }
        }
        Source::Records(records) => {
            for (number, record) in records.iter().enumerate() {
                loader.push(number + 1, record.clone().and_then(read::columns))?;
            }
            loader.flush()?;
        }
    }
    let data = Dataset::new(loader.writer.finish(tokenizer.pad_token_id().unwrap_or(0))?);
    let report = data.report();
    if report.truncated + report.left_out() > 0 {
        burn_lora_io::warn!("{report}");
    }
    Ok(data)
}

/// A record and its format, or what is wrong with it.
type Recognized = Result<(Record, Format), String>;

/// Data on its way from records to samples.
struct Loader<'a> {
    config: &'a DatasetBuilder,
    encoder: Encoder<'a>,
    writer: Writer,
    /// The file that is read.
    file: usize,
    /// Its format, as soon as it is known.
    format: Option<Format>,
    /// Its records with their lines, before they are tokenized.
    chunk: Vec<(usize, Recognized)>,
}

impl Loader<'_> {
    fn push(&mut self, line: usize, record: Result<Record, String>) -> Result<(), TrainError> {
        let record = record.and_then(|mut record| {
            let columns = self.config.columns.iter();
            let mapped =
                columns.filter_map(|(name, from)| Some((name, record.shift_remove(from)?)));
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
        if self.chunk.len() == CHUNK { self.flush() } else { Ok(()) }
    }

    /// Tokenizes what was read.
    fn flush(&mut self) -> Result<(), TrainError> {
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
                    self.writer.push(&sample, self.file, line)?;
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
