//! Any bytes and any values: errors, but no panic.

use super::{file, parquet_of_messages, tokenizer};
use burn_lora_train::data::{Dataset, OnError, Truncation};
use proptest::prelude::*;
use serde_json::{Map, Value};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(user|assistant|gpt|human|tool|[a-zé<|>{}%]{0,6})".prop_map(Value::from),
    ];
    let name = "(role|from|content|value|train|weight|type|text|tool_calls|[a-z]?)";
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn record() -> impl Strategy<Value = Map<String, Value>> {
    let name = "(text|prompt|completion|messages|tools|instruction|input|output|conversations)";
    prop::collection::btree_map(name, value(), 0..5).prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn values(records in prop::collection::vec(record(), 1..8), chat: bool) {
        let records = records.into_iter().map(Value::Object);
        let data = Dataset::from_records(records)
            .apply_chat_template(chat)
            .max_length(8)
            .truncation(Truncation::KeepEnd)
            .on_error(OnError::Skip)
            .on_empty(OnError::Skip);
        // Most are odd.
        let (loaded, _) = burn_lora_io::collect(|| data.load(&tokenizer()));
        if let Ok(data) = loaded {
            for index in 0..data.len() {
                prop_assert!(data.sample(index).target_count() > 0);
                data.preview(index, &tokenizer(), false).unwrap();
            }
        }
    }

    #[test]
    fn bytes(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            r#"[\[\]{}",:\\ntex1 \r\n\u{feff}]{0,64}"#.prop_map(String::into_bytes),
        ],
        kind in "(json|jsonl|csv|parquet)",
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &format!("a.{kind}"), bytes);
        let _ = Dataset::from_files([path]).on_error(OnError::Skip).load(&tokenizer());
    }

    #[test]
    fn a_parquet_file_with_wrong_bytes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let messages: &[[&str; 2]] = &[["user", "a"], ["assistant", "b"]];
        let mut bytes = parquet_of_messages("messages", ["role", "content"], &[messages; 20]);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, "a.parquet", bytes);
        let _ = Dataset::from_files([path]).on_error(OnError::Skip).load(&tokenizer());
    }
}

/// A Parquet file that is a footer alone.
fn footer(bytes: &[u8]) -> Vec<u8> {
    [b"PAR1", bytes, &(bytes.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// Room for what a list announces would be asked for before its first element is read: an abort,
/// which nobody can catch.
#[test]
fn a_parquet_file_whose_lists_announce_more_than_it_has_is_refused() {
    // Thrift's compact protocol: fields 2 and 4 (schema and row groups) are lists of structs, field 5
    // (of text by key) too. The count is in seven bits a byte.
    for field in [2u8, 4, 5] {
        for count in
            [&[0xff, 0xff, 0xff, 0xff, 0x07][..], &[0xff, 0xff, 0xff, 0x7f], &[0x80, 0x80, 0x04]]
        {
            let list = [&[field << 4 | 9, 0xfc], count, &[0; 16]].concat();
            let folder = tempfile::tempdir().unwrap();
            let path = file(&folder, "a.parquet", footer(&list));
            let error = Dataset::from_files([&path]).load(&tokenizer()).unwrap_err().to_string();
            assert!(error.contains("a.parquet"), "{error}");
        }
    }
    // What a fuzzer has found.
    let found = footer(b"%\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1+\xf1\xf1\xf1\xf1\xf1\xf1\xf1user\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1\xf1=\xf1\xf1\xf1\xf1tZ\x00\x00\x02\x05\x00\xd3\x00");
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.parquet", found);
    let error = Dataset::from_files([&path]).load(&tokenizer()).unwrap_err().to_string();
    assert!(error.contains("a.parquet"), "{error}");
}

/// What a fuzzer has found: each made the `parquet` crate ask for gigabytes, or go through billions of
/// items, in a file of less than a thousand bytes.
#[test]
fn a_parquet_file_whose_pages_announce_more_than_it_has_is_refused() {
    let folder = std::path::Path::new("../../testdata/parquet");
    for name in ["dictionary", "values", "rows", "page-header", "page-header-2", "footer"] {
        let path = folder.join(name).with_extension("parquet");
        let error = Dataset::from_files([&path]).load(&tokenizer()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("announces"), "{error}");
    }
}
