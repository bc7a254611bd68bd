//! Files of examples, read record by record.

mod csv;
mod json;
mod pages;
mod parquet;
mod python;
mod thrift;

use crate::error::TrainError;
use burn_lora_text::{ChatMap, ChatValue as Value};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

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

/// A file of text, without a byte order mark.
pub(crate) fn open(path: &Path) -> Result<BufReader<File>, TrainError> {
    let mut file = burn_lora_io::open(path)
        .map(BufReader::new)
        .map_err(|source| TrainError::io(path, source))?;
    let start = file.fill_buf().map_err(|source| TrainError::io(path, source))?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        return Err(TrainError::format(path, "it is UTF-16: save it as UTF-8"));
    }
    if start.starts_with(BYTE_ORDER_MARK) {
        file.consume(BYTE_ORDER_MARK.len());
    }
    Ok(file)
}

/// What is wrong with a line of a file. It may quote the file, whose control characters are escaped.
pub(crate) fn example(path: &Path, line: usize, reason: impl Into<String>) -> TrainError {
    let reason = burn_lora_io::escaped(&reason.into()).to_string();
    TrainError::Example { path: path.to_owned(), line, reason }
}

/// The columns of a record.
pub(crate) fn columns(value: Value) -> Result<Record, String> {
    match value {
        Value::Map(record) => Ok(record),
        other => Err(format!("{} where an object with columns was expected", other.kind())),
    }
}
