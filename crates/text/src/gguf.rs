//! Conversion of a GGUF file's metadata to the files of a tokenizer.

use crate::{
    error::TextError,
    files::{CONFIG, Files, GENERATION, SPECIAL, TEMPLATE, TOKENIZER},
    pre_tokenizers::{self, PreTokenizer},
    sentencepiece::{self, vocabulary},
    special::template,
};
use burn_lora_io::gguf::{Gguf, Value as Metadata};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

/// End-of-turn tokens that old files do not declare; they count if the chat template writes them.
const TURN_ENDS: [&str; 2] = ["<|eot_id|>", "<|im_end|>"];

/// Converts the tokenizer of a GGUF file to the files of a folder.
pub fn files(path: &Path) -> Result<Files, TextError> {
    let reader = Reader { gguf: Gguf::open(path)? };
    let (model, name) = reader.text("model")?;
    match model {
        "gpt2" => reader.byte_level(),
        "llama" => reader.sentence_piece(),
        other => {
            let reason = "only byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`) are read; take \
                          the model's folder with tokenizer.json";
            Err(reader.wrong(&name, other, reason))
        }
    }
}

/// Parts of a tokenizer that differ between its kinds.
struct Kind {
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    add_bos: bool,
}

struct Reader {
    gguf: Gguf,
}

impl Reader {
    fn get<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Metadata) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, TextError> {
        let name = format!("tokenizer.ggml.{key}");
        let Some(value) = self.gguf.get(&name) else { return Ok(None) };
        let read = read(value);
        let wrong = || self.wrong(&name, "of another type", &format!("expected {expected}"));
        read.map(Some).ok_or_else(wrong)
    }

    fn wrong(&self, field: &str, found: &str, reason: &str) -> TextError {
        TextError::Field {
            path: self.gguf.path().to_owned(),
            field: field.into(),
            found: found.into(),
            reason: reason.into(),
        }
    }

    /// Returns a field, or the error that it is missing.
    fn there<T>(&self, key: &str, value: Option<T>) -> Result<T, TextError> {
        let reason = "the file has no tokenizer, or an old one: convert the model again";
        value.ok_or_else(|| self.wrong(&format!("tokenizer.ggml.{key}"), "missing", reason))
    }

    fn text(&self, key: &str) -> Result<(&str, String), TextError> {
        let text = self.there(key, self.get(key, Metadata::as_str, "text")?)?;
        Ok((text, format!("tokenizer.ggml.{key}")))
    }

    fn strings(&self, key: &str) -> Result<&[String], TextError> {
        self.there(key, self.get(key, Metadata::as_strings, "a list of texts")?)
    }

    fn tokens(&self) -> Result<&[String], TextError> {
        self.strings("tokens")
    }

    /// Returns the type of each token.
    fn kinds(&self) -> Result<Vec<i32>, TextError> {
        let count = self.tokens()?.len();
        let kinds = self.get("token_type", Metadata::as_i32s, "a list of integers")?;
        let kinds = kinds.unwrap_or_else(|| vec![1; count]);
        if kinds.len() != count {
            let found = format!("{} numbers", kinds.len());
            let reason = format!("there are {count} tokens");
            return Err(self.wrong("tokenizer.ggml.token_type", &found, &reason));
        }
        Ok(kinds)
    }

    /// Returns a special token and its id.
    fn special(&self, name: &str) -> Result<Option<(&str, u32)>, TextError> {
        let id = self.get(&format!("{name}_token_id"), Metadata::as_u64, "an integer")?;
        let tokens = self.tokens()?;
        // The largest id stands for none.
        let Some(id) = id.filter(|id| *id != u64::from(u32::MAX)) else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        let Some(token) = token else {
            let field = format!("tokenizer.ggml.{name}_token_id");
            let reason = format!("there are {} tokens", tokens.len());
            return Err(self.wrong(&field, &id.to_string(), &reason));
        };
        Ok(Some((token, id as u32)))
    }

    fn byte_level(&self) -> Result<Files, TextError> {
        let (name, field) = self.text("pre")?;
        let Some(pre_tokenizer) = PreTokenizer::named(name) else {
            let reason = format!(
                "this pre-tokenizer is not known ({} are): take the model's folder with tokenizer.json",
                pre_tokenizers::names()
            );
            return Err(self.wrong(&field, name, &reason));
        };
        let merges: Option<Vec<_>> =
            self.strings("merges")?.iter().map(|merge| merge.split_once(' ')).collect();
        let Some(merges) = merges else {
            let reason = "expected two tokens with a space between them in each";
            return Err(self.wrong("tokenizer.ggml.merges", "malformed", reason));
        };
        self.assemble(Kind {
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": pre_tokenizer.ignore_merges,
                "vocab": vocabulary(self.tokens()?), "merges": merges,
            }),
            normalizer: if pre_tokenizer.nfc { json!({ "type": "NFC" }) } else { Value::Null },
            pre_tokenizer: pre_tokenizer.json(),
            decoder: pre_tokenizers::bytes(true),
            add_bos: pre_tokenizer.add_bos,
        })
    }

    fn sentence_piece(&self) -> Result<Files, TextError> {
        let tokens = self.tokens()?;
        let scores = self.get("scores", Metadata::as_f32s, "a list of floats")?;
        let scores = self.there("scores", scores)?;
        if scores.len() != tokens.len() {
            let found = format!("{} numbers", scores.len());
            let reason = format!("there are {} tokens", tokens.len());
            return Err(self.wrong("tokenizer.ggml.scores", &found, &reason));
        }
        if let Some(at) = sentencepiece::too_long(tokens) {
            let found = format!("{} bytes of token {at}", tokens[at].len());
            return Err(self.wrong("tokenizer.ggml.tokens", &found, sentencepiece::TOO_LONG));
        }
        let prefix = self.get("add_space_prefix", Metadata::as_bool, "a boolean")?.unwrap_or(true);
        let unknown = self.special("unknown")?.map(|(token, _)| token);
        let steps = sentencepiece::steps(prefix, true);
        self.assemble(Kind {
            model: sentencepiece::bpe(tokens, scores, unknown, true),
            normalizer: steps.normalizer,
            pre_tokenizer: steps.pre_tokenizer,
            decoder: steps.decoder,
            add_bos: true,
        })
    }

    fn assemble(&self, kind: Kind) -> Result<Files, TextError> {
        let tokens = self.tokens()?;
        let kinds = self.kinds()?;
        let added = sentencepiece::added(tokens, &kinds);
        let flag = |key| self.get(key, Metadata::as_bool, "a boolean");
        let (bos, eos) = (self.special("bos")?, self.special("eos")?);
        let add_bos = flag("add_bos_token")?.unwrap_or(kind.add_bos);
        let add_eos = flag("add_eos_token")?.unwrap_or(false);
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": kind.normalizer, "pre_tokenizer": kind.pre_tokenizer,
            "post_processor": template(bos.filter(|_| add_bos), eos.filter(|_| add_eos)),
            "decoder": kind.decoder, "model": kind.model,
        });

        let mut special = Map::new();
        for (field, name) in
            [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        {
            if let Some((token, _)) = self.special(name)? {
                special.insert(format!("{field}_token"), json!(token));
            }
        }
        let mut config = special.clone();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));

        let mut bytes = BTreeMap::new();
        let path = self.gguf.path();
        let mut add = |name, json: Value| {
            let json = serde_json::to_vec(&json).map_err(|e| TextError::format(path, e))?;
            bytes.insert(name, json);
            Ok::<_, TextError>(())
        };
        add(TOKENIZER, tokenizer)?;
        add(GENERATION, json!({ "eos_token_id": self.eos_token_ids()? }))?;
        add(SPECIAL, special.into())?;
        let template = self.gguf.get("tokenizer.chat_template").and_then(Metadata::as_str);
        let named = self.named_templates();
        if !named.is_empty() {
            let default = template.map(|text| json!({ "name": "default", "template": text }));
            config.insert("chat_template".into(), default.into_iter().chain(named).collect());
        } else if let Some(template) = template {
            bytes.insert(TEMPLATE, template.into());
        }
        let config = serde_json::to_vec(&config).map_err(|e| TextError::format(path, e))?;
        bytes.insert(CONFIG, config);
        Ok(Files { origin: path.to_owned(), bytes, templates: BTreeMap::new() })
    }

    fn named_templates(&self) -> Vec<Value> {
        let names = self.gguf.get("tokenizer.chat_templates").and_then(Metadata::as_strings);
        let text = |name: &String| {
            let text = self.gguf.get(&format!("tokenizer.chat_template.{name}"))?.as_str()?;
            Some(json!({ "name": name, "template": text }))
        };
        names.unwrap_or_default().iter().filter_map(text).collect()
    }

    fn eos_token_ids(&self) -> Result<Vec<u32>, TextError> {
        let mut ids = vec![];
        for name in ["eos", "eot", "eom"] {
            ids.extend(self.special(name)?.map(|(_, id)| id));
        }
        let template = self.gguf.get("tokenizer.chat_template").and_then(Metadata::as_str);
        let (tokens, template) = (self.tokens()?, template.unwrap_or_default());
        for end in TURN_ENDS.into_iter().filter(|end| template.contains(end)) {
            ids.extend(tokens.iter().position(|token| token == end).map(|id| id as u32));
        }
        let mut seen = HashSet::new();
        ids.retain(|id| seen.insert(*id));
        Ok(ids)
    }
}
