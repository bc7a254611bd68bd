//! Tokenizers written into GGUF files: the names of pre-tokenizers, and the tokens that end a text.

use crate::common::folder;
use burn_lora_io::gguf::{Gguf, GgufWriter};
use burn_lora_text::Tokenizer;
use serde_json::{Value, json};

/// Endings of English words, as tokenizers have them.
const ENDINGS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const WORDS: &str = r"|[^\r\n\p{L}\p{N}]?\p{L}+";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words by case, with these endings.
fn by_case(endings: &str, digits: &str) -> String {
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let before = r"[^\r\n\p{L}\p{N}]?";
    let rest = REST.replace(r"[\r\n]*", r"[\r\n/]*");
    format!("{before}{upper}*{lower}+{endings}|{before}{upper}+{lower}*{endings}|{digits}{rest}")
}

fn split(regex: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false,
    })
}

fn bytes(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn sequence(steps: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// Writes a tokenizer into a file, and reads what it has.
fn written(
    edit: impl FnOnce(&mut Value),
    files: &[(&str, Value)],
) -> Result<(Gguf, Tokenizer), String> {
    let folder = folder(edit, files);
    let tokenizer = Tokenizer::from_pretrained(folder.path()).unwrap();
    let mut file = GgufWriter::new("llama");
    tokenizer.write_gguf(16, &mut file).map_err(|error| error.to_string())?;
    let path = folder.path().join("model.gguf");
    file.write::<std::io::Error>(&path, |_, _| Ok(()), |_| Ok(())).unwrap();
    Ok((Gguf::open(&path).unwrap(), Tokenizer::from_pretrained(&path).unwrap()))
}

fn pre(steps: Value, ignore_merges: bool) -> Result<String, String> {
    let edit = |json: &mut Value| {
        json["pre_tokenizer"] = steps;
        json["model"]["ignore_merges"] = ignore_merges.into();
        json["model"]["vocab"] =
            json!({ "<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "ab": 5 });
    };
    let (file, read) = written(edit, &[])?;
    assert_eq!(read.encode("abab<s>", false).unwrap(), [5, 5, 0]);
    Ok(file.get("tokenizer.ggml.pre").and_then(|name| name.as_str()).unwrap().to_owned())
}

#[test]
fn names_of_pre_tokenizers_are_found_by_what_they_do() {
    let (three, one) = (r"|\p{N}{1,3}", r"|\p{N}");
    let llama3 = format!("{ENDINGS}{WORDS}{three}{REST}");
    let qwen = format!("{ENDINGS}{WORDS}{one}{REST}");
    let cases = ENDINGS.replace("(?i:", "(?:").replace(
        "'s|'t|'re|'ve|'m|'ll|'d",
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]",
    );
    let gpt4o = by_case(&format!("{ENDINGS}?"), &three[1..]);
    let removed = json!({
        "type": "Split", "pattern": { "Regex": gpt4o }, "behavior": "Removed", "invert": true,
    });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    for (steps, ignore_merges, name) in [
        (vec![split(&llama3), bytes(false)], true, "llama-bpe"),
        (vec![split(&llama3), bytes(false)], false, "dbrx"),
        (vec![split(&qwen), bytes(false)], false, "qwen2"),
        // As GGUF files of llama.cpp have it.
        (vec![split(&qwen.replace(ENDINGS, &cases)), bytes(false)], false, "qwen2"),
        (vec![split(&qwen.replace(r"\r\n", "\r\n")), bytes(false)], false, "qwen2"),
        (vec![split(&by_case("", &one[1..])), bytes(false)], true, "tekken"),
        (vec![split(&gpt4o), bytes(false)], false, "gpt-4o"),
        // All of its tokens are made by merges.
        (vec![split(&gpt4o), bytes(false)], true, "gpt-4o"),
        (vec![removed, bytes(false)], false, "gpt-4o"),
        (vec![digits.clone(), bytes(true)], false, "smollm"),
        (vec![split(r"\p{N}"), bytes(true)], false, "smollm"),
        (vec![bytes(true)], false, "gpt-2"),
        (vec![split(gpt2), bytes(false)], false, "gpt-2"),
    ] {
        assert_eq!(pre(sequence(&steps), ignore_merges).unwrap(), name, "{steps:?}");
    }
    // Almost one of them; with a space before; in another order.
    for (steps, part) in [
        (vec![split(&qwen.replace("'m|", "")), bytes(false)], "'ve|'ll|'d"),
        (
            vec![json!({
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            })],
            "with a space before",
        ),
        (vec![digits, split(&llama3), bytes(false)], "these steps together"),
        (vec![json!({ "type": "Whitespace" }), bytes(true)], "Whitespace"),
    ] {
        let error = pre(sequence(&steps), false).unwrap_err();
        assert!(error.contains(part) && error.contains("tokenizer.json"), "{error}");
        assert!(error.contains("convert_hf_to_gguf.py") && error.contains("llama-bpe"), "{error}");
    }
}

#[test]
fn normalizers_that_llama_cpp_has_not_are_refused() {
    let with = |normalizer: Value| {
        let edit = |json: &mut Value| {
            json["pre_tokenizer"] = bytes(true);
            json["normalizer"] = normalizer;
        };
        written(edit, &[]).map(|_| ())
    };
    for normalizers in [json!([]), json!([{ "type": "NFC" }])] {
        with(json!({ "type": "Sequence", "normalizers": normalizers })).unwrap();
    }
    with(json!({ "type": "NFC" })).unwrap();
    let error = with(json!({ "type": "Lowercase" })).unwrap_err();
    assert!(error.contains("normalizer") && error.contains("Lowercase"), "{error}");
}

/// Names of tokens that end a text in llama.cpp, and their places in its files.
#[test]
fn all_tokens_that_end_a_text_are_written() {
    let tokens = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<stop>"];
    let ends = |own: Option<&str>, ids: Value, template: &str| {
        let edit = |json: &mut Value| {
            json["pre_tokenizer"] = bytes(true);
            let mut added = json["added_tokens"].as_array().unwrap().clone();
            let first = added[0].clone();
            added.extend(tokens.iter().enumerate().map(|(at, token)| {
                let mut entry = first.clone();
                (entry["id"], entry["content"]) = ((7 + at).into(), (*token).into());
                entry
            }));
            json["added_tokens"] = added.into();
        };
        let mut config = json!({ "chat_template": template });
        if let Some(own) = own {
            config["eos_token"] = own.into();
        }
        let generation = json!({ "eos_token_id": ids });
        let files = [("tokenizer_config.json", config), ("generation_config.json", generation)];
        let (file, read) = written(edit, &files).unwrap();
        let found = ["eos", "eot", "eom"].map(|name| {
            file.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(|id| id.as_u64())
        });
        (found, read.eos_token_ids().to_vec())
    };
    let template = "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}";
    // Llama 3.1: the tokenizer's own is the end of a turn.
    let (found, read) = ends(Some("<|eot_id|>"), json!([7, 9, 8]), template);
    assert_eq!((found, read), ([Some(8), Some(7), Some(9)], vec![8, 7, 9]));
    // Another is: it comes before the others.
    let (found, _) = ends(Some("<|end_of_text|>"), json!([7, 9, 8]), template);
    assert_eq!(found, [Some(7), Some(8), Some(9)]);
    // The tokenizer names none; one number; none at all.
    assert_eq!(ends(None, json!([10, 8]), "").0, [Some(10), Some(8), None]);
    assert_eq!(ends(None, json!(8), template).0, [Some(8), None, None]);
    assert_eq!(ends(None, Value::Null, template).0, [None; 3]);
    // Of four, one that llama.cpp knows by its name has no place; one that the model has not, neither.
    assert_eq!(ends(None, json!([7, 8, 9, 10]), template).0, [Some(7), Some(8), Some(10)]);
    assert_eq!(ends(None, json!([99, 10]), template).0, [Some(10), None, None]);
}

#[test]
fn an_adapter_brings_tokens_that_end_a_text() {
    let base = folder(|_| (), &[("generation_config.json", json!({ "eos_token_id": 1 }))]);
    let adapter = tempfile::tempdir().unwrap();
    let ends = |from: Tokenizer| from.eos_token_ids().to_vec();
    let load = || Tokenizer::from_adapter(adapter.path(), base.path()).unwrap();
    assert_eq!(ends(load()), [1]);
    let list = json!({ "eos_token_id": [1, 2] }).to_string();
    std::fs::write(adapter.path().join("generation_config.json"), list).unwrap();
    assert_eq!((ends(load()), load().is_changed()), (vec![1, 2], false));
    // The same by the adapter's own name of its base, and in a Modelfile.
    let settings = json!({ "base_model_name_or_path": base.path() }).to_string();
    std::fs::write(adapter.path().join("adapter_config.json"), settings).unwrap();
    let tokenizer = Tokenizer::from_pretrained(adapter.path()).unwrap();
    let modelfile = tokenizer.modelfile("model.gguf").unwrap();
    assert_eq!(ends(tokenizer), [1, 2]);
    for stop in ["</s>", "<pad>"] {
        assert!(modelfile.contains(&format!("PARAMETER stop \"{stop}\"")), "{modelfile}");
    }
}
