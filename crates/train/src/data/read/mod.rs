//! Readers of example files, record by record.

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

/// An example as stored in its file: columns by name.
pub(crate) type Record = ChatMap;

/// Callback that receives each record of a file in turn with its line, or the error of that line.
pub(crate) type Sink<'a> = dyn FnMut(usize, Result<Record, String>) -> Result<(), Stop> + 'a;

/// Why reading ends before the file does.
pub(crate) enum Stop {
    /// No more records are wanted.
    Enough,
    Failed(TrainError),
}

impl Stop {
    /// The error of what has been read: that no more was wanted is none.
    pub fn error_of(read: Result<(), Self>) -> Result<(), TrainError> {
        match read {
            Ok(()) | Err(Self::Enough) => Ok(()),
            Err(Self::Failed(error)) => Err(error),
        }
    }
}

impl From<TrainError> for Stop {
    fn from(error: TrainError) -> Self {
        Self::Failed(error)
    }
}

/// Reads a file; its extension determines its kind. A problem that does not belong to a single
/// line, such as a file that ends early, is an error.
pub(crate) fn read(path: &Path, sink: &mut Sink) -> Result<(), TrainError> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let mut records = 0usize;
    let mut counting = |line, record| {
        records += 1;
        sink(line, record)
    };
    let read = match extension.to_str() {
        Some("json") => json::read(path, &mut counting),
        Some("jsonl" | "ndjson") => json::read_lines(path, &mut counting),
        Some("csv") => csv::read(path, &mut counting),
        Some("parquet") => parquet::read(path, &mut counting),
        _ => {
            let reason = "an unknown kind of file: .json, .jsonl, .csv and .parquet are read";
            Err(TrainError::format(path, reason).into())
        }
    };
    match Stop::error_of(read) {
        Ok(()) if records == 0 => Err(TrainError::format(path, "no examples in this file")),
        ended => ended,
    }
}

/// Opens a text file, without its byte order mark.
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

/// Error of a line of a file. The reason may quote the file; control characters are escaped.
pub(crate) fn example(path: &Path, line: usize, reason: impl Into<String>) -> TrainError {
    let reason = burn_lora_io::escaped(&reason.into()).to_string();
    TrainError::Example { path: path.to_owned(), line, reason }
}

/// Returns the columns of a record.
pub(crate) fn columns(value: Value) -> Result<Record, String> {
    match value {
        Value::Map(record) => Ok(record),
        other => Err(format!("{} where an object with columns was expected", other.kind())),
    }
}
