//! Tokenizers: their files, special tokens, decoding.

use crate::common::*;
use burn_lora_text::{ChatOptions, ChatTemplate, Message, TextError, Tokenizer};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

#[test]
fn special_tokens_are_text_or_objects() {
    let config = json!({
        "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false }, "unk_token": "<unk>",
    });
    let tokenizer = load(&folder(|_| (), &[("tokenizer_config.json", config)]));
    assert_eq!(tokenizer.bos_token_id(), Some(0));
    assert_eq!(tokenizer.eos_token_id(), Some(1));
    assert_eq!(tokenizer.unk_token_id(), Some(6));
    assert_eq!(tokenizer.vocab_size(), 7);
    assert_eq!(tokenizer.token_to_id("ab"), Some(5));
    assert_eq!(tokenizer.id_to_token(7), None);
    // `<unk>` was in the vocabulary only.
    assert_eq!(tokenizer.encode("a<unk>b", false).unwrap(), [3, 6, 4]);
    assert_eq!(tokenizer.decode(&[3, 6, 99, 4], true).unwrap(), "ab");
}

#[test]
fn the_map_of_special_tokens_counts_where_the_config_lists_no_added_ones() {
    let map = json!({ "eos_token": "</s>", "bos_token": { "content": "<s>" } });
    let config = json!({ "eos_token": "<s>" });
    let files = [("special_tokens_map.json", map), ("tokenizer_config.json", config.clone())];
    assert_eq!(load(&folder(|_| (), &files)).eos_token_id(), Some(1));
    let mut listed = config;
    listed["added_tokens_decoder"] = json!({});
    let files = [files[0].clone(), ("tokenizer_config.json", listed)];
    let tokenizer = load(&folder(|_| (), &files));
    assert_eq!((tokenizer.eos_token_id(), tokenizer.bos_token_id()), (Some(0), None));
}

#[test]
fn all_tokens_that_end_are_known() {
    let files = [
        ("tokenizer_config.json", json!({ "eos_token": "</s>" })),
        ("generation_config.json", json!({ "eos_token_id": [5, 1] })),
        ("config.json", json!({ "eos_token_id": 4 })),
    ];
    assert_eq!(load(&folder(|_| (), &files)).eos_token_ids(), [1, 5, 4]);
    assert_eq!(load(&folder(|_| (), &files[1..])).eos_token_id(), Some(5));
    assert!(load(&folder(|_| (), &[])).eos_token_ids().is_empty());
}

#[test]
fn padding_falls_back() {
    let eos = ("tokenizer_config.json", json!({ "eos_token": "</s>" }));
    assert_eq!(load(&folder(|_| (), std::slice::from_ref(&eos))).pad_token_id(), Some(2));
    let rename = |token: &'static str| {
        move |tokenizer: &mut Value| {
            tokenizer["added_tokens"][2]["content"] = json!(token);
            let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
            vocab.remove("<pad>");
            vocab.insert(token.into(), json!(2));
        }
    };
    let files = std::slice::from_ref(&eos);
    let llama = folder(rename("<|finetune_right_pad_id|>"), files);
    assert_eq!(load(&llama).pad_token_id(), Some(2));
    assert_eq!(load(&folder(rename("<other>"), files)).pad_token_id(), Some(1));
    let own = ("tokenizer_config.json", json!({ "pad_token": "<s>" }));
    assert_eq!(load(&folder(|_| (), &[own])).pad_token_id(), Some(0));
}

#[test]
fn what_is_put_around_a_text() {
    let config = |add: bool| {
        let json = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add });
        [("tokenizer_config.json", json)]
    };
    let ids = |folder: TempDir, add| load(&folder).encode("ab", add).unwrap();
    assert_eq!(ids(folder(|_| (), &config(true)), true), [0, 5]);
    assert_eq!(ids(folder(|_| (), &config(true)), false), [5]);
    assert_eq!(ids(folder(|_| (), &config(false)), true), [5]);
    // What the file says comes first, and padding and truncation of its last use are no part of it.
    let own = |tokenizer: &mut Value| {
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": "</s>", "type_id": 0 } },
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        });
        tokenizer["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        tokenizer["padding"] = json!({
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>",
        });
    };
    let tokenizer = load(&folder(own, &config(true)));
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [5, 1]);
    assert_eq!(tokenizer.encode("abba", true).unwrap(), [5, 4, 3, 1]);
    assert_eq!(tokenizer.encode("abba", false).unwrap(), [5, 4, 3]);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let config = |json: Value| error(&folder(|_| (), &[("tokenizer_config.json", json)]));
    let found = config(json!({ "bos_token": "<bos>" }));
    assert!(
        found.contains("`bos_token` is \"<bos>\"") && found.contains("_config.json"),
        "{found}"
    );
    assert!(config(json!({ "eos_token": 3 })).contains("`eos_token` is 3"));
    assert!(config(json!({ "chat_template": 3 })).contains("`chat_template` is 3"));
    assert!(config(json!("{")).contains("tokenizer_config.json"));
    assert!(config(json!("[]")).contains("no JSON object"));
    for ids in [json!(-1), json!([1, "a"]), json!(u64::MAX)] {
        let file = ("generation_config.json", json!({ "eos_token_id": ids }));
        let found = error(&folder(|_| (), &[file]));
        assert!(found.contains("generation_config.json: `eos_token_id`"), "{found}");
    }
    let broken =
        error(&folder(|tokenizer| tokenizer["model"]["merges"] = json!([["a", "x"]]), &[]));
    assert!(broken.contains("tokenizer.json"), "{broken}");
    // These are panics in the crate.
    let prefix = error(&folder(
        |tokenizer| tokenizer["model"]["continuing_subword_prefix"] = json!("####"),
        &[],
    ));
    assert!(prefix.contains("tokenizer.json: the tokenizer contradicts itself"), "{prefix}");
    let template = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }],
    });
    let sequence = json!({ "type": "Sequence", "processors": [template] });
    for post_processor in [template.clone(), sequence] {
        let found = error(&folder(|tokenizer| tokenizer["post_processor"] = post_processor, &[]));
        assert!(found.contains("puts `<s>`, which it does not define"), "{found}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(error(&empty).contains("save_pretrained"));
    let missing = Tokenizer::from_pretrained("no/such/folder").unwrap_err();
    assert!(matches!(missing, TextError::Io { .. }), "{missing}");
    let file = empty.path().join("a.gguf");
    fs::write(&file, "GG").unwrap();
    assert!(Tokenizer::from_pretrained(&file).unwrap_err().to_string().contains("a.gguf"));
}

#[test]
fn a_saved_folder_is_the_same_to_the_byte() {
    let files = [
        ("tokenizer_config.json", json!({ "eos_token": "</s>", "other": [1, 2] })),
        ("special_tokens_map.json", json!({ "eos_token": "</s>" })),
        ("generation_config.json", json!({ "eos_token_id": [5, 1] })),
        ("chat_template.jinja", json!("{{ messages[0].content }}\n")),
    ];
    let source = folder(|_| (), &files);
    let mut tokenizer = load(&source);
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("chat_template.json"), r#"{"chat_template": "stale"}"#).unwrap();
    tokenizer.save(out.path()).unwrap();
    let names = |folder: &TempDir| {
        let entries = fs::read_dir(folder.path()).unwrap();
        let read = |path: &Path| fs::read(path).unwrap();
        let entry = |path: std::path::PathBuf| (path.file_name().unwrap().to_owned(), read(&path));
        entries.map(|item| entry(item.unwrap().path())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(names(&out), names(&source));
    tokenizer.set_chat_template(ChatTemplate::new("new").unwrap());
    tokenizer.save(out.path()).unwrap();
    assert_eq!(load(&out).chat_template().unwrap().source(), "new");
}

#[test]
fn templates_come_from_three_files() {
    let named = json!({ "chat_template": [
        { "name": "default", "template": "plain" }, { "name": "tool_use", "template": "tools" },
    ] });
    let named = folder(|_| (), &[("tokenizer_config.json", named)]);
    let apply = |folder: &TempDir, options: &ChatOptions| {
        load(folder).apply_chat_template(&[Message::user("Hi")], options)
    };
    let plain = ChatOptions::new();
    assert_eq!(apply(&named, &plain).unwrap(), "plain");
    assert_eq!(apply(&named, &plain.clone().tools([1])).unwrap(), "tools");
    let found = apply(&named, &plain.clone().template("rag")).unwrap_err().to_string();
    assert!(found.contains("`rag` (there: default, tool_use)"), "{found}");

    let json = ("chat_template.json", json!({ "chat_template": "json" }));
    assert_eq!(apply(&folder(|_| (), std::slice::from_ref(&json)), &plain).unwrap(), "json");
    let jinja = ("chat_template.jinja", json!("jinja"));
    assert_eq!(apply(&folder(|_| (), &[json, jinja]), &plain).unwrap(), "jinja");
    let none = apply(&folder(|_| (), &[]), &plain).unwrap_err().to_string();
    assert!(none.contains("set_chat_template"), "{none}");
    // A tokenizer with a broken template is of use without it.
    let broken = folder(|_| (), &[("chat_template.jinja", json!("{% if %}"))]);
    let found = apply(&broken, &plain).unwrap_err();
    assert!(
        matches!(found, TextError::Template { .. })
            && found.to_string().contains("chat_template:1")
    );
    assert!(load(&broken).encode("ab", false).is_ok());
}

#[test]
fn a_stream_is_the_text() {
    let tokenizer = Tokenizer::from_pretrained(GOLDEN).unwrap();
    let text = "hello wörld 🦀🦀 \u{fffd} äö<|im_end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    let stream = |ids: &[u32]| {
        let mut stream = tokenizer.decode_stream(true);
        let mut parts: Vec<String> =
            ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
        parts.push(stream.finish().unwrap());
        parts
    };
    let parts = stream(&ids);
    assert_eq!(parts.concat(), tokenizer.decode(&ids, true).unwrap());
    assert!(parts.iter().any(|part| part == "🦀") && parts.iter().all(|part| part != "\u{fffd}"));
    // A crab that is cut off, then text.
    let crab = tokenizer.encode("🦀", false).unwrap();
    assert_eq!(stream(&crab[..2]).concat(), "\u{fffd}");
    let hello = tokenizer.encode("hello", false).unwrap();
    let cut = [&crab[..2], &hello].concat();
    assert_eq!(stream(&cut).concat(), tokenizer.decode(&cut, false).unwrap());
}

#[test]
fn a_folder_has_more_templates() {
    let plain = ChatOptions::new();
    let apply = |folder: &TempDir, options: &ChatOptions| {
        load(folder).apply_chat_template(&[Message::user("Hi")], options)
    };
    let config = ("tokenizer_config.json", json!({ "chat_template": "config" }));
    let jinja = ("chat_template.jinja", json!("jinja"));
    let both = folder(|_| (), &[config.clone(), jinja]);
    let only = folder(|_| (), &[config]);
    for folder in [&both, &only] {
        let more = folder.path().join("additional_chat_templates");
        fs::create_dir(&more).unwrap();
        fs::write(more.join("tool_use.jinja"), "tools").unwrap();
        fs::write(more.join("note.txt"), "none").unwrap();
    }
    assert_eq!(apply(&both, &plain).unwrap(), "jinja");
    assert_eq!(apply(&both, &plain.clone().tools([1])).unwrap(), "tools");
    assert_eq!(apply(&both, &plain.clone().template("tool_use")).unwrap(), "tools");
    // Files of templates take the place of what the config has.
    assert!(apply(&only, &plain).unwrap_err().to_string().contains("(there: tool_use)"));
    let out = tempfile::tempdir().unwrap();
    load(&both).save(out.path()).unwrap();
    assert_eq!(apply(&out, &plain.clone().tools([1])).unwrap(), "tools");
    let mut tokenizer = load(&out);
    tokenizer.set_chat_template(ChatTemplate::new("new").unwrap());
    tokenizer.save(out.path()).unwrap();
    assert_eq!(apply(&out, &plain.clone().tools([1])).unwrap(), "new");
}

#[test]
fn line_ends_of_windows_are_those_of_others() {
    let source = "{% if true %}\r\na\r\n{% endif %}\r\nb\r\n";
    for name in ["chat_template.jinja", "tokenizer_config.json"] {
        let file = match name {
            "chat_template.jinja" => json!(source),
            _ => json!({ "chat_template": source }),
        };
        let folder = folder(|_| (), &[(name, file)]);
        let text = load(&folder).apply_chat_template(&[], &ChatOptions::new()).unwrap();
        assert_eq!(text, "a\nb");
    }
}

#[test]
fn tokens_that_only_the_config_lists_are_added() {
    let token = |content: &str, special: bool| {
        json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": special })
    };
    let config = json!({
        "added_tokens_decoder": { "0": token("<s>", true), "7": token("<call>", false), "6": token("<unk>", true) },
        "additional_special_tokens": ["ab"], "eos_token": "</s>",
    });
    let folder = folder(|_| (), &[("tokenizer_config.json", config)]);
    let (tokenizer, warnings) = burn_lora_io::collect(|| load(&folder));
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(tokenizer.encode("a<call><unk>ab", false).unwrap(), [3, 7, 6, 5]);
    assert_eq!(tokenizer.decode(&[3, 7, 6, 5], true).unwrap(), "a<call>");
    assert_eq!(tokenizer.vocab_size(), 8);
    // Its number is that of the tokenizer.
    let config = json!({ "added_tokens_decoder": { "9": token("<call>", false) } });
    let folder = self::folder(|_| (), &[("tokenizer_config.json", config)]);
    let (tokenizer, warnings) = burn_lora_io::collect(|| load(&folder));
    assert_eq!(tokenizer.token_to_id("<call>"), Some(7));
    assert!(warnings[0].contains("`<call>`") && warnings[0].contains("number 9"), "{warnings:?}");
    let config = json!({ "added_tokens_decoder": { "x": token("<call>", false) } });
    let found = error(&self::folder(|_| (), &[("tokenizer_config.json", config)]));
    assert!(found.contains("`added_tokens_decoder`"), "{found}");
}
