//! Each kind of file, with each format.

use super::{file, parquet_of, parquet_of_messages, previews, tokenizer};
use burn_lora_train::data::Dataset;
use serde_json::{Value, json};

const CHAT: &str = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n";

/// A record of each format, and how its sample ends.
fn records() -> [(&'static str, Value, &'static str); 5] {
    [
        ("text", json!({"text": "hello world"}), "hello« world<|im_end|>»"),
        ("prompt", json!({"prompt": "hello", "completion": " world"}), "hello« world<|im_end|>»"),
        (
            "messages",
            json!({"messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]}),
            CHAT,
        ),
        (
            "alpaca",
            json!({"instruction": "add", "input": "1 2", "output": "3"}),
            "add\n\n### Input:\n1 2\n\n### Response:\n«3<|im_end|>»",
        ),
        (
            "sharegpt",
            json!({"conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]}),
            CHAT,
        ),
    ]
}

fn csv(record: &Value) -> String {
    let record = record.as_object().unwrap();
    let cells = record.values().map(|value| match value {
        Value::String(text) => text.clone(),
        list => format!("\"{}\"", list.to_string().replace('"', "\"\"")),
    });
    let names: Vec<_> = record.keys().cloned().collect();
    format!("{}\n{}\n", names.join(","), cells.collect::<Vec<_>>().join(","))
}

fn parquet(record: &Value) -> Vec<u8> {
    let record = record.as_object().unwrap();
    match record.iter().next() {
        Some((name, Value::Array(items))) => {
            let fields: Vec<_> = items[0].as_object().unwrap().keys().map(String::as_str).collect();
            let text = |item: &'_ Value, field| item[field].as_str().unwrap().to_owned();
            let items: Vec<[String; 2]> =
                items.iter().map(|item| [text(item, fields[0]), text(item, fields[1])]).collect();
            let items: Vec<[&str; 2]> =
                items.iter().map(|[first, second]| [first.as_str(), second]).collect();
            parquet_of_messages(name, [fields[0], fields[1]], &[&items])
        }
        _ => {
            let texts: Vec<_> = record
                .iter()
                .map(|(name, text)| (name.as_str(), [text.as_str().unwrap()]))
                .collect();
            let columns: Vec<_> = texts.iter().map(|(name, rows)| (*name, &rows[..])).collect();
            parquet_of(&columns)
        }
    }
}

#[test]
fn every_format_from_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    for (name, record, expected) in records() {
        let files = [
            file(&folder, &format!("{name}.jsonl"), record.to_string()),
            file(&folder, &format!("{name}.json"), json!([record]).to_string()),
            file(&folder, &format!("{name}_data.json"), json!({"data": [record]}).to_string()),
            file(&folder, &format!("{name}.csv"), csv(&record)),
            file(&folder, &format!("{name}.parquet"), parquet(&record)),
        ];
        for path in &files {
            let data = Dataset::from_files([path]).load(&tokenizer()).unwrap();
            let texts = previews(&data);
            assert_eq!(texts.len(), 1, "{}", path.display());
            assert!(texts[0].ends_with(expected), "{}: {}", path.display(), texts[0]);
        }
        let data = Dataset::from_files(&files).load(&tokenizer()).unwrap();
        assert_eq!(data.len(), files.len());
    }
}

/// The lines of a file's samples.
fn lines(name: &str, bytes: impl AsRef<[u8]>) -> Vec<usize> {
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::from_files([file(&folder, name, bytes)]).load(&tokenizer()).unwrap();
    let line = |index| data.source(index).rsplit_once(':').unwrap().1.parse().unwrap();
    (0..data.len()).map(line).collect()
}

#[test]
fn sources_name_the_line() {
    let lines_of_text = "\u{feff}{\"text\": \"aa\"}\r\n\r\n  \n{\"text\": \"bb\"}";
    assert_eq!(lines("a.jsonl", lines_of_text), [1, 4]);
    // JSON lines under the name of JSON.
    assert_eq!(lines("a.json", lines_of_text), [1, 4]);
    // A list with an object over several lines, two on one line, and one that follows a comma.
    let list = "\u{feff}[\n{\n\"text\":\n\"aa\"\n},\n\n{\"text\": \"b\\nb\"}, {\"text\": \"cc\"}\n,\
                {\"text\": \"dd\"}]\n";
    assert_eq!(lines("a.json", list), [2, 7, 7, 8]);
    let object = format!("{{\"version\": [1, {{}}],\n\"data\": {},\n\"more\": 1}}", &list[3..]);
    assert_eq!(lines("a.json", object), [3, 8, 8, 9]);
    // Quoted text over two lines.
    assert_eq!(lines("a.csv", "\u{feff}text\naa\n\"b\nb\"\ncc\n"), [2, 3, 5]);
    assert_eq!(lines("a.parquet", parquet_of(&[("text", &["aa", "bb", "cc"])])), [1, 2, 3]);
}

#[test]
fn samples_keep_the_order_of_files_and_records() {
    let folder = tempfile::tempdir().unwrap();
    let word = |number: usize| format!("number {number}");
    // More than are tokenized together.
    let records: String =
        (0..1500).map(|number| json!({"text": word(number)}).to_string() + "\n").collect();
    let first = file(&folder, "a.jsonl", records);
    let second = file(&folder, "b.JSONL", json!({"text": word(1500)}).to_string());
    let data = Dataset::from_files([first, second]).load(&tokenizer()).unwrap();
    let texts = previews(&data);
    assert_eq!(texts.len(), 1501);
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(text.replace(['«', '»'], ""), word(number) + "<|im_end|>");
    }
    assert!(data.source(1500).ends_with("b.JSONL:1"));
}

#[test]
fn a_column_of_a_table_may_be_null() {
    let rows: &[&[[&str; 2]]] =
        &[&[["user", "a"], ["assistant", "b"]], &[["assistant", "c"]], &[["assistant", ""]]];
    let folder = tempfile::tempdir().unwrap();
    let path =
        file(&folder, "a.parquet", parquet_of_messages("messages", ["role", "content"], rows));
    let data = Dataset::from_files([&path]).on_error(burn_lora_train::data::OnError::Skip);
    let data = data.load(&tokenizer()).unwrap();
    assert_eq!(previews(&data), [CHAT, "<|im_start|>assistant\n«c<|im_end|>»\n"]);
    assert_eq!(data.report().malformed, 1);
}

/// What is wrong with an example comes before what is wrong with the file far behind it.
#[test]
fn files_are_read_record_by_record() {
    let folder = tempfile::tempdir().unwrap();
    for (name, begin, good, bad) in [
        ("a.json", "[{\"text\": \"aa\"}", ",\n{\"text\": \"aa\"}", ",\n{\"text\": 1}"),
        ("a.json", "{\"data\":[{\"text\": \"aa\"}", ",\n{\"text\": \"aa\"}", ",\n{\"text\": 1}"),
        ("a.jsonl", "\n", "{\"text\": \"aa\"}\n", "{\"text\": 1}\n"),
        ("a.csv", "text\n", "aa\n", "aa,bb\n"),
    ] {
        let bytes = begin.to_owned() + &good.repeat(2000) + bad + &good.repeat(1000) + "\u{0}\"";
        let path = file(&folder, name, bytes);
        let error = Dataset::from_files([&path]).load(&tokenizer()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:2002: ")), "{error}");
    }
}

#[test]
fn json_lines_that_are_no_lines() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["aa", "bb"].map(|text| format!("{{\n \"text\": \"{text}\"\n}}"));
    for (name, bytes, lines) in [
        ("a.jsonl", format!("\n[{one},\n{two}]\n"), [2, 5]),
        ("b.jsonl", format!("[{}, {}]", one.replace('\n', ""), two.replace('\n', "")), [1, 1]),
        ("c.jsonl", format!("{one}\n\n{two}\n"), [1, 5]),
        ("c.json", format!("{one}{two}"), [1, 3]),
        ("d.jsonl", format!("{{\n\"data\": [{one},\n{two}]}}\n"), [2, 5]),
    ] {
        let path = file(&folder, name, bytes);
        let data = Dataset::from_files([&path]).load(&tokenizer()).unwrap();
        let found = [0, 1].map(|index| data.source(index));
        assert_eq!(found, lines.map(|line| format!("{}:{line}", path.display())));
        assert_eq!(previews(&data), ["a«a<|im_end|>»", "b«b<|im_end|>»"], "{name}");
    }
}

/// A pipe would be waited for, a device read without end.
#[test]
#[cfg(unix)]
fn only_files_are_read() {
    use std::{os::unix::fs::symlink, process::Command};

    let folder = tempfile::tempdir().unwrap();
    for kind in ["jsonl", "json", "csv", "parquet"] {
        let pipe = folder.path().join(format!("pipe.{kind}"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let device = folder.path().join(format!("device.{kind}"));
        symlink("/dev/zero", &device).unwrap();
        for path in [pipe, device, folder.path().to_owned()] {
            let error = Dataset::from_files([&path]).load(&tokenizer()).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
