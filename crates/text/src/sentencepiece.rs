//! Pieces of SentencePiece as a `tokenizer.json`: those of GGUF files and of `tokenizer.model`.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Types of pieces, also in `tokenizer.ggml.token_type`.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Maximal length of a piece in bytes. Those of real models have some dozens.
const PIECE: usize = 1024;

/// Error of a piece of more than 1,024 bytes.
pub const TOO_LONG: &str = "no vocabulary of SentencePiece has tokens of more than 1024 bytes";

/// Returns a token that is too long: merges are searched at each character of each token.
pub fn too_long(tokens: &[String]) -> Option<usize> {
    tokens.iter().position(|token| token.len() > PIECE)
}

/// Returns the ids by token.
pub fn vocabulary(tokens: &[String]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}

/// Returns the added tokens: control tokens, and those that a user defined.
pub fn added(tokens: &[String], kinds: &[i32]) -> Vec<Value> {
    let added = |(id, (token, kind)): (usize, (&String, &i32))| {
        let special = matches!(*kind, UNKNOWN | CONTROL);
        (special || *kind == USER_DEFINED).then(|| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            })
        })
    };
    tokens.iter().zip(kinds).enumerate().filter_map(added).collect()
}

/// Returns the model of a byte-pair encoding.
pub fn bpe(tokens: &[String], scores: &[f32], unknown: Option<&str>, byte_fallback: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
        "byte_fallback": byte_fallback, "ignore_merges": false,
        "vocab": vocabulary(tokens), "merges": merges(tokens, scores),
    })
}

/// Steps around the model.
pub struct Steps {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
}

/// Returns the steps that write spaces as `▁`. `prefix` puts one before a text; with `each` (what
/// transformers calls legacy) also before the texts that follow special tokens.
pub fn steps(prefix: bool, each: bool) -> Steps {
    let mut normalizers =
        vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let mut pre_tokenizer = Value::Null;
    if prefix && each {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
    } else if prefix {
        pre_tokenizer = json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false,
        });
    }
    Steps {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
    }
}

/// Derives the merges from pieces with scores: each two pieces whose concatenation is a piece, in
/// the order of transformers' converter: by score, then by length, then by id.
fn merges<'a>(tokens: &'a [String], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = vec![];
    for (token, score) in tokens.iter().zip(scores) {
        let first = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(a), Some(b)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, (left, right), (a, b)));
            }
        }
        merges[first..].sort_by_key(|(_, _, numbers)| *numbers);
    }
    let chars = |text: &str| text.chars().count();
    // Both sorts are stable, hence the order "then" above.
    merges.sort_by(|(score_a, a, _), (score_b, b, _)| {
        let lengths = |pair: &(&str, &str)| (chars(pair.0), chars(pair.1));
        score_b.total_cmp(score_a).then_with(|| lengths(b).cmp(&lengths(a)))
    });
    merges.into_iter().map(|(_, pair, _)| pair).collect()
}
