//! The assistant's tokens with templates that mark nothing: each has one trait of published ones.

use crate::common::GOLDEN;
use burn_lora_text::{ChatOptions, ChatTemplate, Message, Tokenizer};

fn tokenizer(template: &str) -> Tokenizer {
    let mut tokenizer = Tokenizer::from_pretrained(GOLDEN).unwrap();
    tokenizer.set_chat_template(ChatTemplate::new(template).unwrap());
    tokenizer
}

/// The text, with the assistant's part in brackets.
fn marked(template: &str, messages: &[Message], wanted: impl Fn(usize) -> bool) -> String {
    let tokenizer = tokenizer(template);
    let chat = tokenizer.encode_turns(messages, &ChatOptions::new(), wanted).unwrap();
    let mut text = String::new();
    let mut rest = 0;
    for (_, turn) in &chat.turns {
        text += &tokenizer.decode(&chat.ids[rest..turn.start], false).unwrap();
        text += &format!("«{}»", tokenizer.decode(&chat.ids[turn.clone()], false).unwrap());
        rest = turn.end;
    }
    text + &tokenizer.decode(&chat.ids[rest..], false).unwrap()
}

fn all(template: &str, messages: &[Message]) -> String {
    marked(template, messages, |_| true)
}

fn refused(template: &str, messages: &[Message]) -> String {
    tokenizer(template).encode_chat(messages, &ChatOptions::new()).unwrap_err().to_string()
}

fn turn() -> Vec<Message> {
    vec![Message::user("two and two?"), Message::assistant("four")]
}

fn turns() -> Vec<Message> {
    [turn(), vec![Message::user("and three?"), Message::assistant("seven")]].concat()
}

#[test]
fn a_prompt_that_opens_reasoning_is_no_part_of_an_answer_without() {
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
    let text = "<|user|>two and two?<|im_end|><|assistant|>«four<|im_end|>»";
    assert_eq!(all(template, &turn()), text);
    let more = "<|user|>and three?<|im_end|><|assistant|>«seven<|im_end|>»";
    assert_eq!(all(template, &turns()), format!("{text}{more}"));
    // An answer that begins as the prompt goes on: with it, or only like it.
    let said = |text: &str| [turn()[0].clone(), Message::assistant(text)];
    let of = |text: &str| all(template, &said(text));
    assert!(
        of("<think>\neasy</think>4").ends_with("<|assistant|><think>\n«easy</think>4<|im_end|>»")
    );
    assert!(of("<think>easy</think>4").ends_with("<|assistant|>«<think>easy</think>4<|im_end|>»"));
    assert!(of("<table>").ends_with("<|assistant|>«<table><|im_end|>»"));
    // Opened and closed.
    let template = &template.replace("<think>\n", "<think>\n\n</think>\n\n");
    assert_eq!(all(template, &turn()), text);
}

#[test]
fn the_header_does_not_end_within_a_mark() {
    // The prompt and the turn share the beginning of the mark that follows the header.
    let template = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
                    {% if m.reasoning %}<|START_THINKING|>{{ m.reasoning }}<|END_THINKING|>{% endif %}\
                    <|START_TEXT|>{{ m.content }}<|END_TEXT|>{% else %}{{ m.content }}{% endif %}<|im_end|>\
                    {% endfor %}{% if add_generation_prompt %}<|assistant|><|START_THINKING|>{% endif %}";
    assert!(
        all(template, &turn()).ends_with("<|assistant|>«<|START_TEXT|>four<|END_TEXT|><|im_end|>»")
    );
}

#[test]
fn earlier_turns_are_found_as_they_are_written() {
    // Reasoning of the last turn only.
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
                    {{ '<think></think>' if loop.last and m.role == 'assistant' }}\
                    {{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|im_start|>user\ntwo and two?<|im_end|>\n<|im_start|>assistant\n«four<|im_end|>»\n\
         <|im_start|>user\nand three?<|im_end|>\n<|im_start|>assistant\n«<think></think>seven<|im_end|>»\n"
    );
    // Another end.
    let template = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}\
                    {% if m.role == 'assistant' and loop.last and not add_generation_prompt %}<|return|>\
                    {% else %}<|end|>{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}<|start|>assistant{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|start|>user<|message|>two and two?<|end|><|start|>assistant«<|message|>four<|end|>»\
         <|start|>user<|message|>and three?<|end|><|start|>assistant«<|message|>seven<|return|>»"
    );
    // The end of a text after the last.
    let template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>\n{% else %}<|im_end|>{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|user|>\ntwo and two?<|end|>\n<|assistant|>\n«four<|end|>\n»\
         <|user|>\nand three?<|end|>\n<|assistant|>\n«seven<|end|>\n<|im_end|>»"
    );
    // An end only where others follow.
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
                    {{ '<|im_end|>' if m.role == 'assistant' and not loop.last }}{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|user|>two and two?<|assistant|>«four<|im_end|>»<|user|>and three?<|assistant|>«seven»"
    );
}

#[test]
fn the_last_turn_does_without_the_others() {
    // The first answer is not written.
    let template = "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|{{ m.role }}|>\
                    {{ m.content }}<|im_end|>{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>{% endif %}";
    assert_eq!(
        marked(template, &turns(), |message| message == 3),
        "<|user|>two and two?<|im_end|><|user|>and three?<|im_end|><|assistant|>«seven<|im_end|>»"
    );
    let found = refused(template, &turns());
    assert!(found.contains("message 1 of the assistant"), "{found}");
    for way in ["cannot be told", "last_turn", "everything", "data.train_on", "{% generation %}"] {
        assert!(found.contains(way), "{found}");
    }
    assert!(!found.contains("chat_variables"), "{found}");
    let found = refused(&format!("{template}{{{{ 1 if enable_thinking is defined }}}}"), &turns());
    assert!(found.contains("`enable_thinking`: `data.chat_variables`"), "{found}");
}

#[test]
fn what_is_before_an_answer_may_be_written_otherwise_with_it() {
    // A line break after all but the last message.
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '\n' if not loop.last }}\
                    {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|user|>two and two?\n<|assistant|>«four»\n<|user|>and three?\n<|assistant|>«seven»"
    );
    // The instructions in the last message of the user, and only if it is the last of all.
    let template = "{% for m in messages[1:] %}{% if m.role == 'user' %}[INST]\
                    {{ messages[0].content + '\n\n' if loop.last }}{{ m.content }}[/INST]{% else %}\
                    {{ m.content }}<|im_end|>{% endif %}{% endfor %}";
    let messages = [vec![Message::system("Be brief.")], turns()].concat();
    assert_eq!(
        all(template, &messages),
        "[INST]two and two?[/INST]«four<|im_end|>»[INST]and three?[/INST]«seven<|im_end|>»"
    );
    // More instructions after all messages.
    let template = "{% for m in messages %}<|start|><|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                    <|start|><|system|>Answer in JSON.<|end|>\
                    {% if add_generation_prompt %}<|start|><|assistant|>{% endif %}";
    assert_eq!(
        all(template, &turns()),
        "<|start|><|user|>two and two?<|end|><|start|><|assistant|>«four<|end|>»\
         <|start|><|user|>and three?<|end|><|start|><|assistant|>«seven<|end|>»\
         <|start|><|system|>Answer in JSON.<|end|>"
    );
}

#[test]
fn templates_without_a_generation_prompt_write_headers_too() {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    assert_eq!(
        all(template, &turns()),
        "[user]two and two?[assistant]«four»[user]and three?[assistant]«seven»"
    );
    // A call in the place of the content.
    let call: Message = serde_json::from_str(
        r#"{"role": "assistant", "content": "I look.", "tool_calls": [{"name": "add"}]}"#,
    )
    .unwrap();
    let messages = [turn()[0].clone(), call, Message::new("tool", "4"), turn()[1].clone()];
    let template = "{% for m in messages %}{% if m.tool_calls %}[CALL]{{ m.tool_calls[0].name }}<|im_end|>\
                    {% elif m.role == 'assistant' %}{{ m.content }}<|im_end|>\
                    {% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}";
    assert_eq!(
        all(template, &messages),
        "[INST]two and two?[/INST]«[CALL]add<|im_end|>»[INST]4[/INST]«four<|im_end|>»"
    );
}

#[test]
fn conversations_that_the_assistant_begins() {
    let template = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}\
                    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(
        all(template, &[Message::assistant("hello")]),
        "<|im_start|>assistant\n«hello<|im_end|>»\n"
    );
}

#[test]
fn a_token_that_the_header_begins_is_swallowed() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant: {% endif %}";
    let tokenizer = tokenizer(template);
    let messages = |text: &str| [Message::user("?"), Message::assistant(text)];
    let swallowed =
        |text: &str| tokenizer.encode_chat(&messages(text), &ChatOptions::new()).unwrap().swallowed;
    // ` world` is one token.
    assert_eq!(swallowed("world"), [1]);
    assert!(swallowed("?").is_empty());
}
