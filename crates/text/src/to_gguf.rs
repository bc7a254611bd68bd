//! The tokenizer as metadata of a GGUF file: the inverse of [`gguf`](super::gguf), as llama.cpp's
//! converter writes it.

use crate::{
    error::TextError,
    files::TOKENIZER,
    gguf::{PRE_TOKENIZERS, pre_tokenizer},
    tokenizer::Tokenizer,
};
use burn_lora_io::gguf::{Entry, GgufWriter};
use serde_json::Value;
use std::collections::HashMap;

/// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of a token that no merge makes.
const UNMERGED: f32 = -1e9;

impl Tokenizer {
    /// Writes the tokenizer into the metadata of a GGUF file, for a model with `vocab_size` rows of
    /// embeddings: those without a token become unused ones.
    ///
    /// # Errors
    /// [`TextError::Field`] or [`TextError::Format`] if llama.cpp has no name for the pre-tokenizer, or
    /// the tokenizer is neither a byte-level nor a SentencePiece BPE, or has more tokens than the model.
    pub fn write_gguf(&self, vocab_size: usize, file: &mut GgufWriter) -> Result<(), TextError> {
        let files = self.files();
        let json = files.json(TOKENIZER)?;
        let model = &json["model"];
        let wrong = |field: &str, reason: &str| files.wrong(TOKENIZER, field, &json[field], reason);
        if model["type"] != "BPE" {
            let reason = "llama.cpp's files have byte-level and SentencePiece BPEs only";
            return Err(files.wrong(TOKENIZER, "model.type", &model["type"], reason));
        }
        if self.vocab_size() > vocab_size {
            let reason = format!("the model has rows for {vocab_size} tokens");
            let found = format!("{} tokens", self.vocab_size());
            return Err(files.wrong(TOKENIZER, "model.vocab", &found.into(), &reason));
        }
        let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; vocab_size];
        let ids = model["vocab"].as_object().into_iter().flatten();
        let ids = ids.filter_map(|(token, id)| Some((token, id.as_u64()? as usize)));
        for (token, id) in ids {
            tokens[id].clone_from(token);
            kinds[id] = NORMAL;
        }
        for (id, token) in self.added_tokens() {
            kinds[id as usize] = if token.special { CONTROL } else { USER_DEFINED };
            tokens[id as usize] = token.content;
        }
        let merges = merges(&model["merges"]);
        let mut set = |key: &str, value: Entry| file.set(format!("tokenizer.ggml.{key}"), value);
        let steps = steps(&json["pre_tokenizer"]);
        if steps.iter().any(|step| step.starts_with("bytes")) {
            let known = PRE_TOKENIZERS
                .iter()
                .find(|name| pre_tokenizer(name).is_some_and(|json| self::steps(&json) == steps));
            let Some(name) = known else {
                return Err(wrong(
                    "pre_tokenizer",
                    "llama.cpp's name of this pre-tokenizer is not known here: convert the saved model \
                     by llama.cpp's convert_hf_to_gguf.py",
                ));
            };
            set("model", Entry::Text("gpt2".into()));
            set("pre", Entry::Text((*name).into()));
            set("merges", Entry::Texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()));
        } else if model["byte_fallback"] == true {
            for (token, kind) in tokens.iter().zip(&mut kinds) {
                let byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
                if *kind == NORMAL && byte {
                    *kind = BYTE;
                }
                if model["unk_token"] == *token {
                    *kind = UNKNOWN;
                }
            }
            let prefix = json["normalizer"].to_string().contains("\"Prepend\"")
                || json["pre_tokenizer"]["prepend_scheme"].as_str().is_some_and(|s| s != "never");
            set("model", Entry::Text("llama".into()));
            set("pre", Entry::Text("default".into()));
            set("scores", Entry::F32s(scores(&tokens, &merges)));
            set("add_space_prefix", Entry::Bool(prefix));
        } else {
            return Err(wrong(
                "pre_tokenizer",
                "llama.cpp's files have byte-level and SentencePiece BPEs only",
            ));
        }
        set("tokens", Entry::Texts(tokens));
        set("token_type", Entry::I32s(kinds));
        let ids = [
            ("bos", self.bos_token_id()),
            ("eos", self.eos_token_id()),
            ("unknown", self.unk_token_id()),
            ("padding", self.pad_token_id()),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                set(&format!("{name}_token_id"), Entry::U32(id));
            }
        }
        // The end of a turn, where it is another token.
        let ends = self.eos_token_ids().iter().find(|id| Some(**id) != self.eos_token_id());
        if let Some(end) = ends {
            set("eot_token_id", Entry::U32(*end));
        }
        let around = self.encode("", true)?;
        let begins = self.bos_token_id().is_some_and(|bos| around.first() == Some(&bos));
        set("add_bos_token", Entry::Bool(begins));
        let ends = around.len() > usize::from(begins);
        set("add_eos_token", Entry::Bool(ends && around.last().copied() == self.eos_token_id()));
        if let Some(template) = self.chat_template() {
            file.set("tokenizer.chat_template", Entry::Text(template.source().to_owned()));
        }
        Ok(())
    }
}

/// Merges of either form: pairs, or texts with a space between the two.
fn merges(json: &Value) -> Vec<(&str, &str)> {
    json.as_array().into_iter().flatten().filter_map(pair).collect()
}

fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(parts) => Some((parts.first()?.as_str()?, parts.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Scores by which llama.cpp merges in the order of the merges.
fn scores(tokens: &[String], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks = HashMap::new();
    for (rank, (a, b)) in merges.iter().enumerate() {
        ranks.entry(format!("{a}{b}")).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(UNMERGED, |rank| -(*rank as f32))).collect()
}

/// What splits a text, as far as it makes a difference to tokens.
fn steps(json: &Value) -> Vec<String> {
    if let Some(steps) = json["pretokenizers"].as_array() {
        return steps.iter().flat_map(steps_of).collect();
    }
    steps_of(json)
}

fn steps_of(step: &Value) -> Vec<String> {
    match step["type"].as_str() {
        None => vec![],
        Some("Sequence") => steps(step),
        Some("Split") => {
            let pattern = &step["pattern"]["Regex"];
            vec![format!("split {pattern} {} {}", step["behavior"], step["invert"])]
        }
        Some("Digits") => vec![format!("digits {}", step["individual_digits"])],
        Some("ByteLevel") => {
            let regex = step["use_regex"].as_bool().unwrap_or(true);
            vec![format!("bytes {} {regex}", step["add_prefix_space"])]
        }
        Some(other) => vec![format!("{other} {step}")],
    }
}
