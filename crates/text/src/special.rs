//! Special tokens, and their places around a text.

use crate::{
    error::TextError,
    files::{CONFIG, Files, GENERATION, MODEL, SPECIAL, TOKENIZER},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokenizers::{AddedToken, PostProcessorWrapper};

/// Special tokens that have a name in templates.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Returns the special tokens by name. If the model has them only in its vocabulary, where merges
/// find them at best, they become added tokens.
pub fn tokens(
    files: &Files,
    model: &mut tokenizers::Tokenizer,
) -> Result<BTreeMap<String, String>, TextError> {
    let config = files.json(CONFIG)?;
    let map = files.json(SPECIAL)?;
    // As in transformers: such a map is older than the config's list of added tokens.
    let map_first = config["added_tokens_decoder"].is_null();
    add(files, &config, model)?;
    let mut tokens = BTreeMap::new();
    for name in NAMES {
        let sources = [(CONFIG, &config[name]), (SPECIAL, &map[name])];
        let [config, map] = sources;
        let (file, value) = if map_first && !map.1.is_null() { map } else { config };
        let content = match value {
            Value::Null => continue,
            Value::Object(fields) => fields.get("content").and_then(Value::as_str),
            other => other.as_str(),
        };
        let Some(content) = content else {
            let reason = "expected text or an object with `content`";
            return Err(files.wrong(file, name, value, reason));
        };
        let Some(id) = model.token_to_id(content) else {
            if name == "bos_token" || name == "eos_token" {
                let reason =
                    "tokenizer.json has no such token: add it there, or take the field out";
                return Err(files.wrong(file, name, value, reason));
            }
            continue;
        };
        if !model.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            model.add_special_tokens(&[AddedToken::from(content, true)]);
        }
        tokens.insert(name.to_owned(), content.to_owned());
    }
    Ok(tokens)
}

/// Adds the tokens that `tokenizer_config.json` lists and `tokenizer.json` does not have, or has with
/// other settings, as transformers does.
fn add(files: &Files, config: &Value, model: &mut tokenizers::Tokenizer) -> Result<(), TextError> {
    const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];
    let field = "added_tokens_decoder";
    let mut listed = vec![];
    for (number, token) in config[field].as_object().into_iter().flatten() {
        let reason = "expected numbers of tokens, each with an object with `content`";
        let wrong = || files.wrong(CONFIG, field, token, reason);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        listed.push((number, added(token, false).ok_or_else(wrong)?));
    }
    listed.sort_by_key(|(number, _)| *number);
    let known = model.get_added_tokens_decoder();
    listed.retain(|(number, token)| known.get(number) != Some(token));
    let (numbers, listed): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
    model.add_tokens(&listed);
    for (number, token) in numbers.into_iter().zip(listed) {
        let own = model.token_to_id(&token.content);
        if let Some(own) = own.filter(|own| *own != number) {
            burn_lora_io::warn!(
                "{}: token `{}` of `{field}` has number {number} there and {own} in the tokenizer",
                files.path(CONFIG).display(),
                burn_lora_io::escaped(&token.content),
            );
        }
    }
    for list in LISTS {
        for token in config[list].as_array().into_iter().flatten() {
            let reason = "expected texts or objects with `content`";
            let wrong = || files.wrong(CONFIG, list, token, reason);
            let token = added(token, true).ok_or_else(wrong)?;
            let known = model.get_added_tokens_decoder();
            if !known.values().any(|known| known.content == token.content) {
                model.add_tokens(&[token]);
            }
        }
    }
    Ok(())
}

/// Reads a token of the config, with its settings.
fn added(token: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = token.as_str() {
        return Some(AddedToken::from(content, special));
    }
    let flag = |name: &str, default| token[name].as_bool().unwrap_or(default);
    let content = token["content"].as_str()?;
    let special = flag("special", special);
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Returns the post-processor, which puts tokens around a text: that of `tokenizer.json`, else the
/// one described by the config.
pub fn post_processor(
    files: &Files,
    model: &tokenizers::Tokenizer,
    tokens: &BTreeMap<String, String>,
) -> Result<Option<PostProcessorWrapper>, TextError> {
    if let Some(post_processor) = model.get_post_processor() {
        if let Some(token) = undefined(&json!(post_processor)) {
            let reason = format!("the post-processor puts `{token}`, which it does not define");
            return Err(TextError::format(&files.path(TOKENIZER), reason));
        }
        return Ok(Some(post_processor.clone()));
    }
    let config = files.json(CONFIG)?;
    let added = |flag: &str, name: &str| {
        let token = tokens.get(name).filter(|_| config[flag] == true)?;
        Some((token.as_str(), model.token_to_id(token)?))
    };
    let template =
        template(added("add_bos_token", "bos_token"), added("add_eos_token", "eos_token"));
    let read = template.map(serde_json::from_value).transpose();
    read.map_err(|error| TextError::format(&files.path(TOKENIZER), error))
}

/// Returns a token that a template uses but `special_tokens` does not define: the crate panics on
/// it.
fn undefined(post_processor: &Value) -> Option<&str> {
    let steps = post_processor["processors"].as_array().into_iter().flatten();
    let pieces = ["single", "pair"].into_iter().filter_map(|name| post_processor[name].as_array());
    let mut named = pieces.flatten().filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    let own = named.find(|token| post_processor["special_tokens"].get(token).is_none());
    own.or_else(|| steps.into_iter().find_map(undefined))
}

/// Creates a post-processor for `tokenizer.json` that puts tokens before and after a text.
pub fn template(before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Option<Value> {
    if before.is_none() && after.is_none() {
        return None;
    }
    let around = |name: &str, number: u32| {
        let token = |token: Option<(&str, u32)>| {
            token.map(|(token, _)| json!({ "SpecialToken": { "id": token, "type_id": number } }))
        };
        let sequence = json!({ "Sequence": { "id": name, "type_id": number } });
        [token(before), Some(sequence), token(after)].into_iter().flatten()
    };
    let single: Vec<_> = around("A", 0).collect();
    let pair: Vec<_> = around("A", 0).chain(around("B", 1)).collect();
    let special = [before, after].into_iter().flatten().map(|(token, id)| {
        (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }))
    });
    Some(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": special.collect::<serde_json::Map<_, _>>(),
    }))
}

/// Returns all tokens that end a generation, the tokenizer's own first.
pub fn eos_token_ids(files: &Files, own: Option<u32>) -> Result<Vec<u32>, TextError> {
    let mut ids: Vec<u32> = own.into_iter().collect();
    for name in [GENERATION, MODEL] {
        let field = &files.json(name)?["eos_token_id"];
        let found = match field {
            Value::Null => &[],
            Value::Array(ids) => ids.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in found {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let reason = "expected the number of a token, or a list of them";
            let id = id.ok_or_else(|| files.wrong(name, "eos_token_id", field, reason))?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}
