//! Training data in Parquet.

use crate::{folder, tokenizer};
use burn_lora::{prelude::*, train::data::OnError};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

pub(crate) fn run(data: &[u8]) {
    let folder = folder("parquet", &[("data.parquet", data)]);
    let builder = Dataset::from_files([folder.join("data.parquet")])
        .on_error(OnError::Skip)
        .on_empty(OnError::Skip)
        .max_length(16)
        .temp_dir(&folder);
    let Ok(data) = builder.load(tokenizer()) else { return };
    for index in 0..data.len() {
        let _ = data.preview(index, tokenizer(), false);
    }
}

/// Text by column, with an integer and a float beside it.
fn columns(names: [&str; 2], compression: Compression, dictionary: bool) -> Vec<u8> {
    let [first, second] = names;
    let schema = format!(
        "message rows {{ required binary {first} (STRING); optional binary {second} (STRING);
        required int64 number; required double float; }}"
    );
    let schema = parse_message_type(&schema).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .build();
    let mut file = SerializedFileWriter::new(vec![], schema.into(), properties.into()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let text = |text: &str| ByteArray::from(text);
    for levels in [None, Some([1, 0, 1])] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = [text("hello"), text("world"), text("!")];
        let count = if levels.is_some() { 2 } else { 3 };
        let levels = levels.as_ref().map(|levels| &levels[..]);
        column.typed::<ByteArrayType>().write_batch(&values[..count], levels, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, -2, i64::MAX], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[0.5, f64::NAN, -1.0], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.into_inner().unwrap()
}

/// A list of messages a row.
fn messages() -> Vec<u8> {
    let schema = "message rows { optional group messages (LIST) { repeated group list {
        optional group element { optional binary role (STRING); optional binary content (STRING); }
        } } }";
    let schema = parse_message_type(schema).unwrap();
    let mut file = SerializedFileWriter::new(vec![], schema.into(), Default::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for values in [["user", "assistant", "user", "assistant"], ["hi", "hello", "how?", "so"]] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = values.map(ByteArray::from);
        let (definitions, repetitions) = ([4; 4], [0, 1, 0, 1]);
        let writer = column.typed::<ByteArrayType>();
        writer.write_batch(&values, Some(&definitions), Some(&repetitions)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.into_inner().unwrap()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        columns(["prompt", "completion"], Compression::UNCOMPRESSED, true),
        columns(["prompt", "completion"], Compression::SNAPPY, false),
        columns(["text", "other"], Compression::UNCOMPRESSED, false),
        messages(),
    ]
}
