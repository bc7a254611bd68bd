//! Training data as text: JSON lines, JSON, CSV.

use crate::{folder, tokenizer};
use burn_lora::{
    prelude::*,
    train::data::{OnError, TrainOn, Truncation},
};

/// The first byte says how the rest is read.
pub(crate) fn run(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let bit = |place: u8| how >> place & 1 == 1;
    let name = ["data.jsonl", "data.json", "data.csv", "data.jsonl"][usize::from(how % 4)];
    let folder = folder("data", &[(name, data)]);
    let mut builder = Dataset::from_files([folder.join(name)])
        .on_error(if bit(2) { OnError::Fail } else { OnError::Skip })
        .on_empty(OnError::Skip)
        .apply_chat_template(bit(3))
        .temp_dir(&folder);
    if bit(4) {
        builder = builder.max_length(8).truncation(Truncation::KeepEnd);
    }
    if bit(5) {
        builder = builder.train_on(if bit(6) { TrainOn::LastTurn } else { TrainOn::Everything });
    }
    let Ok(data) = builder.load(tokenizer()) else { return };
    let config = BatchConfig { size: 2, group_by_length: bit(7), ..BatchConfig::default() };
    let _ = data.report().to_string();
    for index in 0..data.len() {
        assert!(data.sample(index).target_count() > 0);
        let _ = data.preview(index, tokenizer(), true);
    }
    for rows in data.epoch(&config, 0).into_iter().flatten() {
        data.batch(&rows, &config);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let messages = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user",
        "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "hello",
        "train": false, "weight": 1, "reasoning_content": "x"}, {"role": "assistant", "content": null,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "1"}, {"role": "assistant", "content": "\ud83d\ude42"}],
        "tools": [{"type": "function", "function": {"name": "f"}}]}"#;
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
    let messages = one_line(messages);
    let others = [
        r#"{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}"#,
        r#"{"prompt": "2 + 2 =", "completion": " 4"}"#,
        r#"{"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yes"}]}"#,
        r#"{"instruction": "Add", "input": "2 and 2", "output": "4", "system": "x", "history": [["a", "b"]]}"#,
        r#"{"text": "Two and two", "n": [1, 2.5e3, null, true, {"a": {}}]}"#,
    ];
    let lines = |how: u8, text: String| [&[how], text.as_bytes()].concat();
    let mut all = vec![lines(0b0000, messages.repeat(2)), lines(0b11_0000, messages.clone())];
    all.extend(others.map(|other| lines(0b1_0100, format!("{other}\n{other}\n"))));
    all.extend(others.map(|other| lines(0b1001, format!("{{\"data\": [{other}, {other}]}}"))));
    all.push(lines(0b1001, format!("[{messages}]")));
    let csv = "prompt,completion,\"other\"\n\"a, \"\"b\"\"\",c,\r\nd,\"e\nf\",1\n";
    all.push(lines(0b0010, csv.into()));
    all.push(lines(0b1_0010, "\u{feff}instruction;output\nadd;4\n".into()));
    all.push(lines(0b110_0010, "text\nhello\nworld\n".into()));
    all
}
