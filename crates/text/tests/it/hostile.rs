//! Templates and tokenizers that were made to do damage: each ends in an error, soon, on the stack of
//! an ordinary thread.

use crate::common::{error, folder, load};
use burn_lora_text::{ChatOptions, ChatTemplate, Message};
use serde_json::{Value, json};

fn refused(source: &str) -> String {
    let render = |template: ChatTemplate| template.render(&[], &ChatOptions::new());
    match ChatTemplate::new(source).and_then(render) {
        Ok(text) => panic!("{source:.100}: {} bytes", text.len()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn templates_end_within_limits() {
    let steps = ["{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                  {% endfor %}{% endfor %}{% endfor %}"];
    let length = [
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('aaaa') }}",
        "{{ 'x' * 10**12 }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        "{{ 'a\nb' | indent(100000000000) }}",
        "{{ 'a'.center(10**12) }}",
        "{{ [1] | tojson(indent=10**12) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    ];
    let memory = [
        "{{ [0] * 10**12 }}",
        "{{ [1] | batch(10**12, 0) | list }}",
        "{% for a in range(9999) %}{% set l = range(99999) | list %}{% endfor %}",
        "{% set s = 'a' * 10000000 %}{% for a in range(99999) %}{% set t = s in s %}{% endfor %}",
    ];
    let depth = [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ];
    let nested = [
        "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x={}) %}{% for i in range(999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    ];
    let shared = [
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ];
    let expected: [(&[&str], &str); 6] = [
        (&steps, "more steps"),
        (&length, "more than 67"),
        (&memory, "more memory"),
        (&depth, "deeper"),
        (&nested, "nested deeper"),
        (&shared, "bytes"),
    ];
    for (sources, reason) in expected {
        for source in sources {
            let found = refused(source);
            assert!(found.contains(reason), "{source}: {found}");
        }
    }
    for source in ["{{ ns }}", "{{ ns | tojson }}", "{{ [ns] }}"] {
        refused(&format!("{{% set ns = namespace() %}}{{% set ns.x = ns %}}{source}"));
    }
}

#[test]
fn templates_are_not_nested_without_end() {
    let nested = |open: &str, inner: &str, close: &str| {
        let source = [&open.repeat(3000), inner, &close.repeat(3000)].concat();
        refused(&format!("{{{{ {source} }}}}"));
    };
    nested("(", "1", ")");
    nested("[", "1", "]");
    nested("{'a': ", "1", "}");
    nested("not ", "1", "");
    nested("-", "1", "");
    nested("", "1", " + 1");
    nested("", "x", ".x");
    nested("", "1", " | string");
    nested("1 if 1 else ", "1", "");
    refused(&"{% if 1 %}".repeat(3000));
    // Those of real templates are no problem.
    let chain = format!("{{{{ 'a'{} }}}}", " + 'a'".repeat(150));
    assert!(ChatTemplate::new(&chain).unwrap().render(&[], &ChatOptions::new()).is_ok());
}

#[test]
fn long_conversations_are_within_the_limits() {
    let source = "{% set ns = namespace(text='') %}{% for m in messages %}{% for o in messages %}\
                  {% if o.role == 'system' %}{{ o.content }}{% endif %}{% endfor %}\
                  {% set ns.text = ns.text + m.content.strip() %}{{ m.content.split(' ') | join(' ') }}\
                  {% endfor %}{{ ns.text | length }}";
    let text = "some words of a long answer ".repeat(40);
    let messages: Vec<_> = (0..500).map(|_| Message::user(text.as_str())).collect();
    let text = ChatTemplate::new(source).unwrap().render(&messages, &ChatOptions::new()).unwrap();
    assert!(text.len() > 500 * 1100);
}

#[test]
fn tokenizers_that_run_out_of_memory_are_refused() {
    let replace = |pattern: &str, content: &str| json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
    let bomb: Vec<_> = (0..4).map(|_| replace("a", &"a".repeat(50))).collect();
    let lies = json!({ "type": "Precompiled", "precompiled_charsmap": "/////wAAAAA=" });
    let cases = [
        (json!({ "type": "Sequence", "normalizers": bomb }), "times as long"),
        (replace("", "x"), "empty pattern"),
        (lies, "contradicts its size"),
        (json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }), "contradicts its size"),
    ];
    for (normalizer, reason) in cases {
        let found = error(&folder(|tokenizer| tokenizer["normalizer"] = normalizer.clone(), &[]));
        assert!(found.contains("tokenizer.json") && found.contains(reason), "{found}");
    }
    let pieces = json!({ "type": "FixedLength", "length": 0 });
    let found = error(&folder(|tokenizer| tokenizer["pre_tokenizer"] = pieces, &[]));
    assert!(found.contains("length 0"), "{found}");
}

#[test]
fn panics_of_the_tokenizers_crate_are_errors_that_name_the_file() {
    let strip = |tokenizer: &mut Value| {
        tokenizer["decoder"] = json!({ "type": "Strip", "content": "a", "start": 5, "stop": 5 });
    };
    let stripping = folder(strip, &[]);
    let tokenizer = load(&stripping);
    let found = tokenizer.decode(&[3], false).unwrap_err().to_string();
    assert!(found.contains("tokenizer.json") && found.contains("contradicts"), "{found}");
    // A map of which all numbers lead beyond it.
    let map = format!("AAQAAP{}9hAA==", "/".repeat(1364));
    let offsets = |tokenizer: &mut Value| {
        tokenizer["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": map });
    };
    let folder = folder(offsets, &[]);
    match burn_lora_text::Tokenizer::from_pretrained(folder.path()) {
        Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error}"),
        Ok(tokenizer) => {
            let found = tokenizer.encode("ab", false).unwrap_err().to_string();
            assert!(found.contains("tokenizer.json"), "{found}");
        }
    }
}
