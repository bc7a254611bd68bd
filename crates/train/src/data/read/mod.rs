//! Files of examples, read record by record.

mod csv;
mod json;
mod parquet;

use crate::error::TrainError;
use burn_lora_llama::{ChatMap, ChatValue as Value};
use std::path::Path;

/// One example as its file has it: columns by their names.
pub(crate) type Record = ChatMap;

/// Gets each record of a file in turn with its line, or what is wrong with that line.
pub(crate) type Sink<'a> = dyn FnMut(usize, Result<Record, String>) -> Result<(), TrainError> + 'a;

/// Reads a file; its extension tells the kind. What `sink` cannot be told of a single line, such as
/// a file that ends early, is an error.
pub(crate) fn read(path: &Path, sink: &mut Sink) -> Result<(), TrainError> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let mut records = 0usize;
    let mut counting = |line, record| {
        records += 1;
        sink(line, record)
    };
    match extension.to_str() {
        Some("json") => json::read(path, &mut counting)?,
        Some("jsonl" | "ndjson") => json::read_lines(path, &mut counting)?,
        Some("csv") => csv::read(path, &mut counting)?,
        Some("parquet") => parquet::read(path, &mut counting)?,
        _ => {
            let reason = "an unknown kind of file: .json, .jsonl, .csv and .parquet are read";
            return Err(TrainError::format(path, reason));
        }
    }
    if records == 0 {
        return Err(TrainError::format(path, "no examples in this file"));
    }
    Ok(())
}

/// What is wrong with a line of a file.
pub(crate) fn example(path: &Path, line: usize, reason: impl Into<String>) -> TrainError {
    TrainError::Example { path: path.to_owned(), line, reason: reason.into() }
}

/// The columns of a record.
pub(crate) fn columns(value: Value) -> Result<Record, String> {
    match value {
        Value::Map(record) => Ok(record),
        other => Err(format!("{} where an object with columns was expected", other.kind())),
    }
}
