//! Tokenizers in GGUF files.

use burn_lora_text::{ChatOptions, Message, Tokenizer};
use std::{collections::BTreeMap, fs};

/// A value of the metadata: its kind and its bytes.
type Value = (u32, Vec<u8>);

/// A file without tensors.
struct File(BTreeMap<String, Value>);

impl File {
    fn set(&mut self, key: &str, value: Value) {
        self.0.insert(key.into(), value);
    }

    fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [0u64.to_le_bytes(), (self.0.len() as u64).to_le_bytes()].concat();
        let mut bytes = [b"GGUF", &3u32.to_le_bytes()[..], &counts].concat();
        for (key, (kind, value)) in &self.0 {
            bytes.extend([string(key), kind.to_le_bytes().into(), value.clone()].concat());
        }
        bytes
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn text(text: &str) -> Value {
    (8, string(text))
}

fn int(value: u32) -> Value {
    (4, value.to_le_bytes().into())
}

fn array(kind: u32, count: usize, items: impl Iterator<Item = Vec<u8>>) -> Value {
    let mut bytes = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
    items.for_each(|item| bytes.extend(item));
    (9, bytes)
}

fn texts(items: &[&str]) -> Value {
    array(8, items.len(), items.iter().map(|item| string(item)))
}

fn ints(items: &[i32]) -> Value {
    array(5, items.len(), items.iter().map(|item| item.to_le_bytes().to_vec()))
}

fn floats(items: &[f32]) -> Value {
    array(6, items.len(), items.iter().map(|item| item.to_le_bytes().to_vec()))
}

fn boolean(value: bool) -> Value {
    (7, vec![value.into()])
}

fn file(model: &str, fields: Vec<(&str, Value)>) -> File {
    let mut file = File(BTreeMap::new());
    file.set("tokenizer.ggml.model", text(model));
    for (key, value) in fields {
        file.set(&format!("tokenizer.ggml.{key}"), value);
    }
    file
}

fn load(file: &File) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    Tokenizer::from_pretrained(path).map_err(|error| error.to_string())
}

/// `<unk> <s> </s>`, the bytes of a crab, pieces, and a token that a user added.
const PIECES: [&str; 15] = [
    "<unk>", "<s>", "</s>", "<0xF0>", "<0x9F>", "<0xA6>", "<0x80>", "▁", "a", "b", "c", "ab", "bc",
    "▁ab", "<end>",
];

fn sentence_piece() -> File {
    let kinds = [2, 3, 3, 6, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 4];
    let scores = [0., 0., 0., 0., 0., 0., 0., -9., -8., -8., -8., -2., -1., -3., 0.];
    file(
        "llama",
        vec![
            ("tokens", texts(&PIECES)),
            ("token_type", ints(&kinds)),
            ("scores", floats(&scores)),
            ("bos_token_id", int(1)),
            ("eos_token_id", int(2)),
            ("unknown_token_id", int(0)),
        ],
    )
}

fn byte_level(pre: &str) -> File {
    let tokens = ["<|begin|>", "<|im_end|>", "a", "b", "1", "Ġ", "ab", "11", "Ġ1", "Ġab", "abb"];
    let kinds = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    file(
        "gpt2",
        vec![
            ("pre", text(pre)),
            ("tokens", texts(&tokens)),
            ("token_type", ints(&kinds)),
            ("merges", texts(&["a b", "1 1", "Ġ 1", "Ġ ab"])),
            ("bos_token_id", int(0)),
            ("eos_token_id", int(0)),
        ],
    )
}

#[test]
fn pieces_merge_by_score() {
    let tokenizer = load(&sentence_piece()).unwrap();
    // `bc` comes before `ab`, which comes before `▁ab`.
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 7, 8, 12]);
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [13]);
    assert_eq!(tokenizer.encode("ab🦀", false).unwrap(), [13, 3, 4, 5, 6]);
    assert_eq!(tokenizer.encode("a<end></s>", false).unwrap(), [7, 8, 14, 2]);
    assert_eq!(tokenizer.decode(&[1, 13, 13, 3, 4, 5, 6, 14], true).unwrap(), "ab ab🦀<end>");
    assert_eq!((tokenizer.unk_token_id(), tokenizer.eos_token_ids()), (Some(0), &[2][..]));

    let mut stream = tokenizer.decode_stream(true);
    let parts = [1, 13, 13, 3, 4, 5, 6].map(|id| stream.push(id).unwrap());
    let expected = [None, Some("ab"), Some(" ab"), None, None, None, Some("🦀")];
    assert_eq!(parts, expected.map(|part| part.map(str::to_owned)));
    // A byte that completes nothing spoils the character before it: that one is out already.
    let mut stream = tokenizer.decode_stream(true);
    let parts = [3, 4, 5, 6, 3, 8].map(|id| stream.push(id).unwrap());
    assert_eq!(parts.into_iter().flatten().collect::<String>(), "🦀\u{fffd}a");

    let mut plain = sentence_piece();
    plain.set("tokenizer.ggml.add_space_prefix", boolean(false));
    plain.set("tokenizer.ggml.add_bos_token", boolean(false));
    plain.set("tokenizer.ggml.add_eos_token", boolean(true));
    let tokenizer = load(&plain).unwrap();
    assert_eq!(tokenizer.encode("ab ab", true).unwrap(), [11, 13, 2]);
    assert_eq!(tokenizer.decode(&[13], true).unwrap(), " ab");
}

#[test]
fn a_token_of_sentencepiece_that_is_a_whole_text_is_refused() {
    let mut file = sentence_piece();
    let long = "a".repeat(400_000);
    let mut tokens = PIECES;
    tokens[13] = &long;
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    let found = load(&file).unwrap_err().to_string();
    assert!(found.contains("400000 bytes of token 13"), "{found}");
}

#[test]
fn the_pre_tokenizer_is_that_of_the_name() {
    let encode = |pre: &str| load(&byte_level(pre)).unwrap().encode("ab 11abb", true).unwrap();
    // Digits apart, in groups, or with the space before; `abb` as a whole, or by merges.
    assert_eq!(encode("smollm"), [6, 5, 4, 4, 6, 3]);
    assert_eq!(encode("qwen2"), [6, 5, 4, 4, 6, 3]);
    assert_eq!(encode("llama-bpe"), [0, 6, 5, 7, 10]);
    assert_eq!(encode("gpt-2"), [6, 5, 7, 6, 3]);
    assert_eq!(encode("default"), [6, 5, 7, 6, 3]);
    assert_eq!(encode("tekken"), [0, 6, 5, 4, 4, 10]);
    assert_eq!(encode("gpt-4o"), [6, 5, 7, 6, 3]);
    assert_eq!(encode("dbrx"), encode("gpt-4o"));
    let found = load(&byte_level("bloom")).unwrap_err();
    assert!(found.contains("`tokenizer.ggml.pre` is bloom") && found.contains("tekken"), "{found}");
}

#[test]
fn templates_and_ends_of_turns_are_read() {
    let mut file = byte_level("smollm");
    file.set("tokenizer.chat_template", text("{{ messages[0].content }}<|im_end|>"));
    let tokenizer = load(&file).unwrap();
    assert_eq!((tokenizer.eos_token_id(), tokenizer.eos_token_ids()), (Some(0), &[0, 1][..]));
    let apply = |tokenizer: &Tokenizer, options: &ChatOptions| {
        tokenizer.apply_chat_template(&[Message::user("a")], options).unwrap()
    };
    assert_eq!(apply(&tokenizer, &ChatOptions::new()), "a<|im_end|>");
    file.set("tokenizer.chat_templates", texts(&["tool_use"]));
    file.set("tokenizer.chat_template.tool_use", text("tools"));
    let tokenizer = load(&file).unwrap();
    assert_eq!(apply(&tokenizer, &ChatOptions::new()), "a<|im_end|>");
    assert_eq!(apply(&tokenizer, &ChatOptions::new().tools([1])), "tools");
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let mut byte_level = byte_level("llama-bpe");
    byte_level.set("tokenizer.chat_template", text("{{ bos_token }}<|im_end|>"));
    for file in [sentence_piece(), byte_level] {
        let tokenizer = load(&file).unwrap();
        let out = tempfile::tempdir().unwrap();
        tokenizer.save(out.path()).unwrap();
        let again = Tokenizer::from_pretrained(out.path()).unwrap();
        assert_eq!(again.encode("ab ab", true).unwrap(), tokenizer.encode("ab ab", true).unwrap());
        assert_eq!(again.eos_token_ids(), tokenizer.eos_token_ids());
        assert_eq!(again.bos_token_id(), tokenizer.bos_token_id());
        let source = |tokenizer: &Tokenizer| {
            tokenizer.chat_template().map(|template| template.source().to_owned())
        };
        assert_eq!(source(&again), source(&tokenizer));
        let config = fs::read_to_string(out.path().join("tokenizer_config.json")).unwrap();
        assert!(config.contains("PreTrainedTokenizerFast"));
    }
}

#[test]
fn metadata_that_cannot_be_used_is_named() {
    let changed = |key: &str, value: Option<Value>| {
        let mut file = sentence_piece();
        let key = format!("tokenizer.ggml.{key}");
        file.remove(&key);
        value.into_iter().for_each(|value| file.set(&key, value));
        load(&file).unwrap_err()
    };
    let cases = [
        ("model", Some(text("bert")), "`tokenizer.ggml.model` is bert"),
        ("model", None, "`tokenizer.ggml.model` is missing"),
        ("tokens", None, "`tokenizer.ggml.tokens` is missing"),
        ("tokens", Some(int(3)), "`tokenizer.ggml.tokens` is of another type"),
        ("scores", None, "`tokenizer.ggml.scores` is missing"),
        ("scores", Some(floats(&[1.])), "`tokenizer.ggml.scores` is 1 numbers"),
        ("token_type", Some(ints(&[1])), "`tokenizer.ggml.token_type` is 1 numbers"),
        ("bos_token_id", Some(int(99)), "`tokenizer.ggml.bos_token_id` is 99"),
        ("add_bos_token", Some(int(1)), "`tokenizer.ggml.add_bos_token` is of another type"),
    ];
    for (key, value, expected) in cases {
        let found = changed(key, value);
        assert!(found.contains(expected) && found.contains("model.gguf"), "{found}");
    }
    let mut file = byte_level("gpt-2");
    file.set("tokenizer.ggml.merges", texts(&["ab"]));
    assert!(load(&file).unwrap_err().contains("`tokenizer.ggml.merges`"));
    file.set("tokenizer.ggml.merges", texts(&["a x"]));
    assert!(load(&file).unwrap_err().contains("model.gguf"));
    file.remove("tokenizer.ggml.pre");
    assert!(load(&file).unwrap_err().contains("`tokenizer.ggml.pre` is missing"));
}
