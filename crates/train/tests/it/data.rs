//! Data: from files to batches.

mod batches;
mod datasets;
mod errors;
mod files;
mod formats;
mod hostile;
mod masks;
mod pairs;
mod truncation;
mod warnings;

use burn_lora_text::Tokenizer;
use burn_lora_train::data::{Dataset, DatasetBuilder, Sample};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_pretrained("../../testdata/tokenizer").unwrap()
}

/// The tokenizer with another `tokenizer_config.json`.
fn tokenizer_with(config: Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let name = "tokenizer.json";
    std::fs::copy(Path::new("../../testdata/tokenizer").join(name), folder.path().join(name))
        .unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_pretrained(folder.path()).unwrap()
}

fn file(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// All samples as text, with what is trained on in brackets.
fn previews(data: &Dataset) -> Vec<String> {
    let tokenizer = tokenizer();
    (0..data.len()).map(|index| data.preview(index, &tokenizer, false).unwrap()).collect()
}

/// The preview of the only record.
fn preview(record: Value) -> String {
    preview_of(Dataset::from_records([record]))
}

fn preview_of(builder: DatasetBuilder) -> String {
    let mut texts = previews(&builder.load(&tokenizer()).unwrap());
    assert_eq!(texts.len(), 1);
    texts.remove(0)
}

/// What is wrong, without the folder.
fn error(builder: DatasetBuilder) -> String {
    let error = builder.load(&tokenizer()).unwrap_err().to_string();
    match error.rsplit_once(std::path::MAIN_SEPARATOR) {
        Some((folder, rest)) if folder.starts_with(std::path::MAIN_SEPARATOR) => rest.into(),
        _ => error,
    }
}

/// Samples of these lengths, trained on from the second token, whose tokens count up.
fn samples(lengths: &[usize]) -> Dataset {
    let mut next = 0;
    let samples = lengths.iter().map(|length| {
        next += *length as u32;
        let ids = (next - *length as u32..next).collect();
        Sample { ids, loss_mask: (0..*length).map(|place| place > 0).collect() }
    });
    Dataset::from_samples(samples).unwrap()
}

/// A Parquet file with columns of text, all of which are given row by row.
fn parquet_of(columns: &[(&str, &[&str])]) -> Vec<u8> {
    let fields: String =
        columns.iter().map(|(name, _)| format!("required binary {name} (STRING);")).collect();
    let columns: Vec<_> = columns
        .iter()
        .map(|(_, rows)| {
            let rows: Vec<_> = rows.iter().map(|text| ByteArray::from(*text)).collect();
            (rows, None::<(Vec<i16>, Vec<i16>)>)
        })
        .collect();
    parquet_file(&format!("message rows {{ {fields} }}"), &columns)
}

/// A Parquet file with one list of messages a row; an empty text is a null.
fn parquet_of_messages(column: &str, fields: [&str; 2], rows: &[&[[&str; 2]]]) -> Vec<u8> {
    let [first, second] = fields;
    let schema = format!(
        "message rows {{ optional group {column} (LIST) {{ repeated group list {{
            optional group element {{
                optional binary {first} (STRING); optional binary {second} (STRING);
        }} }} }} }}"
    );
    let columns = [0, 1].map(|field| {
        let items = rows.iter().flat_map(|row| row.iter().map(|item| item[field]));
        let values = items.clone().filter(|text| !text.is_empty()).map(ByteArray::from).collect();
        let definitions = items.map(|text| if text.is_empty() { 3 } else { 4 }).collect();
        let repetitions = rows.iter().flat_map(|row| (0..row.len()).map(|at| (at > 0).into()));
        (values, Some((definitions, repetitions.collect())))
    });
    parquet_file(&schema, &columns)
}

/// Values, and their definition and repetition levels.
type Column = (Vec<ByteArray>, Option<(Vec<i16>, Vec<i16>)>);

fn parquet_file(schema: &str, columns: &[Column]) -> Vec<u8> {
    let schema = parse_message_type(schema).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut file = SerializedFileWriter::new(vec![], schema.into(), properties.into()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for (values, levels) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let levels = levels.as_ref();
        let definitions = levels.map(|levels| &levels.0[..]);
        let repetitions = levels.map(|levels| &levels.1[..]);
        let writer = column.typed::<ByteArrayType>();
        writer.write_batch(values, definitions, repetitions).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.into_inner().unwrap()
}
