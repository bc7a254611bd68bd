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
    tokenizer.set_chat_template(burn_lora_llama::ChatTemplate::new(template).unwrap());
    // A null is what Parquet has where other messages have tool calls.
    let record = json!({
        "messages": [
            {"role": "assistant", "content": "b", "name": "x", "tool_calls": null, "weight": 1},
        ],
        "tools": [{"name": "clock"}],
    });
    let options = burn_lora_llama::ChatOptions::new().variable("day", "1 May");
    let data = Dataset::from_records([record]).chat_options(options).load(&tokenizer).unwrap();
    assert_eq!(previews(&data), ["assistantxFalseFalseFalse:«b»clock1 May"]);
}
