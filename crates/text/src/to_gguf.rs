//! The tokenizer as metadata of a GGUF file: the inverse of [`gguf`](super::gguf), as llama.cpp's
//! converter writes it.

use crate::{
    error::TextError,
    files::{GENERATION, TOKENIZER},
    pre_tokenizers::{PreTokenizer, is_byte_level},
    tokenizer::Tokenizer,
};
use burn_lora_io::{
    escaped,
    gguf::{Entry, GgufWriter},
};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Tokens that end a text in llama.cpp wherever they are (`llama-vocab.cpp`).
const ENDS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    MESSAGE_END,
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
];

const MESSAGE_END: &str = "<|eom_id|>";

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
        if is_byte_level(&json["pre_tokenizer"]) {
            if !is_nfc(&json["normalizer"]) {
                let reason =
                    "llama.cpp normalizes no text of byte-level BPEs: its tokens would be others";
                return Err(wrong("normalizer", reason));
            }
            let whole = model["ignore_merges"] == true;
            let known = PreTokenizer::of(&json["pre_tokenizer"], whole);
            let known = known.map_err(|reason| {
                let reason = format!(
                    "which pre-tokenizer of llama.cpp this is, is not known: {reason}. Convert the saved \
                     model by llama.cpp's convert_hf_to_gguf.py"
                );
                wrong("pre_tokenizer", &reason)
            })?;
            if known.ignore_merges != whole && self.has_unmade(model, &merges) {
                burn_lora_io::warn!(
                    "{}: `ignore_merges` is {whole}, and llama.cpp takes it as {} for `{}`: tokens that no \
                     merge makes are other ones there",
                    files.path(TOKENIZER).display(),
                    known.ignore_merges,
                    known.name()
                );
            }
            set("model", Entry::Text("gpt2".into()));
            set("pre", Entry::Text(known.name().into()));
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
            ("unknown", self.unk_token_id()),
            ("padding", self.pad_token_id()),
        ];
        let ids = ids.into_iter().filter_map(|(name, id)| Some((name, id?)));
        for (name, id) in ids.chain(self.ends(vocab_size)) {
            set(&format!("{name}_token_id"), Entry::U32(id));
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

    /// Tokens that end a text, by llama.cpp's names of their places: the tokenizer's own, the end of a turn, and
    /// that of a message.
    fn ends(&self, vocab_size: usize) -> Vec<(&'static str, u32)> {
        let turn = self.end_of_turn();
        let mut ids = self.eos_token_ids().to_vec();
        let own = ids.first().copied();
        let text = |id: u32| self.id_to_token(id).unwrap_or_default();
        let known = |id: u32| ENDS.contains(&&*text(id));
        // Those that llama.cpp finds by itself give way to others.
        let order =
            |id: u32| (Some(id) != own, Some(id) != turn, known(id), text(id) == MESSAGE_END);
        ids.sort_by_key(|id| order(*id));
        let named = |id: &u32| format!("{id} (`{}`)", escaped(&text(*id)));
        let (ids, beyond): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| (*id as usize) < vocab_size);
        let places = ["eos", "eot", "eom"];
        let more = ids.iter().skip(places.len()).filter(|id| !known(**id));
        let lost: Vec<_> = more.chain(&beyond).map(named).collect();
        if !lost.is_empty() {
            burn_lora_io::warn!(
                "{}: {} will not end a text in llama.cpp: its files have three places, for tokens of the model",
                self.files().path(GENERATION).display(),
                lost.join(", ")
            );
        }
        places.into_iter().zip(ids).collect()
    }

    /// Returns `true` if some words of a byte-level BPE are made by no merge.
    fn has_unmade(&self, model: &Value, merges: &[(&str, &str)]) -> bool {
        let added: HashSet<_> =
            self.added_tokens().into_iter().map(|(_, token)| token.content).collect();
        let made: HashSet<_> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
        let tokens = model["vocab"].as_object().into_iter().flatten().map(|(token, _)| token);
        let mut words = tokens.filter(|token| token.chars().nth(1).is_some());
        words.any(|token| !made.contains(token) && !added.contains(token))
    }
}

/// Returns `true` if a normalizer does nothing but NFC, which most text is in already.
fn is_nfc(json: &Value) -> bool {
    match json["type"].as_str() {
        None | Some("NFC") => true,
        Some("Sequence") => json["normalizers"].as_array().is_none_or(|all| all.iter().all(is_nfc)),
        Some(_) => false,
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
