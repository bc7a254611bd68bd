//! Each format: its columns, its text, and what of it is trained on by default.

use super::{preview, preview_of, previews, tokenizer};
use burn_lora_train::data::{Dataset, Format};
use serde_json::json;

#[test]
fn text_is_trained_on_whole() {
    assert_eq!(preview(json!({"text": "hello world"})), "hello« world<|im_end|>»");
}

#[test]
fn prompt_and_completion_are_joined_as_they_are() {
    let record = json!({"prompt": "hello", "completion": " world"});
    assert_eq!(preview(record), "hello« world<|im_end|>»");
}

#[test]
fn prompt_and_completion_of_messages_train_on_the_completion() {
    let record = json!({
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "completion": [{"role": "assistant", "content": "d"}],
    });
    assert_eq!(
        preview(record),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    );
}

#[test]
fn messages_train_on_each_turn_of_the_assistant() {
    let record = json!({"messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]});
    assert_eq!(
        preview(record),
        "<|im_start|>system\ns<|im_end|>\n\
         <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    );
}

#[test]
fn share_gpt_has_other_names_for_roles() {
    let record = json!({"conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
        {"from": "tool", "value": "c"},
        {"from": "assistant", "value": "d"},
        {"from": "user", "value": "e"},
    ]});
    assert_eq!(
        preview(record),
        "<|im_start|>system\ns<|im_end|>\n\
         <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>tool\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n\
         <|im_start|>user\ne<|im_end|>\n"
    );
}

#[test]
fn alpaca_has_the_wording_of_its_data_set() {
    let with_input = json!({"instruction": "add", "input": "1 2", "output": "3"});
    assert_eq!(
        preview(with_input),
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
         add\n\n### Input:\n1 2\n\n### Response:\n«3<|im_end|>»"
    );
    let without = "Below is an instruction that describes a task. Write a response that \
                   appropriately completes the request.\n\n### Instruction:\nadd\n\n\
                   ### Response:\n«3<|im_end|>»";
    for record in [
        json!({"instruction": "add", "input": "", "output": "3"}),
        json!({"instruction": "add", "input": null, "output": "3"}),
        json!({"instruction": "add", "output": "3"}),
    ] {
        assert_eq!(preview(record), without);
    }
}

#[test]
fn text_can_go_through_the_template() {
    let chat = |record| preview_of(Dataset::from_records([record]).apply_chat_template(true));
    assert_eq!(
        chat(json!({"prompt": "a", "completion": "b"})),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
    );
    assert_eq!(
        chat(json!({"instruction": "add", "input": "1 2", "output": "3"})),
        "<|im_start|>user\nadd\n\n1 2<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»\n"
    );
    assert_eq!(
        chat(json!({"instruction": "add", "output": "3"})),
        "<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»\n"
    );
}

#[test]
fn the_richest_format_is_detected() {
    // Stanford's data has a `text` too, and UltraChat a `prompt`.
    let alpaca = json!({"instruction": "add", "input": "", "output": "3", "text": "no"});
    assert!(preview(alpaca).ends_with("### Response:\n«3<|im_end|>»"));
    let chat = json!({"prompt": "no", "completion": "no", "messages": [
        {"role": "assistant", "content": "b"},
    ]});
    assert_eq!(preview(chat), "<|im_start|>assistant\n«b<|im_end|>»\n");
    let text = json!({"instruction": "add", "output": "3", "text": "hello world"});
    let data = Dataset::from_records([text]).format(Format::Text);
    assert_eq!(preview_of(data), "hello« world<|im_end|>»");
}

#[test]
fn columns_are_mapped() {
    let record = json!({"q": "hello", "a": " world"});
    let data = Dataset::from_records([record]).column("prompt", "q").column("completion", "a");
    assert_eq!(preview_of(data), "hello« world<|im_end|>»");
    // Names that are swapped.
    let record = json!({"completion": "hello", "prompt": " world"});
    let data = Dataset::from_records([record]);
    let data = data.column("prompt", "completion").column("completion", "prompt");
    assert_eq!(preview_of(data), "hello« world<|im_end|>»");
}

#[test]
fn roles_are_mapped() {
    let record = json!({"messages": [
        {"role": "critic", "content": "a"},
        {"role": "bard", "content": "b"},
    ]});
    let data = Dataset::from_records([record]).role("critic", "critic").role("bard", "assistant");
    assert_eq!(
        preview_of(data),
        "<|im_start|>critic\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
    );
}

#[test]
fn fields_of_messages_reach_the_template() {
    let mut tokenizer = tokenizer();
    let template = "{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.tool_calls is defined }}\
                    {{ m.train is defined }}{{ m.weight is defined }}:\
                    {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\
                    {{ tools[0].name }}{{ day }}";
    tokenizer.set_chat_template(burn_lora_text::ChatTemplate::new(template).unwrap());
    // A null is what Parquet has where other messages have tool calls.
    let record = json!({
        "messages": [
            {"role": "assistant", "content": "b", "name": "x", "tool_calls": null, "weight": 1},
        ],
        "tools": [{"name": "clock"}],
    });
    let options = burn_lora_text::ChatOptions::new().variable("day", "1 May");
    let data = Dataset::from_records([record]).chat_options(options).load(&tokenizer).unwrap();
    assert_eq!(previews(&data), ["assistantxFalseFalseFalse:«b»clock1 May"]);
}

#[test]
fn keys_of_messages_and_tools_keep_the_order_of_the_file() {
    let mut tokenizer = tokenizer();
    let template =
        "{{ tools | tojson }}{{ messages | tojson }}{% generation %}x{% endgeneration %}";
    tokenizer.set_chat_template(burn_lora_text::ChatTemplate::new(template).unwrap());
    let tools = r#"[{"z": {"b": 1, "a": [{"y": 1.0, "x": null}]}}]"#;
    let messages = r#"[{"name": "n", "role": "assistant", "tool_calls": [{"b": "", "a": ""}], "content": ""}]"#;
    let folder = tempfile::tempdir().unwrap();
    let jsonl = format!(r#"{{"messages": {messages}, "tools": {tools}}}"#);
    let text = format!(r#"{{"tools": {}, "messages": {messages}}}"#, json!(tools));
    for (name, text) in [("a.jsonl", &jsonl), ("b.json", &format!("[{text}]"))] {
        let path = super::file(&folder, name, text);
        let data = Dataset::from_files([path]).load(&tokenizer).unwrap();
        let found = data.preview(0, &tokenizer, false).unwrap();
        assert_eq!(found, format!("{tools}{messages}«x»"), "{name}");
    }
}

#[test]
fn fields_that_a_table_fills_in_are_not_there() {
    let mut tokenizer = tokenizer();
    let template = "{% for m in messages %}{{ m.content | tojson }}{% generation %}x\
                    {% endgeneration %}{% endfor %}";
    tokenizer.set_chat_template(burn_lora_text::ChatTemplate::new(template).unwrap());
    // Parts of content, of which one has a text and the other a name.
    let schema = "message rows { optional group messages (LIST) { repeated group list {
        optional group element { optional binary role (STRING);
            optional group content (LIST) { repeated group list { optional group element {
                optional binary text (STRING); optional binary name (STRING);
    } } } } } } }";
    let column = |text: &str, definitions: &[i16], repetitions: &[i16]| {
        let values = text.split(' ').map(Into::into).collect();
        (values, Some((definitions.to_vec(), repetitions.to_vec())))
    };
    let bytes = super::parquet_file(
        schema,
        &[
            column("assistant", &[4], &[0]),
            column("one", &[7, 6], &[0, 2]),
            column("two", &[6, 7], &[0, 2]),
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    let path = super::file(&folder, "a.parquet", bytes);
    let data = Dataset::from_files([path]).load(&tokenizer).unwrap();
    let found = data.preview(0, &tokenizer, false).unwrap();
    assert_eq!(found, r#"[{"text": "one"}, {"name": "two"}]«x»"#);
}

#[test]
fn content_that_is_no_text_is_refused() {
    let record = |content: serde_json::Value| json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]});
    for kind in ["image", "image_url", "input_audio", "video"] {
        let found = super::error(Dataset::from_records([record(json!([{"type": kind}]))]));
        assert!(found.contains(&format!("a part of type `{kind}`: only text is read")), "{found}");
    }
    let found = super::error(Dataset::from_records([record(json!(3))]));
    assert!(found.contains("`content` is neither"), "{found}");
}
