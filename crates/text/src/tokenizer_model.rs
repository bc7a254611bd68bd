//! Conversion of SentencePiece's `tokenizer.model` to a `tokenizer.json`, as transformers does it.

use crate::{
    error::TextError,
    files::{ADDED, CONFIG, Files, SENTENCE_PIECE, SPECIAL, TOKENIZER},
    sentencepiece::{self, Steps},
    special::template,
};
use prost::Message;
use serde_json::{Map, Value, json};

/// The parts of SentencePiece's `ModelProto` that a tokenizer consists of.
#[derive(Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, required, tag = "2")]
    trainer: Trainer,
    #[prost(message, required, tag = "3")]
    normalizer: Normalizer,
}

#[derive(Message)]
struct Piece {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad: Option<i32>,
}

#[derive(Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    characters: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// Type of a piece that stands for a byte.
const BYTE: i32 = 6;

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

/// Adds the `tokenizer.json` that a folder without one stands for.
pub fn convert(files: &mut Files) -> Result<(), TextError> {
    let path = files.path(SENTENCE_PIECE);
    let bytes = files.bytes.remove(SENTENCE_PIECE).unwrap_or_default();
    let wrong = |reason: &str| TextError::format(&path, reason);
    let none = |reason: &str| match is_tiktoken(&bytes) {
        true => wrong(
            "it is a vocabulary of tiktoken, not of SentencePiece: take the tokenizer.json of the \
             model on the hub, which has the rest of its tokenizer",
        ),
        false => wrong(&format!("no model of SentencePiece, or one that was cut off: {reason}")),
    };
    let model = Model::decode(&bytes[..]).map_err(|error| none(&error.to_string()))?;
    let (tokens, mut scores): (Vec<String>, Vec<f32>) =
        model.pieces.iter().map(|piece| (piece.text.clone(), piece.score)).unzip();
    if tokens.is_empty() {
        return Err(none("it has no pieces"));
    }
    if sentencepiece::too_long(&tokens).is_some() {
        return Err(wrong(sentencepiece::TOO_LONG));
    }
    // The defaults of SentencePiece's format.
    let kinds: Vec<i32> = model.pieces.iter().map(|piece| piece.kind.unwrap_or(1)).collect();
    let Model { trainer, normalizer, .. } = &model;
    let token = |id: Option<i32>, default: i32| {
        let id = usize::try_from(id.unwrap_or(default)).ok()?;
        Some((tokens.get(id)?.as_str(), id as u32))
    };
    let (unknown, bos, eos) = (token(trainer.unk, 0), token(trainer.bos, 1), token(trainer.eos, 2));
    let byte_fallback = trainer.byte_fallback.unwrap_or(false);
    let core = match trainer.model_type.unwrap_or(UNIGRAM) {
        UNIGRAM => {
            // The text `<0x41>` is not the byte: these pieces are found by their names only.
            let lowest = scores.iter().copied().fold(0.0, f32::min);
            for (score, kind) in scores.iter_mut().zip(&kinds) {
                if *kind == BYTE {
                    *score = lowest - 1000.0;
                }
            }
            let vocabulary: Vec<_> = tokens.iter().zip(&scores).collect();
            json!({
                "type": "Unigram", "unk_id": unknown.map(|(_, id)| id),
                "byte_fallback": byte_fallback, "vocab": vocabulary,
            })
        }
        BPE => sentencepiece::bpe(&tokens, &scores, unknown.map(|(token, _)| token), byte_fallback),
        _ => return Err(wrong("only models of the kinds `bpe` and `unigram` are read")),
    };
    let config = files.json(CONFIG)?;
    let legacy = config["legacy"].as_bool().unwrap_or(true);
    let prefix = config["add_prefix_space"].as_bool().or(normalizer.add_dummy_prefix);
    let Steps { normalizer: spaces, pre_tokenizer, decoder } =
        sentencepiece::steps(prefix.unwrap_or(true), legacy);
    let mut normalizers = vec![];
    if let Some(map) = normalizer.characters.as_ref().filter(|map| !map.is_empty()) {
        let map = base64::encode(map);
        normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        normalizers.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
        normalizers
            .push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
    }
    normalizers.push(spaces);

    let flag = |name: &str, default| config[name].as_bool().unwrap_or(default);
    let before = bos.filter(|_| flag("add_bos_token", true));
    let after = eos.filter(|_| flag("add_eos_token", false));
    let mut added = sentencepiece::added(&tokens, &kinds);
    added.extend(added_later(files, tokens.len())?);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": pre_tokenizer, "post_processor": template(before, after),
        "decoder": decoder, "model": core,
    });
    let json = |value: &Value| serde_json::to_vec(value).map_err(|e| TextError::format(&path, e));
    files.bytes.insert(TOKENIZER, json(&tokenizer)?);
    if !files.bytes.contains_key(CONFIG) && !files.bytes.contains_key(SPECIAL) {
        let pad = token(trainer.pad, -1);
        let names = [("bos", bos), ("eos", eos), ("unk", unknown), ("pad", pad)];
        let named = names
            .into_iter()
            .filter_map(|(name, token)| Some((format!("{name}_token"), json!(token?.0))));
        files.bytes.insert(SPECIAL, json(&named.collect::<Map<_, _>>().into())?);
    }
    Ok(())
}

/// Tokens of `added_tokens.json`, in the order of their ids, which follow those of the pieces.
fn added_later(files: &Files, count: usize) -> Result<Vec<Value>, TextError> {
    let path = files.path(ADDED);
    let Ok(bytes) = burn_lora_io::read(&path) else { return Ok(vec![]) };
    let added: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| TextError::format(&path, error))?;
    let mut tokens = vec![];
    for (token, id) in added {
        let id = id
            .as_u64()
            .ok_or_else(|| TextError::format(&path, format!("`{token}` has no number: {id}")))?;
        if id as usize >= count {
            tokens.push((id, token));
        }
    }
    tokens.sort();
    let special = files.json(SPECIAL)?.to_string();
    Ok(tokens
        .into_iter()
        .map(|(id, token)| {
            let named = special.contains(&json!(token).to_string());
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": !named, "special": named,
            })
        })
        .collect())
}

/// Returns `true` for lines of base64 and a number each.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words = std::str::from_utf8(line).ok().and_then(|line| line.trim_end().split_once(' '));
    words.is_some_and(|(token, id)| base64::decode(token).is_ok() && id.parse::<u32>().is_ok())
}
