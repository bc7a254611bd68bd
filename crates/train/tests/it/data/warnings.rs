//! What is odd about data is said once a file, with the line of the first.

use super::{error, file, previews, tokenizer, tokenizer_with};
use burn_lora_io::collect;
use burn_lora_text::{ChatTemplate, Tokenizer};
use burn_lora_train::data::{Dataset, DatasetBuilder, TrainOn};
use serde_json::{Value, json};

/// The warnings of loading records, without where they are.
fn warnings_of(data: DatasetBuilder, tokenizer: &Tokenizer) -> Vec<String> {
    collect(|| data.load(tokenizer).unwrap()).1
}

fn warnings(records: impl IntoIterator<Item = Value>) -> Vec<String> {
    warnings_of(Dataset::from_records(records), &tokenizer())
}

/// One warning, which begins and goes on so.
fn one(warnings: &[String], begin: &str, part: &str) {
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with(begin) && warnings[0].contains(part), "{warnings:?}");
}

fn chat(answer: &str) -> Value {
    json!({"messages": [
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": answer},
    ]})
}

fn with_template(template: &str) -> Tokenizer {
    let mut tokenizer = tokenizer();
    tokenizer.set_chat_template(ChatTemplate::new(template).unwrap());
    tokenizer
}

#[test]
fn nothing_is_said_of_good_data() {
    assert!(warnings([chat("world"), chat("hello")]).is_empty());
    assert!(warnings([json!({"prompt": "hello", "completion": " world"})]).is_empty());
    assert!(warnings([json!({"text": "hello world", "meta": null})]).is_empty());
}

#[test]
fn columns_that_are_not_used() {
    let record =
        |id: u32| json!({"text": "hello world", "id": id, "so\u{7}urce": "x", "empty": null});
    let found = warnings([record(1), record(2)]);
    one(&found, "records: these columns are not used: `id`, `so\\u{7}urce`. ", "`column`");
    // Once a file.
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.csv", "b.csv"].map(|name| file(&folder, name, "text,id\nhello world,1\n"));
    assert_eq!(warnings_of(Dataset::from_files(paths), &tokenizer()).len(), 2);
    // A file that is named twice.
    let path = file(&folder, "c.csv", "text\nhello world\n");
    let found = warnings_of(Dataset::from_files([&path, &path]), &tokenizer());
    one(&found, &path.display().to_string(), "named twice");
    // Where others are mapped from.
    let data = Dataset::from_records([json!({"text": "hello world"})]).column("tools", "functions");
    one(&warnings_of(data, &tokenizer()), "records: no example has these columns", "`functions`");
}

#[test]
fn instructions_and_earlier_turns_in_columns_of_their_own() {
    let conversation = json!({
        "conversations": [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "me"}],
        "system": "Be brief.", "tools": "[]",
    });
    let (data, warned) =
        collect(|| Dataset::from_records([conversation.clone()]).load(&tokenizer()));
    assert!(warned.is_empty(), "{warned:?}");
    assert_eq!(
        previews(&data.unwrap()),
        ["<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n\
          <|im_start|>assistant\n«me<|im_end|>»\n"]
    );
    let mut twice = conversation;
    twice["conversations"][0]["from"] = "system".into();
    let found = error(Dataset::from_records([twice]));
    assert!(
        found.starts_with("records:1: its column `system` says other than its first"),
        "{found}"
    );

    let alpaca = json!({
        "instruction": "and three?", "output": "six", "system": "You double.",
        "history": [["two?", "four"]],
    });
    let data = Dataset::from_records([alpaca.clone()]).apply_chat_template(true);
    let (data, warned) = collect(|| data.load(&tokenizer()));
    assert!(warned.is_empty(), "{warned:?}");
    assert_eq!(
        previews(&data.unwrap()),
        ["<|im_start|>system\nYou double.<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n\
          <|im_start|>assistant\nfour<|im_end|>\n<|im_start|>user\nand three?<|im_end|>\n\
          <|im_start|>assistant\n«six<|im_end|>»\n"]
    );
    // Without messages there is no place for them.
    let begin = "records: these columns are not used: `history`, `system`. ";
    one(&warnings([alpaca.clone()]), begin, "`apply_chat_template`");
    let mut wrong = alpaca;
    wrong["history"] = json!([["two?"]]);
    let found = error(Dataset::from_records([wrong]).apply_chat_template(true));
    assert!(found.starts_with("records:1: `history` must be a list of pairs"), "{found}");
}

#[test]
fn prompts_that_swallow_the_beginning_of_the_answer() {
    let record =
        |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion});
    let swallowed = record("hello ", "world hello");
    let records = [record("hello", " world"), swallowed.clone(), swallowed];
    one(&warnings(records), "records:2 and 1 more example: ", "begins within a token");
    // The header of a chat template, too.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let data = Dataset::from_records([chat("world hello")]);
    one(&warnings_of(data, &with_template(template)), "records:1: ", "within a token");
    // All of it is trained on.
    let data = Dataset::from_records([record("hello ", "world")]).train_on(TrainOn::Everything);
    assert!(warnings_of(data, &tokenizer()).is_empty());
}

#[test]
fn examples_of_which_only_the_end_is_trained_on() {
    let records = [chat("world"), chat(""), json!({"messages": chat(" ")["messages"]})];
    one(&warnings(records), "records:2: ", "only the end is trained on");
    let record = json!({"prompt": "hello", "completion": ""});
    one(&warnings([record]), "records:1: ", "only the end is trained on");
}

#[test]
fn ends_that_are_not_trained_on() {
    let spelled = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</end>\n{% endfor %}\
                   {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    for template in [spelled, &spelled.replace("</end>", "")] {
        let data = Dataset::from_records([chat("world"), chat("hello")]);
        one(
            &warnings_of(data, &with_template(template)),
            "records:1 and 1 more example: ",
            "learn to stop",
        );
    }
    let tokenizer = tokenizer_with(json!({}));
    let data = Dataset::from_records([json!({"prompt": "hello", "completion": " world"})]);
    one(&warnings_of(data, &tokenizer), "records:1: ", "`eos_token`");
}

#[test]
fn ends_at_which_generation_does_not_stop() {
    let template = "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|im_start|>{% endfor %}\
                    {% if add_generation_prompt %}assistant\n{% endif %}";
    let tokenizer = with_template(template);
    assert_eq!(tokenizer.end_of_turn(), Some(1));
    let folder = tempfile::tempdir().unwrap();
    let load = || Dataset::from_records([chat("world")]).load(&tokenizer).unwrap();
    let (data, warned) = collect(load);
    one(&warned, "records:1: ", "`<|im_start|>` (token 1)");
    data.save_generation_config(folder.path()).unwrap();
    let written = std::fs::read(folder.path().join("generation_config.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    let known = tokenizer.eos_token_ids().iter().copied().chain([1]).collect::<Vec<_>>();
    assert_eq!(written["eos_token_id"], json!(known));
    // Nothing is written where files name it already.
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::from_records([chat("world")]).load(&super::tokenizer()).unwrap();
    data.save_generation_config(folder.path()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_truncation_takes() {
    let record = |prompt: &str| json!({"prompt": prompt, "completion": " world"});
    let data = Dataset::from_records([record("hello"), record("hello world hello")]).max_length(5);
    let found = warnings_of(data, &tokenizer());
    assert!(found[0].starts_with("records:2: "), "{found:?}");
    assert!(found[0].contains("longer than `max_length`, 5 tokens"), "{found:?}");
}

#[test]
fn numbers_that_json_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let line = |number: &str| {
        format!("{{\"instruction\": \"a\", \"input\": {number}, \"output\": \"NaN\"}}\n")
    };
    let (good, bad) = (line("\"b\""), line("NaN"));
    for (name, bytes, at) in [
        ("a.jsonl", format!("{good}{bad}{}", line("-Infinity")), 2),
        ("a.json", format!("{good}{bad}"), 2),
        ("b.json", format!("[{},\n\n{bad}]", good.trim()), 3),
    ] {
        let path = file(&folder, name, bytes);
        let (data, warned) = collect(|| Dataset::from_files([&path]).load(&tokenizer()).unwrap());
        one(&warned, &format!("{}:{at}: NaN or Infinity", path.display()), "null");
        let texts = previews(&data);
        assert!(texts[0].contains("### Input:\nb\n") && texts[0].contains("«NaN"), "{texts:?}");
        assert!(!texts[1].contains("### Input:"), "{texts:?}");
    }
    // Where it is needed it is missing.
    let path = file(&folder, "c.jsonl", "{\"text\": NaN}\n");
    let (found, warned) = collect(|| error(Dataset::from_files([&path])));
    assert_eq!(found, "c.jsonl:1: `text` is null, but must be text");
    one(&warned, &format!("{}:1: NaN", path.display()), "null");
}
