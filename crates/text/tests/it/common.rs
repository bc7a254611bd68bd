//! What the tests of this crate share.

#[path = "../../../../tests/common/models.rs"]
mod models;
pub use models::models;

use burn_lora_text::Tokenizer;
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

pub const GOLDEN: &str = "../../testdata/tokenizer";

/// A folder with a small vocabulary, `tokenizer.json` changed by `edit`, and other files.
pub fn folder(edit: impl FnOnce(&mut Value), files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let token = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let mut tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [token(0, "<s>"), token(1, "</s>"), token(2, "<pad>")],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": {
            "type": "BPE",
            "vocab": { "<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "ab": 5, "<unk>": 6 },
            "merges": [["a", "b"]],
        },
    });
    edit(&mut tokenizer);
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (name, json) in files {
        let text = json.as_str().map_or_else(|| json.to_string(), str::to_owned);
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

pub fn load(folder: &TempDir) -> Tokenizer {
    Tokenizer::from_pretrained(folder.path()).unwrap()
}

pub fn error(folder: &TempDir) -> String {
    Tokenizer::from_pretrained(folder.path()).unwrap_err().to_string()
}
