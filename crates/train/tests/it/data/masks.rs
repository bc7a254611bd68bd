//! Which tokens are trained on, exactly.

use super::{error, preview, preview_of, tokenizer, tokenizer_with};
use burn_lora_text::ChatTemplate;
use burn_lora_train::data::{Dataset, TrainOn};
use serde_json::{Value, json};

fn plain(prompt: &str, completion: &str) -> (Vec<u32>, Vec<bool>) {
    let record = json!({"prompt": prompt, "completion": completion});
    let sample = Dataset::from_records([record]).load(&tokenizer()).unwrap().sample(0);
    (sample.ids, sample.loss_mask)
}

#[test]
fn a_token_belongs_to_where_it_starts() {
    // ` world` is one token, wherever the prompt ends.
    let ids = vec![281, 285, 2];
    assert_eq!(plain("hello", " world"), (ids.clone(), vec![false, true, true]));
    assert_eq!(plain("hello ", "world"), (ids.clone(), vec![false, false, true]));
    assert_eq!(plain("hello wor", "ld"), (ids.clone(), vec![false, false, true]));
    assert_eq!(plain("", "hello world"), (ids.clone(), vec![true, true, true]));
    assert_eq!(plain("hello world", ""), (ids, vec![false, false, true]));
}

#[test]
fn both_bytes_of_a_character_belong_together() {
    // é is two tokens, ü too.
    let (ids, trained) = plain("é", "ü");
    assert_eq!(ids.len(), 5);
    assert_eq!(trained, [false, false, true, true, true]);
}

#[test]
fn the_end_of_a_text_is_not_doubled() {
    assert_eq!(plain("hello", " world<|im_end|>").0, [281, 285, 2]);
    assert_eq!(preview(json!({"text": "hello world<|im_end|>"})), "hello« world<|im_end|>»");
}

#[test]
fn masks_go_by_position_and_not_by_token() {
    // The prompt has the tokens of padding and of the end.
    assert_eq!(
        plain("<|endoftext|><|im_end|>", "<|endoftext|>"),
        (vec![0, 2, 0, 2], vec![false, false, true, true])
    );
}

fn conversation() -> Value {
    json!({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]})
}

fn trained_on(record: Value, train_on: TrainOn) -> String {
    preview_of(Dataset::from_records([record]).train_on(train_on))
}

#[test]
fn parts_of_a_conversation() {
    let last = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
                <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n";
    assert_eq!(trained_on(conversation(), TrainOn::LastTurn), last);
    assert_eq!(trained_on(conversation(), TrainOn::Completion), last);
    assert_eq!(
        trained_on(conversation(), TrainOn::AssistantTurns),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    );
    // Nothing predicts the first token.
    assert_eq!(
        trained_on(conversation(), TrainOn::Everything),
        "<|im_start|>«user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n»"
    );
}

#[test]
fn parts_of_a_prompt_and_a_completion() {
    let record = || json!({"prompt": "hello hello", "completion": " world"});
    assert_eq!(trained_on(record(), TrainOn::LastTurn), "hello hello« world<|im_end|>»");
    let everything = trained_on(record(), TrainOn::Everything);
    assert_eq!(everything, "hello« hello world<|im_end|>»");
    let messages = json!({
        "prompt": [{"role": "assistant", "content": "a"}],
        "completion": [
            {"role": "assistant", "content": "b"},
            {"role": "tool", "content": "c"},
            {"role": "assistant", "content": "d"},
        ],
    });
    assert_eq!(
        trained_on(messages.clone(), TrainOn::Completion),
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>tool\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    );
    assert_eq!(
        trained_on(messages, TrainOn::AssistantTurns),
        "<|im_start|>assistant\n«a<|im_end|>»\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>tool\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    );
}

#[test]
fn plain_text_has_no_parts() {
    let record = json!({"text": "hello world"});
    let data = Dataset::from_records([record]).train_on(TrainOn::Completion);
    assert_eq!(
        error(data),
        "`train_on` is Completion: the examples are plain text, which has no such part: use \
         `Everything`"
    );
}

#[test]
fn messages_say_whether_they_are_trained_on() {
    let flags = [
        (json!({"train": false}), json!({})),
        (json!({"weight": 0}), json!({"weight": 1})),
        (json!({"weight": 0.0}), json!({"training": true})),
    ];
    for (first, last) in flags {
        let mut record = conversation();
        let set = |message: &mut Value, flag: Value| {
            message.as_object_mut().unwrap().extend(flag.as_object().unwrap().clone());
        };
        set(&mut record["messages"][1], first.clone());
        set(&mut record["messages"][3], last.clone());
        let expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
                        <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n";
        assert_eq!(preview(record), expected, "{first} {last}");
    }
    // Also against the choice for all.
    let mut record = conversation();
    record["messages"][1]["train"] = true.into();
    record["messages"][3]["train"] = false.into();
    record["messages"][0]["train"] = false.into();
    assert_eq!(
        trained_on(record.clone(), TrainOn::LastTurn),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
    );
    record["messages"][0]["train"] = Value::Null;
    assert_eq!(
        trained_on(record, TrainOn::Everything),
        "<|im_start|>«user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n»d<|im_end|>«\n»"
    );
}

#[test]
fn only_the_assistant_can_be_chosen_message_by_message() {
    for (message, flag, train_on) in
        [(0, true, TrainOn::AssistantTurns), (2, false, TrainOn::Everything)]
    {
        let mut record = conversation();
        record["messages"][message]["train"] = flag.into();
        let data = Dataset::from_records([record]).train_on(train_on);
        assert!(error(data).starts_with("records:1: a message of role `user` says for itself"));
    }
}

/// A tokenizer that begins texts with a token, here `<|endoftext|>`.
fn with_bos(template: &str) -> burn_lora_text::Tokenizer {
    let mut tokenizer = tokenizer_with(json!({
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "add_bos_token": true,
    }));
    tokenizer.set_chat_template(ChatTemplate::new(template).unwrap());
    tokenizer
}

#[test]
fn what_begins_a_text_is_there_once() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{% generation %}\
                    {{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}";
    let tokenizer = with_bos(template);
    let load = |record| Dataset::from_records([record]).load(&tokenizer).unwrap().sample(0);
    let sample = load(json!({"prompt": "hello", "completion": " world"}));
    assert_eq!(sample.ids, [0, 281, 285, 2]);
    assert_eq!(sample.loss_mask, [false, false, true, true]);
    // Written in the text.
    let sample = load(json!({"prompt": "<|endoftext|>hello", "completion": " world"}));
    assert_eq!(sample.ids, [0, 281, 285, 2]);
    assert_eq!(sample.loss_mask, [false, false, true, true]);
    let sample = load(json!({"text": "<|endoftext|>hello"}));
    assert_eq!(sample.ids, [0, 281, 2]);
    // Written by the template.
    let sample = load(json!({"messages": [{"role": "assistant", "content": "hello"}]}));
    assert_eq!(sample.ids[0], 0);
    assert_ne!(sample.ids[1], 0);
    assert_eq!(sample.ids[sample.ids.len() - 2..], [281, 2]);
    assert_eq!(sample.target_count(), 2);
}

#[test]
fn a_tokenizer_that_ends_texts_does_so_once() {
    let tokenizer = tokenizer_with(json!({
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "add_bos_token": true,
        "add_eos_token": true,
    }));
    for text in ["hello world", "hello world<|im_end|>"] {
        let data = Dataset::from_records([json!({"text": text})]).load(&tokenizer).unwrap();
        assert_eq!(data.sample(0).ids, [0, 281, 285, 2]);
    }
}
