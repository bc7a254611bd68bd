//! Parquet: rows of typed columns, which may hold lists and objects.

use super::{Record, Sink, Stop, pages::Bounded};
use crate::error::TrainError;
use burn_lora_text::ChatValue as Value;
use parquet::{
    errors::ParquetError,
    file::reader::FileReader,
    record::{Field, Row},
};
use std::path::Path;

/// Reads a Parquet file. A record's line is the number of its row.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<(), Stop> {
    let file = burn_lora_io::open(path).map_err(|source| TrainError::io(path, source))?;
    let broken = |error: ParquetError| {
        TrainError::format(path, format!("not a Parquet file, or cut off: {error}"))
    };
    let reader = caught(|| Bounded::open(file)).map_err(broken)?;
    let expected = reader.metadata().file_metadata().num_rows();
    let mut rows = caught(|| reader.get_row_iter(None)).map_err(broken)?;
    let mut line = 0;
    while let Some(row) = caught(|| rows.next().transpose()).map_err(broken)? {
        line += 1;
        sink(line, Ok(record(row)))?;
    }
    if expected != line as i64 {
        let reason = format!("{line} rows where {expected} were announced");
        return Err(TrainError::format(path, reason).into());
    }
    Ok(())
}

/// Catches panics: the `parquet` crate panics on some damaged files.
fn caught<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    burn_lora_io::caught(read)
        .unwrap_or_else(|_| Err(ParquetError::General("its bytes contradict each other".into())))
}

fn record(row: Row) -> Record {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::Int((*value).into()),
        Field::Short(value) => Value::Int((*value).into()),
        Field::Int(value) => Value::Int((*value).into()),
        Field::Long(value) => Value::Int((*value).into()),
        Field::UByte(value) => Value::Int((*value).into()),
        Field::UShort(value) => Value::Int((*value).into()),
        Field::UInt(value) => Value::Int((*value).into()),
        Field::ULong(value) => Value::Int((*value).into()),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        // Some writers do not mark their text as text. Other bytes, such as images, are of no use
        // here.
        Field::Bytes(bytes) => str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => {
            let columns = row.get_column_iter();
            // An object has all fields that any object of the column has: fields that are null are
            // not its own.
            let own = columns.filter(|(_, field)| !matches!(field, Field::Null));
            Value::Map(own.map(|(name, field)| (name.clone(), value(field))).collect())
        }
        Field::ListInternal(list) => Value::List(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, field)| match value(key) {
                Value::Text(key) => (key, value(field)),
                key => (key.to_string(), value(field)),
            });
            Value::Map(entries.collect())
        }
        // Dates, times and decimals, none of which is text to train on.
        other => Value::from(other.to_string()),
    }
}
