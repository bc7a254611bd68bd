//! A chat template, messages and tools.

use crate::{files, input, tokenizer};
use burn_lora::prelude::*;
use serde_json::Value;
use std::str::from_utf8;

const CHAT: &str = r#"[{"role":"system","content":"Be brief."},{"role":"user","content":"hello"},
{"role":"assistant","content":"hello world","reasoning_content":"think"},{"role":"user","content":
[{"type":"text","text":"how?"}]},{"role":"assistant","tool_calls":[{"id":"1","type":"function",
"function":{"name":"now","arguments":{"zone":"x","n":[1,2.5,null,true]}}}]},
{"role":"tool","content":"12:00","name":"now"},{"role":"assistant","content":"twelve"}]"#;

const TOOLS: &str = r#"[{"type":"function","function":{"name":"now","description":"The time",
"parameters":{"type":"object","properties":{"zone":{"type":"string"}},"required":["zone"]}}}]"#;

pub(crate) fn run(data: &[u8]) {
    let [template, messages, tools] = files(data);
    let Ok(Ok(template)) = from_utf8(template).map(ChatTemplate::new) else { return };
    // Where only the template is right, it still has something to render.
    let messages = serde_json::from_slice::<Vec<Message>>(messages)
        .unwrap_or_else(|_| serde_json::from_str(CHAT).expect("it is right"));
    let mut options = ChatOptions::new();
    if let Ok(tools) = serde_json::from_slice::<Vec<Value>>(tools) {
        options = options.tools(tools);
    }
    let mut tokenizer = tokenizer().clone();
    tokenizer.set_chat_template(template);
    let asked = options.clone().add_generation_prompt(true);
    let _ = tokenizer.apply_chat_template(&messages, &asked);
    if let Ok(chat) = tokenizer.encode_chat(&messages, &options) {
        assert_eq!(chat.ids.len(), chat.assistant.len());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let templates = [
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message['content'] \
         | trim + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- \
         '<|im_start|>assistant\n' }}{%- endif %}",
        "{{ bos_token }}{% set ns = namespace(found=false, last=-1) %}{% for m in messages[::-1] %}\
         {% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{% set ns.last = \
         loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% if m.content is string %}{{ \
         m.role }}: {{ m.content.split('</think>')[-1].lstrip('\n') }}{% elif m.content is iterable %}\
         {% for part in m.content %}{{ part.text if part.type == 'text' else raise_exception('no') }}\
         {% endfor %}{% endif %}{% if m.tool_calls is defined %}{% for call in m.tool_calls %}{{ \
         call.function.arguments | tojson(indent=2) }}{% endfor %}{% endif %}{{ eos_token }}\n{% endfor %}",
        "{% macro turn(m, depth=1) -%}<|im_start|>{{ m.role|upper }}{% if m.role == 'assistant' %}{% \
         generation %}{{ m.content or '' }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}\
         <|im_end|>{% endif %}{%- endmacro %}{% if tools %}{{ tools|map(attribute='function')|list\
         |tojson }}{% for key, value in tools[0].function.parameters|dictsort %}{{ key }}={{ value }}\
         {% endfor %}{% endif %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
        "{% for m in messages | selectattr('role', 'ne', 'system') | rejectattr('content', 'none') %}\
         {{ '%s: %5d' | format(m.role, loop.index) }}{{ m.content | string | replace('\n', ' ') \
         | indent(2) }}{{ m.items() | list | length }}{{ {'a': 1, 'b': [1, (2, 3)]} }}{{ [1, 2, 3] \
         | join(', ') }}{{ strftime_now('%d %b %Y') }}{{ range(3) | list }}{{ 7 // 2 ** 2 % 3 }}{{ \
         'x' ~ loop.last }}{{ m.content.startswith('a') }}{{ m.get('name', '') }}{{ 'abc'[1:] }}\
         {%- break %}{% endfor %}",
    ];
    templates.map(|template| input([template, CHAT, TOOLS])).into()
}
