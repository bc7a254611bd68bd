//! Tokens that are added to a tokenizer, and its files.

use crate::common::*;
use burn_lora_text::{TextError, Tokenizer};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;

/// Tokens of transformers' reference, with their ids.
fn reference(kind: &str) -> (Vec<String>, Vec<u32>) {
    let golden = golden();
    let pairs = golden[kind].as_array().unwrap().iter();
    let read =
        |pair: &Value| (pair[0].as_str().unwrap().to_owned(), pair[1].as_u64().unwrap() as u32);
    pairs.map(read).unzip()
}

fn golden() -> Value {
    let text = fs::read_to_string("../../testdata/added_tokens/ids.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

fn with_new(folder: &Path) -> Tokenizer {
    let mut tokenizer = Tokenizer::from_pretrained(folder).unwrap();
    for (kind, special) in [("tokens", false), ("special", true)] {
        let (names, ids) = reference(kind);
        let added = match special {
            false => tokenizer.add_tokens(names).unwrap(),
            true => tokenizer.add_special_tokens(names).unwrap(),
        };
        assert_eq!(added, ids, "{kind}");
    }
    tokenizer
}

fn check(tokenizer: &Tokenizer) {
    for case in golden()["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text}");
        let shown = tokenizer.decode(&ids, true).unwrap();
        assert_eq!(shown, case["shown"].as_str().unwrap(), "{text}");
    }
}

/// Saves a tokenizer, and returns the folder.
fn saved(tokenizer: &Tokenizer) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    folder
}

/// The reference tokenizer as transformers 4 wrote it: over many lines, with all lists of added tokens.
fn of_version_4(end: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| -> Value {
        let path = Path::new(GOLDEN).join(name);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let (tokenizer, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let listed = added.iter().map(|token| {
        let mut fields = token.clone();
        let id = fields.as_object_mut().unwrap().remove("id").unwrap();
        (id.to_string(), fields)
    });
    config["added_tokens_decoder"] = Value::Object(listed.collect());
    let named =
        added.iter().map(|token| (token["content"].as_str().unwrap().into(), token["id"].clone()));
    let files = [
        ("tokenizer.json", tokenizer.clone()),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", json!({ "eos_token": "<|im_end|>" })),
        ("added_tokens.json", Value::Object(named.collect())),
    ];
    for (name, json) in files {
        let text = serde_json::to_string_pretty(&json).unwrap() + "\n";
        fs::write(folder.path().join(name), text.replace('\n', end)).unwrap();
    }
    folder
}

#[test]
fn new_tokens_are_numbered_as_in_transformers() {
    let tokenizer = with_new(Path::new(GOLDEN));
    assert_eq!(golden()["before"], 286);
    check(&tokenizer);
    check(&Tokenizer::from_pretrained(saved(&tokenizer).path()).unwrap());
    assert!(tokenizer.is_added_token(tokenizer.token_to_id("<eot>").unwrap()));
}

#[test]
fn files_change_by_the_new_entries_alone() {
    for end in ["\n", "\r\n"] {
        let folder = of_version_4(end);
        let mut tokenizer = Tokenizer::from_pretrained(folder.path()).unwrap();
        assert_eq!(tokenizer.add_tokens(["<tool>"]).unwrap(), [286]);
        assert_eq!(tokenizer.add_special_tokens(["<eot>"]).unwrap(), [287]);
        let new = saved(&tokenizer);
        // In the order of the file, which is the alphabet's.
        let entry = |id: Option<u32>, token: &str| {
            let special = token == "<eot>";
            let id = id.map(|id| format!("\"id\": {id},|")).unwrap_or_default();
            let fields = format!(
                "|\"content\": \"{token}\",|{id}\"lstrip\": false,|\"normalized\": {},|\
                 \"rstrip\": false,|\"single_word\": false,|\"special\": {special}",
                !special
            );
            format!("{{{}{end}    }}", fields.replace('|', &format!("{end}      ")))
        };
        let tokens = [(286, "<tool>"), (287, "<eot>")];
        let in_list = tokens.map(|(id, token)| format!(",{end}    {}", entry(Some(id), token)));
        let in_decoder =
            tokens.map(|(id, token)| format!(",{end}    \"{id}\": {}", entry(None, token)));
        let in_map = tokens.map(|(id, token)| format!(",{end}  \"{token}\": {id}"));
        for (name, entries) in [
            ("tokenizer.json", in_list.concat()),
            ("tokenizer_config.json", in_decoder.concat()),
            ("added_tokens.json", in_map.concat()),
            ("special_tokens_map.json", String::new()),
        ] {
            let read = |folder: &TempDir| fs::read_to_string(folder.path().join(name)).unwrap();
            let (before, after) = (read(&folder), read(&new));
            assert!(after.contains(&entries), "{name}: {after}");
            assert!(after.replacen(&entries, "", 1) == before, "{name}: {after}");
        }
        let again = Tokenizer::from_pretrained(new.path()).unwrap();
        assert_eq!(again.encode("<tool><eot>", false).unwrap(), [286, 287]);
    }
}

#[test]
fn one_line_stays_one_line() {
    let before = fs::read_to_string(Path::new(GOLDEN).join("tokenizer.json")).unwrap();
    let mut tokenizer = Tokenizer::from_pretrained(GOLDEN).unwrap();
    tokenizer.add_tokens(["\"<a>\"\n"]).unwrap();
    let after = fs::read_to_string(saved(&tokenizer).path().join("tokenizer.json")).unwrap();
    let entry = ",{\"id\":286,\"content\":\"\\\"<a>\\\"\\n\",\"single_word\":false,\"lstrip\":false,\
                 \"rstrip\":false,\"normalized\":true,\"special\":false}";
    assert_eq!(after.replacen(entry, "", 1), before);
    assert_ne!(after, before);
}

#[test]
fn tokens_that_are_there_keep_their_numbers() {
    let mut tokenizer = load(&folder(|_| (), &[]));
    assert_eq!(tokenizer.add_tokens(["</s>", "ab", "new", "new"]).unwrap(), [1, 5, 7, 7]);
    // One of the vocabulary is from now on a token wherever it stands, and special on demand only.
    assert!(tokenizer.is_added_token(5));
    assert_eq!(tokenizer.decode(&[5, 1], true).unwrap(), "ab");
    assert_eq!(tokenizer.add_special_tokens(["ab", "new"]).unwrap(), [5, 7]);
    assert_eq!(tokenizer.decode(&[5, 7, 3], true).unwrap(), "a");
    let saved = saved(&tokenizer);
    let again = Tokenizer::from_pretrained(saved.path()).unwrap();
    assert_eq!(again.decode(&[5, 7, 3], true).unwrap(), "a");
    let json: Value =
        serde_json::from_slice(&fs::read(saved.path().join("tokenizer.json")).unwrap()).unwrap();
    let ids = json["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].clone());
    assert_eq!(ids.collect::<Value>(), json!([0, 1, 2, 5, 7]));

    // Nothing new leaves the bytes alone.
    let before = load(&folder(|_| (), &[]));
    let mut after = before.clone();
    assert_eq!(after.add_tokens(["<s>"]).unwrap(), [0]);
    let [before, after] = [before, after].map(|tokenizer| {
        let folder = self::saved(&tokenizer);
        fs::read(folder.path().join("tokenizer.json")).unwrap()
    });
    assert_eq!(before, after);
}

#[test]
fn lists_that_are_empty_or_missing_are_made() {
    for (missing, lines) in [(false, false), (true, false), (false, true), (true, true)] {
        let edit = |tokenizer: &mut Value| match missing {
            true => _ = tokenizer.as_object_mut().unwrap().remove("added_tokens"),
            false => tokenizer["added_tokens"] = json!([]),
        };
        let folder =
            folder(edit, &[("tokenizer_config.json", json!({ "added_tokens_decoder": {} }))]);
        if lines {
            for name in ["tokenizer.json", "tokenizer_config.json"] {
                let path = folder.path().join(name);
                let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                fs::write(path, serde_json::to_string_pretty(&json).unwrap()).unwrap();
            }
        }
        let mut tokenizer = load(&folder);
        assert_eq!(tokenizer.add_tokens(["x", "y"]).unwrap(), [7, 8]);
        let saved = saved(&tokenizer);
        let again = Tokenizer::from_pretrained(saved.path()).unwrap();
        assert_eq!(again.encode("axy", false).unwrap(), [3, 7, 8]);
        let text = fs::read_to_string(saved.path().join("tokenizer_config.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["added_tokens_decoder"]["8"]["content"], "y");
        if lines {
            // In another order.
            let lines = |text: &str| {
                let mut lines: Vec<_> =
                    text.lines().map(|line| line.trim_end_matches(',').to_owned()).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&text), lines(&serde_json::to_string_pretty(&json).unwrap()));
        }
    }
}

#[test]
fn tokens_that_the_config_alone_has_keep_their_numbers() {
    let own = json!({ "content": "<own>", "special": true });
    let config = json!({ "added_tokens_decoder": { "7": own } });
    let mut tokenizer = load(&folder(|_| (), &[("tokenizer_config.json", config)]));
    assert_eq!(tokenizer.token_to_id("<own>"), Some(7));
    assert_eq!(tokenizer.add_tokens(["<new>"]).unwrap(), [8]);
    let again = Tokenizer::from_pretrained(saved(&tokenizer).path()).unwrap();
    assert_eq!(again.encode("<own><new>", false).unwrap(), [7, 8]);
}

#[test]
fn what_cannot_be_added_is_refused() {
    let mut tokenizer = load(&folder(|_| (), &[]));
    let error = tokenizer.add_tokens(["<a>", ""]).unwrap_err();
    assert!(matches!(error, TextError::Tokenizer { .. }), "{error}");
    assert_eq!(tokenizer.token_to_id("<a>"), None);

    let gap = |tokenizer: &mut Value| tokenizer["model"]["vocab"]["ab"] = json!(7);
    let mut tokenizer = load(&folder(gap, &[]));
    let error = tokenizer.add_tokens(["<a>"]).unwrap_err().to_string();
    assert!(error.contains("gaps") && error.contains("`ab`"), "{error}");
}

#[test]
fn converted_tokenizers_are_saved_with_their_new_tokens() {
    let mut tokenizer = Tokenizer::from_pretrained("../../testdata/sentencepiece/llama").unwrap();
    let size = tokenizer.vocab_size() as u32;
    assert_eq!(tokenizer.add_special_tokens(["<eot>"]).unwrap(), [size]);
    let again = Tokenizer::from_pretrained(saved(&tokenizer).path()).unwrap();
    let [before, after] = [tokenizer, again].map(|t| t.encode("hello<eot> world", true).unwrap());
    assert!(before.contains(&size));
    assert_eq!(before, after);
}

/// Adds the same tokens in Python, and compares with the saved folder.
const SCRIPT: &str = r#"
import json, sys
from transformers import AutoTokenizer
before, after, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
mine, theirs = AutoTokenizer.from_pretrained(after), AutoTokenizer.from_pretrained(before)
theirs.add_tokens(["<tool>", " hello"])
theirs.add_tokens(["<eot>"], special_tokens=True)
assert len(mine) == len(theirs), (len(mine), len(theirs))
for text in texts:
    a, b = mine.encode(text), theirs.encode(text)
    assert a == b, (text, a, b)
    a, b = mine.decode(a, skip_special_tokens=True), theirs.decode(b, skip_special_tokens=True)
    assert a == b, (text, a, b)
"#;

#[test]
#[ignore = "needs BURN_LORA_PYTHON, a Python with transformers"]
fn transformers_reads_the_saved_files() {
    let python = std::env::var("BURN_LORA_PYTHON").expect("BURN_LORA_PYTHON names a Python");
    let old = of_version_4("\n");
    let mut folders = vec![old.path().to_owned(), GOLDEN.into()];
    folders.extend(["../../testdata/quickstart/model".into()]);
    // A tokenizer.model as this library converts it.
    let converted =
        saved(&Tokenizer::from_pretrained("../../testdata/sentencepiece/llama").unwrap());
    folders.push(converted.path().to_owned());
    let texts = json!(["hello world", "say hello<tool> x<eot>", "<eot>hello hello <tool>\n"]);
    for folder in folders {
        let mut tokenizer = Tokenizer::from_pretrained(&folder).unwrap();
        tokenizer.add_tokens(["<tool>", " hello"]).unwrap();
        tokenizer.add_special_tokens(["<eot>"]).unwrap();
        let new = saved(&tokenizer);
        let mut command = Command::new(&python);
        command.arg("-c").arg(SCRIPT).arg(&folder).arg(new.path()).arg(texts.to_string());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {errors}", folder.display());
    }
}
