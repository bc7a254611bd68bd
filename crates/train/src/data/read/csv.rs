//! Comma-separated values: the first row names the columns, all others are text.

use super::{Record, Sink, Stop, example, open};
use crate::error::TrainError;
use burn_lora_text::ChatValue as Value;
use csv::{ByteRecord, ErrorKind, StringRecord};
use std::{io::Read, path::Path};

/// A row appended after the last one: if a quote never closes, it is part of the last one.
const LAST: &str = "\u{fdd0}";

/// Reads a CSV file. A record's line is that on which it begins: quoted text may span several.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<(), Stop> {
    let failed = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        match error.into_kind() {
            ErrorKind::Io(source) => TrainError::io(path, source),
            kind => example(path, line, format!("not CSV: {kind:?}")),
        }
    };
    let last = format!("\n{LAST}\n");
    let file = open(path)?.chain(last.as_bytes());
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    let closed = |row: &ByteRecord, line: usize| match row.iter().next_back() {
        Some(field) if row.len() > 1 || field != LAST.as_bytes() => {
            if !field.ends_with(last.as_bytes()) {
                return Ok(true);
            }
            let reason = "a quote in this record never closes: the rest of the file would be part of \
                          one field. Within quotes a quote is written twice";
            Err(example(path, line, reason))
        }
        _ => Ok(false),
    };
    let names = reader.byte_headers().map_err(failed)?.clone();
    if !closed(&names, 1)? {
        return Ok(());
    }
    let names = text(names).map_err(|reason| example(path, 1, reason))?;
    for (number, name) in names.iter().enumerate() {
        if names.iter().take(number).any(|earlier| earlier == name) {
            let reason = format!("two columns of the header are named `{name}`");
            return Err(example(path, 1, reason).into());
        }
    }
    let mut row = ByteRecord::new();
    while reader.read_byte_record(&mut row).map_err(failed)? {
        let line = row.position().map_or(0, |position| position.line() as usize);
        if closed(&row, line)? {
            sink(line, record(&names, row.clone()))?;
        }
    }
    Ok(())
}

fn record(names: &StringRecord, row: ByteRecord) -> Result<Record, String> {
    if row.len() != names.len() {
        return Err(format!("{} fields, but the header has {}", row.len(), names.len()));
    }
    let row = text(row)?;
    Ok(names.iter().zip(&row).map(|(name, value)| (name.into(), Value::from(value))).collect())
}

fn text(row: ByteRecord) -> Result<StringRecord, String> {
    StringRecord::from_byte_record(row)
        .map_err(|error| format!("field {} is not UTF-8", error.utf8_error().field() + 1))
}
