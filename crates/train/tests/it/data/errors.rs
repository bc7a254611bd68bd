//! What is wrong with data, by file and line.

use super::{error, file, parquet_of, previews, tokenizer, tokenizer_with};
use burn_lora_train::{
    TrainError,
    data::{Dataset, Format, OnError, TrainOn},
};
use serde_json::{Value, json};

/// What is wrong with a file of these bytes.
fn wrong(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let folder = tempfile::tempdir().unwrap();
    error(Dataset::from_files([file(&folder, name, bytes)]))
}

/// What is wrong with a record.
fn wrong_record(record: Value) -> String {
    error(Dataset::from_records([record]))
}

const GOOD: &str = "{\"text\": \"aa\"}\n";

#[test]
fn json_lines() {
    assert_eq!(
        wrong("a.jsonl", format!("{GOOD}{{\"text\": 1 2}}\n{GOOD}")),
        "a.jsonl:2: not JSON: expected `,` or `}` at column 12"
    );
    assert_eq!(
        wrong("a.jsonl", format!("{GOOD}\n{{\"text\": \"b")),
        "a.jsonl:3: not JSON: EOF while parsing a string at column 11"
    );
    assert_eq!(
        wrong("a.jsonl", format!("{GOOD}[1]\n")),
        "a.jsonl:2: a list where an object with columns was expected"
    );
    assert_eq!(
        wrong("a.jsonl", [GOOD.as_bytes(), b"{\"text\": \"\xff\"}\n"].concat()),
        "a.jsonl:2: not UTF-8: invalid utf-8 sequence of 1 bytes from index 10"
    );
}

#[test]
fn json() {
    assert_eq!(
        wrong("a.json", format!("[{GOOD},\n{{\"text\": }}]")),
        "a.json:3: not the JSON expected: expected value at line 3 column 10"
    );
    assert_eq!(
        wrong("a.json", format!("[{GOOD}")),
        "a.json:2: not the JSON expected: EOF while parsing a list at line 2 column 0"
    );
    assert_eq!(
        wrong("a.json", format!("[{GOOD}] 1")),
        "a.json:2: not the JSON expected: trailing characters at line 2 column 3"
    );
    assert_eq!(
        wrong("a.json", format!("[{GOOD},\n\n7]")),
        "a.json:4: a number where an object with columns was expected"
    );
    assert!(wrong("a.json", "7").starts_with("a.json:1: not the JSON expected: invalid type"));
    let data = wrong("a.json", r#"{"data": [{"text": "aa"}], "data": [{"text": "aa"}]}"#);
    assert!(data.contains("`data` is there twice"), "{data}");
    let data = wrong("a.json", r#"{"data": 7}"#);
    assert!(data.contains("invalid type: integer `7`, expected a list of examples"), "{data}");
    assert!(wrong("a.json", b"[{\"text\": \"\xff\"}]").starts_with("a.json:1: not the JSON"));
    assert!(wrong("a.json", "[".repeat(1000)).contains("recursion limit"));
}

#[test]
fn csv() {
    assert_eq!(
        wrong("a.csv", "prompt,completion\na,b\na\n"),
        "a.csv:3: 1 fields, but the header has 2"
    );
    assert_eq!(
        wrong("a.csv", "prompt,completion\na,b,c\na,b\n"),
        "a.csv:2: 3 fields, but the header has 2"
    );
    assert_eq!(wrong("a.csv", b"text\naa\n\xff\n"), "a.csv:3: field 1 is not UTF-8");
    assert_eq!(wrong("a.csv", b"\xff\naa\n"), "a.csv:1: field 1 is not UTF-8");
    assert_eq!(
        wrong("a.csv", "text,text\na,b\n"),
        "a.csv:1: two columns of the header are named `text`"
    );
}

#[test]
fn a_quote_that_never_closes() {
    let reason = "a quote in this record never closes: the rest of the file would be part of one field. \
                  Within quotes a quote is written twice";
    for (bytes, line) in [
        ("prompt,completion\na,b\na,\"b\na,b\na,b\n", 3),
        ("prompt,completion\na,\"b", 2),
        ("prompt,completion\na,b\n\"a,b\n\"\"a,b\n", 3),
        ("prompt,\"completion\na,b\n", 1),
    ] {
        assert_eq!(wrong("a.csv", bytes), format!("a.csv:{line}: {reason}"));
    }
    // One within a field is text.
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "a.csv", "prompt,completion\n5\" disk,a\n\"a\nb\",\"c \"\"d\"\"\"");
    assert_eq!(Dataset::from_files([path]).load(&tokenizer()).unwrap().len(), 2);
}

#[test]
fn text_in_another_encoding() {
    let utf16 = [0xff, 0xfe, b'{', 0, b'}', 0];
    for name in ["a.jsonl", "a.json", "a.csv"] {
        assert_eq!(wrong(name, utf16), format!("{name}: it is UTF-16: save it as UTF-8"));
    }
    for half in ["\\ud83d", "\\ud83d!", "\\ude00"] {
        let error = wrong("a.jsonl", format!("{GOOD}{{\"text\": \"{half}\"}}\n"));
        assert!(
            error.starts_with("a.jsonl:2: not JSON: ") && error.contains("surrogate"),
            "{error}"
        );
    }
}

#[test]
fn tokens_that_the_model_does_not_have() {
    let data =
        Dataset::from_records(["hello", "<|im_end|> world"].map(|text| json!({"text": text})));
    let data = data.load(&tokenizer()).unwrap();
    assert!(data.check_vocabulary(286).is_ok());
    assert_eq!(
        data.check_vocabulary(285).unwrap_err().to_string(),
        "records:2: token 285, `Ġworld`, is not in the vocabulary of the model, whose embedding has \
         285 rows: take the model's own tokenizer, or resize the model's embedding"
    );
    assert!(data.take(1).check_vocabulary(285).is_ok());
}

#[test]
fn tokens_are_compared_with_the_model_before_the_first_step() {
    use crate::common::{device, golden, loader};
    use burn_lora_adapter::{AdaptableExt, LoraConfig};
    use burn_lora_train::{BatchConfig, TrainConfig, Trainer, data::Sample, evaluate};

    let sample = |id: u32| Sample { ids: vec![1, id], loss_mask: vec![true; 2] };
    let good = Dataset::from_samples([sample(127)]).unwrap();
    let bad = Dataset::from_samples([sample(127), sample(128)]).unwrap();
    let model = loader(&golden("gqa")).load(&device()).unwrap();
    let mut model = model.with_adapter(&LoraConfig::new(2, 4).all_linear()).unwrap();
    let found = evaluate(&model, &bad, &BatchConfig::default()).unwrap_err().to_string();
    let begin =
        "samples:2: token 128 is not in the vocabulary of the model, whose embedding has 128 rows";
    assert!(found.starts_with(begin), "{found}");
    for (train, valid) in [(&bad, None), (&good, Some(&bad))] {
        let trainer = Trainer::new(TrainConfig::new(1e-3));
        let found = trainer.fit(&mut model, train, valid).unwrap_err().to_string();
        assert!(found.starts_with(begin), "{found}");
    }
}

#[test]
fn control_characters_of_names_are_escaped() {
    let error = wrong_record(json!({"a\u{1b}[2J\r": "a"}));
    assert!(error.contains("`a\\u{1b}[2J\\r`"), "{error}");
}

#[test]
fn parquet() {
    let whole = parquet_of(&[("text", &["aa", "bb"])]);
    for length in [0, 3, 20, whole.len() / 2, whole.len() - 1] {
        let error = wrong("a.parquet", &whole[..length]);
        assert!(error.starts_with("a.parquet: not a Parquet file, or cut off: "), "{error}");
    }
    let error = wrong("a.parquet", parquet_of(&[("other", &["aa"])]));
    assert!(error.starts_with("a.parquet:1: no known format has these columns (`other`)"));
    assert_eq!(
        wrong("a.parquet", parquet_of(&[("prompt", &["aa", "bb"]), ("messages", &["[", "[]"])])),
        "a.parquet:1: `messages` is text, but not that of a JSON list: EOF while parsing a list at \
         line 1 column 1"
    );
}

#[test]
fn files_without_examples() {
    for (name, bytes) in [
        ("a.jsonl", vec![]),
        ("a.jsonl", b"\n\n".to_vec()),
        ("a.json", b"[]".to_vec()),
        ("a.json", br#"{"data": []}"#.to_vec()),
        ("a.csv", vec![]),
        ("a.csv", b"text\n".to_vec()),
        ("a.parquet", parquet_of(&[("text", &[])])),
    ] {
        assert_eq!(wrong(name, bytes), format!("{name}: no examples in this file"));
    }
    assert!(wrong("a.json", "").starts_with("a.json:1: not the JSON expected: EOF"));
    assert!(wrong("a.txt", "aa").starts_with("a.txt: an unknown kind of file: .json, "));
    assert!(wrong("a", "aa").starts_with("a: an unknown kind of file"));
    assert_eq!(error(Dataset::from_records([Value::Null; 0])), "records: no examples");
    for name in ["none.jsonl", "none.json", "none.csv", "none.parquet"] {
        let error = Dataset::from_files([name]).load(&tokenizer()).unwrap_err();
        assert!(matches!(error, TrainError::Io { .. }), "{error}");
    }
}

#[test]
fn columns() {
    assert_eq!(
        wrong_record(json!({"question": "a", "answer": "b"})),
        "records:1: no known format has these columns (`answer`, `question`). Known are `messages`, \
         `conversations`, `prompt` and `completion`, `chosen` and `rejected`, `instruction` and `output`, \
         `tokens` and `ner_tags`, and `text`; other names can be mapped to these by `column`"
    );
    let data = [json!({"prompt": "a", "completion": "b"}), json!({"prompt": "a", "answer": "b"})];
    assert_eq!(
        error(Dataset::from_records(data)),
        "records:2: no column `completion` (there: `answer`, `prompt`)"
    );
    let data = Dataset::from_records([json!({"text": "a"})]).format(Format::Messages);
    assert_eq!(error(data), "records:1: no column `messages` (there: `text`)");
    let data = Dataset::from_records([json!({"text": "a"})]).column("txt", "text");
    assert!(
        error(data).starts_with("`column` is txt: no format reads such a column; known: text, ")
    );
}

#[test]
fn types() {
    for (record, reason) in [
        (json!({"text": 1}), "`text` is a number, but must be text"),
        (json!({"text": null}), "`text` is null, but must be text"),
        (
            json!({"prompt": "a", "completion": [{"role": "user", "content": "a"}]}),
            "`completion` is a list, but must be text; both are text, or both are lists of messages",
        ),
        (
            json!({"instruction": "a", "input": {}, "output": "b"}),
            "`input` is an object, but must be text",
        ),
        (json!({"messages": true}), "`messages` is a boolean, but must be a list"),
        (json!({"messages": []}), "`messages` has no messages"),
        (json!({"prompt": [], "completion": []}), "`prompt` has no messages"),
        (
            json!({"messages": ["a"]}),
            "`messages`, message 1: text where an object with columns was expected",
        ),
        (
            json!({"messages": [{"content": "a"}]}),
            "`messages`, message 1: it has no `role` (or `from`)",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}),
            "`messages`, message 2: it has no `content` (or `value`)",
        ),
        (
            json!({"messages": [{"role": 1, "content": "a"}]}),
            "`messages`, message 1: its role is a number, but must be text",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": 1}]}),
            "`messages`, message 1: `content` is neither text nor a list of parts with a type",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}),
            "`messages`, message 1: `weight` is 0.5, but must be true, false, 1 or 0",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "a"}], "tools": 1}),
            "`tools` is a number, but must be a list",
        ),
    ] {
        assert_eq!(wrong_record(record), format!("records:1: {reason}"));
    }
}

#[test]
fn an_unknown_role() {
    let record = json!({"conversations": [{"from": "humann", "value": "a"}]});
    assert_eq!(
        wrong_record(record),
        "records:1: `conversations`, message 1: unknown role `humann` (known: assistant, bot, \
         chatgpt, developer, environment, function, gpt, human, ipython, model, observation, \
         system, tool, user): map it to one of these by `role`"
    );
}

#[test]
fn nothing_to_train_on() {
    let user = json!({"messages": [{"role": "user", "content": "a"}]});
    let reason = "records:1: none of its 6 tokens is one to train on";
    assert_eq!(wrong_record(user.clone()), reason);
    let data = Dataset::from_records([user.clone()]).on_error(OnError::Skip);
    assert_eq!(error(data), reason, "it is no malformed example");
    let data = Dataset::from_records([user]).on_empty(OnError::Skip);
    assert_eq!(
        error(data),
        format!(
            "records: no examples are left\n0 examples, 0 tokens, 0 (0.0%) of them trained on\n\
             longest 0 tokens, mean 0.0\nleft out: 1 (0 too long, 0 malformed, 1 with nothing to \
             train on); the first: {reason}"
        )
    );
    let mut tokenizer = tokenizer();
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}\
                    {% endgeneration %}";
    tokenizer.set_chat_template(burn_lora_text::ChatTemplate::new(template).unwrap());
    let empty = json!({"messages": [{"role": "assistant", "content": ""}]});
    for train_on in [TrainOn::AssistantTurns, TrainOn::Everything] {
        let data = Dataset::from_records([empty.clone()]).train_on(train_on);
        let error = data.load(&tokenizer).unwrap_err().to_string();
        assert_eq!(error, "records:1: none of its 0 tokens is one to train on");
    }
}

#[test]
fn no_template() {
    let tokenizer = tokenizer_with(json!({"eos_token": "<|im_end|>"}));
    let records = [
        json!({"prompt": "a", "completion": "b"}),
        json!({
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "a"}],
        }),
    ];
    // Skipping would leave out all conversations.
    let data = Dataset::from_records(records).on_error(OnError::Skip).on_empty(OnError::Skip);
    assert_eq!(
        data.load(&tokenizer).unwrap_err().to_string(),
        "records:2: messages need a chat template, and the tokenizer has none: give it one by \
         `set_chat_template`, or use `prompt` and `completion` as text"
    );
}

#[test]
fn a_template_that_refuses() {
    let mut tokenizer = tokenizer();
    let template = "{{ raise_exception('no ' + messages[0].role) }}";
    tokenizer.set_chat_template(burn_lora_text::ChatTemplate::new(template).unwrap());
    let data = Dataset::from_records([json!({"messages": [{"role": "tool", "content": "a"}]})]);
    let error = data.load(&tokenizer).unwrap_err().to_string();
    assert!(error.starts_with("records:1: ") && error.contains("no tool"), "{error}");
}

#[test]
fn wrong_lines_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [b"{\"text\": 1}\n{\n\"\xff\"\n".as_slice(), GOOD.as_bytes(), b"[]\n"].concat();
    let files = [
        file(&folder, "a.jsonl", lines),
        file(&folder, "a.json", format!("[7, {GOOD}, {{}}, {{\"text\": []}}]")),
        file(&folder, "a.csv", b"text\n\xff\naa,bb\naa\n"),
    ];
    let data = Dataset::from_files(&files).on_error(OnError::Skip).load(&tokenizer()).unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(previews(&data), ["a«a<|im_end|>»"; 3]);
    let report = data.report();
    assert_eq!((report.malformed, report.left_out()), (9, 9));
    let first = report.first_left_out.unwrap();
    assert!(first.ends_with("a.jsonl:1: `text` is a number, but must be text"), "{first}");
    // What follows cannot be told.
    let broken = file(&folder, "b.json", format!("[{GOOD}, {{]"));
    let error = error(Dataset::from_files([broken]).on_error(OnError::Skip));
    assert!(error.starts_with("b.json:2: not the JSON expected"), "{error}");
}

#[test]
fn the_first_wrong_line_is_named() {
    // The line that ends the file is not reached before the others are tokenized.
    let bytes = format!("[{GOOD},{{\"text\": 1}},{{");
    assert_eq!(wrong("a.json", bytes), "a.json:2: `text` is a number, but must be text");
}

#[test]
fn a_folder_for_the_tokens_that_is_not_there() {
    let data = Dataset::from_records([json!({"text": "aa"})]).temp_dir("/none/at/all");
    let error = data.load(&tokenizer()).unwrap_err();
    assert!(matches!(error, TrainError::Io { .. }), "{error}");
}
