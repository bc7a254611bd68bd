//! Chat templates against transformers, and which tokens are the assistant's.

use crate::common::{GOLDEN, folder, load};
use burn_lora_text::{ChatOptions, ChatTemplate, ChatValue, EncodedChat, Message, Tokenizer};
use serde::Deserialize;
use std::{collections::BTreeMap, fs, ops::Range, path::Path};

/// What transformers made of conversations.
#[derive(Deserialize)]
struct Chats {
    variables: BTreeMap<String, String>,
    cases: BTreeMap<String, Case>,
    expected: BTreeMap<String, BTreeMap<String, Expected>>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    #[serde(default)]
    prompt: bool,
    tools: Option<Vec<ChatValue>>,
}

#[derive(Deserialize)]
struct Expected {
    text: Option<String>,
    assistant: Option<Vec<String>>,
    error: Option<String>,
}

impl Case {
    fn options(&self, variables: &BTreeMap<String, String>) -> ChatOptions {
        let mut options = ChatOptions::new().add_generation_prompt(self.prompt);
        for (name, value) in variables {
            options = options.variable(name, value);
        }
        match &self.tools {
            Some(tools) => options.tools(tools),
            None => options,
        }
    }
}

fn chats() -> Chats {
    let json = fs::read(Path::new(GOLDEN).join("chats.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let source = fs::read_to_string(Path::new(GOLDEN).join("templates").join(name)).unwrap();
    ChatTemplate::new(&source).unwrap()
}

fn golden(chat: ChatTemplate) -> Tokenizer {
    let mut tokenizer = Tokenizer::from_pretrained(GOLDEN).unwrap();
    tokenizer.set_chat_template(chat);
    tokenizer
}

fn turns(tokenizer: &Tokenizer, chat: &EncodedChat) -> Vec<(usize, String)> {
    let decode = |(message, tokens): &(usize, Range<usize>)| {
        (*message, tokenizer.decode(&chat.ids[tokens.clone()], false).unwrap())
    };
    chat.turns.iter().map(decode).collect()
}

#[test]
fn chats_are_rendered_as_by_transformers() {
    let chats = chats();
    for (file, cases) in &chats.expected {
        let template = template(file);
        for (name, expected) in cases {
            let case = &chats.cases[name];
            let found = template.render(&case.messages, &case.options(&chats.variables));
            match &expected.error {
                None => assert_eq!(found.ok(), expected.text, "{file}: {name}"),
                Some(reason) => {
                    let found = found.unwrap_err().to_string();
                    assert!(found.contains(reason), "{file}: {name}: {found}");
                }
            }
        }
    }
}

#[test]
fn python_is_what_templates_expect() {
    let render = |source: &str| {
        let value = r#"{"z": [1, 2.0, true, null], "a": "é\"<'&\n"}"#;
        let value: ChatValue = serde_json::from_str(value).unwrap();
        let options = ChatOptions::new().variable("value", value);
        ChatTemplate::new(source).unwrap().render(&[], &options).unwrap()
    };
    let cases = [
        ("{{ value | tojson }}", r#"{"z": [1, 2.0, true, null], "a": "é\"<'&\n"}"#),
        ("{{ value.z | tojson(indent=2) }}", "[\n  1,\n  2.0,\n  true,\n  null\n]"),
        ("{{ [] | tojson(indent=2) }}", "[]"),
        ("{{ value.a | tojson(ensure_ascii=True) }}", r#""\u00e9\"<'&\n""#),
        (
            "{{ value | tojson(separators=(',', ':'), sort_keys=true) }}",
            r#"{"a":"é\"<'&\n","z":[1,2.0,true,null]}"#,
        ),
        ("{{ value }}", r#"{'z': [1, 2.0, True, None], 'a': 'é"<\'&\n'}"#),
        ("{{ none }} {{ true }} {{ value.z | string }}", "None True [1, 2.0, True, None]"),
        ("{{ none is iterable }} {{ 'a' is iterable }}", "False True"),
        ("{{ 'aéb'.find('b') }} {{ 'aéb'.rfind('x') }}", "2 -1"),
        ("{{ 'a-b-c'.rsplit('-', 1) }}", "['a-b', 'c']"),
        ("{{ 'abc'.removeprefix('a').removesuffix('c').upper() }}", "B"),
        ("{{ value.get('a')[:1] }}{% for k, v in value.items() %}{{ k }}{% endfor %}", "éza"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("  {% if true %}\n a\n  {% endif %}\nb", " a\nb"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source), expected, "{source}");
    }
    let error = |source: &str| {
        let rendered = ChatTemplate::new(source).unwrap().render(&[], &ChatOptions::new());
        rendered.unwrap_err().to_string()
    };
    assert!(error("{{ raise_exception('no tools') }}").contains("no tools"));
    assert!(
        error("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}")
            .contains("deep")
    );
    assert!(error("{{ strftime_now('%') }}").contains("no format"));
    assert!(error("{{ messages[0].content }}").contains("undefined"));
}

#[test]
fn messages_are_read_as_datasets_have_them() {
    let read = serde_json::from_str::<Message>;
    let parts = r#"{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
    let parts = read(parts).unwrap();
    assert_eq!(parts.text().as_deref(), Some("ab"));
    let call = r#"{"role": "assistant", "content": null, "tool_calls": [{"z": 1, "a": 2}]}"#;
    let call = read(call).unwrap();
    assert_eq!(call.text(), None);
    let template = "{{ messages[0].content is defined }}{{ messages[0].tool_calls }}\
                    {% for part in messages[1].content %}[{{ part.text }}]{% endfor %}";
    let template = ChatTemplate::new(template).unwrap();
    let text = template.render(&[call, parts], &ChatOptions::new()).unwrap();
    assert_eq!(text, "False[{'z': 1, 'a': 2}][a][b]");
    assert!(read("3").unwrap_err().to_string().contains("a number"));
    assert!(read(r#"{"content": "a"}"#).unwrap_err().to_string().contains("role"));
}

#[test]
fn generation_blocks_are_the_mask() {
    let chats = chats();
    let tokenizer = golden(template("generation.jinja"));
    for (name, expected) in &chats.expected["generation.jinja"] {
        let case = &chats.cases[name];
        let chat = tokenizer.encode_chat(&case.messages, &case.options(&chats.variables)).unwrap();
        let turns = turns(&tokenizer, &chat);
        let texts: Vec<_> = turns.iter().map(|(_, text)| text.clone()).collect();
        assert_eq!(Some(texts), expected.assistant, "{name}");
        assert!(turns.iter().all(|(message, _)| case.messages[*message].role() == "assistant"));
        assert_eq!(Some(tokenizer.decode(&chat.ids, false).unwrap()), expected.text);
        let marked = chat.assistant.iter().filter(|assistant| **assistant).count();
        assert_eq!(marked, chat.turns.iter().map(|(_, turn)| turn.len()).sum::<usize>());
    }
}

#[test]
fn several_blocks_of_a_message_are_its_own() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% for part in m.content.split() %}\
                  {% generation %}{{ part }}{% endgeneration %},{% endfor %}{% endif %}{% endfor %}";
    let tokenizer = golden(ChatTemplate::new(source).unwrap());
    let messages =
        ["hello world", "", "user"].map(|text| [Message::user("?"), Message::assistant(text)]);
    let chat = tokenizer.encode_chat(&messages.concat(), &ChatOptions::new()).unwrap();
    let expected = [(1, "hello".into()), (1, "world".into()), (5, "user".into())];
    assert_eq!(turns(&tokenizer, &chat), expected);
    // The last answer only, which for the conversation up to the first is the first.
    let last = "{% generation %}{{ messages[-1].content }}{% endgeneration %}";
    let last = golden(ChatTemplate::new(last).unwrap());
    let found = last.encode_chat(&messages.concat(), &ChatOptions::new()).unwrap_err().to_string();
    assert!(found.contains("one block for each message"), "{found}");
    // What is read as a mark.
    let marked = [Message::user("a\u{fdd0}b")];
    let found = tokenizer.encode_chat(&marked, &ChatOptions::new()).unwrap_err().to_string();
    assert!(found.contains("U+FDD0"), "{found}");
}

#[test]
fn prefixes_are_the_mask_without_blocks() {
    let chats = chats();
    let expect = |file: &str, case: &str, expected: &[(usize, &str)]| {
        let tokenizer = golden(template(file));
        let case = &chats.cases[case];
        let chat = tokenizer.encode_chat(&case.messages, &case.options(&chats.variables)).unwrap();
        let found = turns(&tokenizer, &chat);
        let expected: Vec<_> = expected.iter().map(|(at, text)| (*at, text.to_string())).collect();
        assert_eq!(found, expected, "{file}");
    };
    let chatml = [(1, "Hello <b>\n<|im_end|>"), (3, "2 m<|im_end|>")];
    expect("smollm2.jinja", "two turns", &chatml);
    expect("qwen2_5.jinja", "two turns", &chatml);
    expect("qwen2_5.jinja", "prompt", &chatml[..1]);
    // `<|eot_id|>` and `</s>` are text to this vocabulary: the turn goes to its end.
    expect("llama3_1.jinja", "two turns", &[(1, "Hello <b><|eot_id|>"), (3, "2 m<|eot_id|>")]);
    expect("mistral.jinja", "two turns", &[(1, "Hello <b>\n</s>"), (3, "2 m</s>")]);
    // Zephyr's prompt ends before the line break that its turn begins with.
    expect("zephyr.jinja", "system", &[(2, "Hello <b>\n</s>\n")]);
    let tools = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}\n</tool_call><|im_end|>";
    expect("qwen2_5.jinja", "tools", &[(2, tools), (4, "22 °C<|im_end|>")]);
}

#[test]
fn templates_that_drop_earlier_reasoning_have_their_turns_found() {
    let chats = chats();
    let tokenizer = golden(template("qwen3.jinja"));
    let case = &chats.cases["reasoning"];
    let chat = tokenizer.encode_chat(&case.messages, &case.options(&chats.variables)).unwrap();
    let last = "<think>\n\n</think>\n\n2 m<|im_end|>";
    let expected = [(1, "Hello<|im_end|>".to_owned()), (3, last.to_owned())];
    assert_eq!(turns(&tokenizer, &chat), expected);
}

#[test]
fn a_token_belongs_to_where_it_starts() {
    // `ab` is one token, and the prompt ends within it.
    let chat = "{% for m in messages %}{{ m.content }}{% endfor %}{# add_generation_prompt #}";
    let mut tokenizer = load(&folder(|_| (), &[]));
    tokenizer.set_chat_template(ChatTemplate::new(chat).unwrap());
    let messages = [Message::user("a"), Message::assistant("bab"), Message::user("b")];
    let chat = tokenizer.encode_chat(&messages, &ChatOptions::new()).unwrap();
    assert_eq!(chat.ids, [5, 5, 4]);
    assert_eq!(chat.assistant, [false, true, false]);
    assert_eq!(chat.turns, [(1, 1..2)]);
}

#[test]
fn keys_keep_the_order_of_the_data() {
    let json = r#"{"tool_calls": [{"z": {"b": 1, "a": 2}}], "role": "assistant", "content": "x", "name": "y"}"#;
    let message: Message = serde_json::from_str(json).unwrap();
    assert_eq!(
        serde_json::to_string(&message).unwrap(),
        json.replace(": ", ":").replace(", ", ",")
    );
    let tool: ChatValue = serde_json::from_str(r#"{"z": 1, "a": {"y": 1, "b": 2}}"#).unwrap();
    let template = "{{ messages[0] | tojson }}{{ tools | tojson }}{{ tools[0].a | list }}";
    let template = ChatTemplate::new(template).unwrap();
    let text = template.render(&[message], &ChatOptions::new().tools([tool])).unwrap();
    assert_eq!(text, json.to_owned() + r#"[{"z": 1, "a": {"y": 1, "b": 2}}]['y', 'b']"#);
}

#[test]
fn reasoning_has_each_of_its_names() {
    let keys = ChatTemplate::new(
        "{{ messages[0] | list | join(' ') }}: {{ messages[0].thinking }} \
                                  {{ messages[0].reasoning_content }}",
    );
    let keys = keys.unwrap();
    let render = |json: &str| {
        let message: Message = serde_json::from_str(json).unwrap();
        keys.render(&[message], &ChatOptions::new()).unwrap()
    };
    // As in transformers 5.24.
    let cases = [
        (
            r#"{"role": "assistant", "content": "", "reasoning_content": "r"}"#,
            "thinking role content reasoning_content: r r",
        ),
        (
            r#"{"role": "assistant", "content": "", "thinking": "t"}"#,
            "thinking role content reasoning_content: t t",
        ),
        (
            r#"{"role": "assistant", "reasoning": "o", "content": null}"#,
            "thinking role reasoning reasoning_content: o o",
        ),
        (
            r#"{"role": "assistant", "reasoning_content": "r", "thinking": "t"}"#,
            "thinking role reasoning_content: t r",
        ),
        (r#"{"role": "assistant", "content": "", "reasoning_content": null}"#, "role content:  "),
    ];
    for (json, expected) in cases {
        assert_eq!(render(json), expected, "{json}");
    }
}

#[test]
fn what_json_does_not_know_is_named() {
    let map = std::collections::HashMap::from([(vec![1], 2)]);
    let options = ChatOptions::new().variable("odd", map);
    let found = ChatTemplate::new("x").unwrap().render(&[], &options).unwrap_err().to_string();
    assert!(found.contains("`odd`"), "{found}");
}

#[test]
fn what_a_template_lacks_is_named() {
    let error = |source: &str| {
        let rendered = ChatTemplate::new(source).and_then(|t| t.render(&[], &ChatOptions::new()));
        rendered.unwrap_err().to_string()
    };
    let cases = [
        ("a\n{{ 'x' | nope }}", "filter nope is unknown (in chat_template:2)"),
        ("{{ 'x' is nope }}", "test nope is unknown"),
        ("{{ 'x'.nope() }}", "'str object' has no attribute 'nope'"),
        ("{{ 'x'.translate({}) }}", "no method named translate"),
        ("{{ [].append(1) }}", "append"),
        ("{% include 'x' %}", "`include` is not supported"),
        ("{{ nope() }}", "'nope' is undefined"),
        ("{{ 'x' | upper(1) }}", "too many arguments"),
        ("{{ 'x' | indent(tabs=1) }}", "unknown keyword argument tabs"),
        ("{{ raise_exception('no tools') }}", "refused by the template: no tools"),
    ];
    for (source, reason) in cases {
        let found = error(source);
        assert!(found.contains(reason), "{source}: {found}");
    }
}
