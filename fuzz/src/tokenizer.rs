//! The files of a tokenizer.

use crate::{TOKENIZER_CONFIG, TOKENIZER_FILE, files, folder, input};
use burn_lora::prelude::*;
use serde_json::{Value, json};

pub(crate) fn run(data: &[u8]) {
    let [tokenizer, config, special, generation, model, template] = files(data);
    let folder = folder(
        "tokenizer-files",
        &[
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", special),
            ("generation_config.json", generation),
            ("config.json", model),
            ("chat_template.jinja", template),
        ],
    );
    let Ok(tokenizer) = Tokenizer::from_pretrained(folder) else { return };
    for text in ["", "hello  world", "Zürich 東京 🙂\n\t<|im_end|>", "\u{0}\u{fffd}a\u{301}"] {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = tokenizer.encode_with_offsets(text);
        let _ = tokenizer.decode(&ids, true);
        let mut stream = tokenizer.decode_stream(false);
        if ids.iter().all(|id| stream.push(*id).is_ok()) {
            let _ = stream.finish();
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], false);
    let options = ChatOptions::new().add_generation_prompt(true);
    let _ = tokenizer.apply_chat_template(&[Message::user("hello")], &options);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": true,
            "normalized": false, "special": true,
        })
    };
    let file = |model: Value, normalizer: Value, pre: Value, post: Value, decoder: Value| {
        let parts = json!({
            "version": "1.0", "truncation": {"max_length": 8, "stride": 1,
            "strategy": "LongestFirst", "direction": "Right"}, "padding": null,
            "added_tokens": [added(0, "<s>"), added(1, "</s>")], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model,
        });
        parts.to_string()
    };
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        "continuing_subword_prefix": "##", "end_of_word_suffix": null, "ignore_merges": true,
        "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "<0x0A>": 3, "▁": 4, "h": 5, "e": 6, "he": 7},
        "merges": [["h", "e"]],
    });
    let spaces = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": true, "strip_right": true},
    ]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let post = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{L}+(?!x)|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Removed"},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let unigram = json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false,
        "vocab": [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -1.5], ["hello", -2.0], ["l", -3.0]]});
    let pieces = json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "he": 3, "##llo": 4}});
    let words = json!({"type": "WordLevel", "unk_token": "<unk>",
        "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3}});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true});
    let fixed = json!({"type": "FixedLength", "length": 5});
    let all = [
        String::from_utf8_lossy(TOKENIZER_FILE).into_owned(),
        file(bpe.clone(), spaces, Value::Null, post, decoder),
        file(bpe, Value::Null, split, Value::Null, json!({"type": "ByteLevel"})),
        file(unigram, json!({"type": "NFC"}), metaspace.clone(), Value::Null, metaspace),
        file(
            pieces,
            bert,
            json!({"type": "BertPreTokenizer"}),
            json!({"type": "BertProcessing",
            "sep": ["</s>", 1], "cls": ["<s>", 0]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        file(
            words,
            Value::Null,
            fixed,
            json!({"type": "RobertaProcessing", "sep": ["</s>", 1],
            "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": true}),
            json!({"type": "CTC",
            "pad_token": "<s>", "word_delimiter_token": "|", "cleanup": true}),
        ),
    ];
    let config = json!({
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "add_eos_token": false,
        "bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": null,
        "added_tokens_decoder": {"0": {"content": "<s>", "special": true}},
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"},
            {"name": "tool_use", "template": "{{ tools }}"}],
    });
    let config = [String::from_utf8_lossy(TOKENIZER_CONFIG).into_owned(), config.to_string()];
    let special = json!({"bos_token": "<s>", "additional_special_tokens": ["<unk>"]}).to_string();
    let generation =
        json!({"eos_token_id": [1, 2], "bos_token_id": 0, "temperature": 0.6}).to_string();
    let model = crate::settings(json!({}));
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let rest = |number: usize| [special.as_str(), &generation, &model, [template, ""][number % 2]];
    let seed = |(number, file): (usize, &String)| {
        input([file.as_str(), &config[number.min(1)]].into_iter().chain(rest(number)))
    };
    all.iter().enumerate().map(seed).collect()
}
