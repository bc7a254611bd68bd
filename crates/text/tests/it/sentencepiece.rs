//! `tokenizer.model` without a `tokenizer.json`, against SentencePiece itself.

use crate::common::*;
use burn_lora_text::Tokenizer;
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

const GOLDEN: &str = "../../testdata/sentencepiece";

/// A folder with a golden model and other files.
fn copy(model: &str, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(Path::new(GOLDEN).join(model).join("tokenizer.model")).unwrap();
    fs::write(folder.path().join("tokenizer.model"), bytes).unwrap();
    for (name, json) in files {
        fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    folder
}

#[test]
fn ids_are_those_of_sentencepiece() {
    for model in ["llama", "gemma", "unigram", "unigram_bytes"] {
        let folder = Path::new(GOLDEN).join(model);
        let tokenizer = Tokenizer::from_pretrained(&folder).unwrap();
        let cases: Vec<(String, Vec<u32>, String)> =
            serde_json::from_slice(&fs::read(folder.join("ids.json")).unwrap()).unwrap();
        assert!(cases.len() > 15);
        for (text, ids, decoded) in cases {
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{model}: {text:?}");
            let own = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(own, decoded.replace(" ⁇ ", "<unk>"), "{model}: {text:?}");
        }
    }
}

#[test]
fn special_tokens_are_those_of_the_model_or_of_the_folder() {
    let tokenizer = Tokenizer::from_pretrained(Path::new(GOLDEN).join("gemma")).unwrap();
    assert_eq!(tokenizer.bos_token_id(), Some(2));
    assert_eq!(tokenizer.eos_token_ids(), [1]);
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 2);

    let config = |fields: Value| copy("llama", &[("tokenizer_config.json", fields)]);
    let folder =
        config(json!({ "add_bos_token": false, "add_eos_token": true, "eos_token": "</s>" }));
    let ids = load(&folder).encode("a", true).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (261, 2));
    // As in transformers: what follows a special token begins with a space, unless `legacy` is off.
    let with = |legacy: Value| {
        let folder = config(json!({ "legacy": legacy, "bos_token": "<s>", "eos_token": "</s>" }));
        load(&folder).encode("</s>a", false).unwrap()
    };
    assert_eq!(with(json!(null)), with(json!(true)));
    assert_ne!(with(json!(null)), with(json!(false)));
    assert_eq!(with(json!(null))[..2], [2, 261]);
}

#[test]
fn tokens_added_later_have_their_ids() {
    let added = json!({ "<|im_end|>": 701, "<pad>": 700 });
    let special = json!({ "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>" });
    let folder =
        copy("llama", &[("added_tokens.json", added), ("special_tokens_map.json", special)]);
    let tokenizer = load(&folder);
    assert_eq!(tokenizer.vocab_size(), 702);
    assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap(), [701]);
    assert_eq!(tokenizer.pad_token_id(), Some(700));

    // Saved, it is a tokenizer.json.
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path()).unwrap();
    let saved = load(&out);
    let text = "naïve  text<|im_end|> 日本";
    assert_eq!(saved.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
}

#[test]
fn other_files_of_this_name_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.model");
    let bytes = fs::read(Path::new(GOLDEN).join("llama/tokenizer.model")).unwrap();
    for (bytes, part) in [
        (&b"IQ== 0\nIg== 1\n"[..], "vocabulary of tiktoken"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no model of SentencePiece"),
        (b"", "no model of SentencePiece"),
        (&bytes[..bytes.len() / 2], "no model of SentencePiece"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = error(&folder);
        assert!(error.contains("tokenizer.model") && error.contains(part), "{error}");
    }
    fs::remove_file(path).unwrap();
    assert!(error(&folder).contains("neither tokenizer.json nor tokenizer.model"));
}

/// Written into GGUF and read again, a tokenizer has the same ids.
#[test]
fn gguf_keeps_the_ids() {
    use burn_lora_io::gguf::GgufWriter;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.gguf");
    let written = |tokenizer: &Tokenizer, rows: usize| {
        let mut file = GgufWriter::new("llama");
        tokenizer.write_gguf(rows, &mut file)?;
        file.write::<std::io::Error>(&path, |_, _| Ok(()), |_| Ok(())).unwrap();
        Tokenizer::from_pretrained(&path)
    };
    for model in ["llama", "gemma"] {
        let tokenizer = Tokenizer::from_pretrained(Path::new(GOLDEN).join(model)).unwrap();
        let read = written(&tokenizer, 704).unwrap();
        let cases: Vec<(String, Vec<u32>, String)> = serde_json::from_slice(
            &fs::read(Path::new(GOLDEN).join(model).join("ids.json")).unwrap(),
        )
        .unwrap();
        for (text, ids, _) in cases {
            assert_eq!(read.encode(&text, false).unwrap(), ids, "{model}: {text:?}");
            assert_eq!(read.encode(&text, true).unwrap(), tokenizer.encode(&text, true).unwrap());
        }
        assert_eq!((read.vocab_size(), read.eos_token_ids()), (704, tokenizer.eos_token_ids()));
    }
    let unigram = Tokenizer::from_pretrained(Path::new(GOLDEN).join("unigram")).unwrap();
    let error = written(&unigram, 500).unwrap_err().to_string();
    assert!(error.contains("BPEs only"), "{error}");
}
