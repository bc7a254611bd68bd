//! Which files of a repository are downloaded.

use super::{
    dataset,
    id::{Id, Kind},
};
use crate::{
    base::ADAPTER,
    shards::{INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE, read_index},
};
use std::{collections::BTreeSet, path::PathBuf};

/// File of a model's settings.
const MODEL: &str = "config.json";

/// Files beside the weights of a model or an adapter.
pub(super) const FILES: [&str; 10] = [
    MODEL,
    ADAPTER,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
];

/// Files of the weights in transformers' order: a single one, or an index of shards.
const WEIGHTS: [(&str, &str); 2] = [(SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)];

/// Files of an adapter's tensors in PEFT's order.
const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Returns the names of the files that an id stands for. `names` are those of the repository, and
/// `get` obtains one of them, since an index says which files follow.
pub(super) fn files(
    id: &Id,
    names: &BTreeSet<String>,
    get: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<Vec<String>, String> {
    if let Some(file) = &id.file {
        let found = names.contains(file).then(|| vec![file.to_owned()]);
        return found.ok_or_else(|| format!("{file} is not there{}", near(file, names)));
    }
    match id.kind {
        Kind::Model => model(names, get),
        Kind::Dataset => dataset::files(id.part.as_deref(), names, get),
    }
}

/// Returns `true` for a file with weights of a model, but not for one with the tensors of an adapter.
pub(super) fn is_weights(name: &str) -> bool {
    let ends = [".safetensors", ".bin"].iter().any(|end| name.ends_with(end));
    ends && !TENSORS.contains(&name)
}

fn model(
    names: &BTreeSet<String>,
    get: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<Vec<String>, String> {
    let has = |name: &str| names.contains(name);
    let mut wanted: Vec<String> =
        FILES.into_iter().filter(|file| has(file)).map(str::to_owned).collect();
    wanted.extend(names.iter().filter(|name| is_template(name)).cloned());
    // An adapter's repository may have the settings of its base, but not its weights.
    let adapter = TENSORS.into_iter().find(|file| has(file) && has(ADAPTER));
    if let Some(tensors) = adapter {
        wanted.push(tensors.to_owned());
    } else if !has(MODEL) {
        let gguf: Vec<_> = names.iter().filter(|name| name.ends_with(".gguf")).cloned().collect();
        return Err(match gguf.first() {
            Some(_) => format!(
                "{MODEL} is not there; there are GGUF files: add /FILE to the id ({})",
                crate::listed(&gguf)
            ),
            None => format!("neither {MODEL} nor {ADAPTER} with tensors is there"),
        });
    }
    let found = WEIGHTS.into_iter().find(|(single, index)| has(single) || has(index));
    match found {
        Some((single, _)) if has(single) => wanted.push(single.to_owned()),
        Some((_, index)) => {
            let shards = read_index(&get(index)?).map_err(|error| error.to_string())?;
            wanted.push(index.to_owned());
            wanted.extend(shards.into_keys());
        }
        None if adapter.is_some() => {}
        None => {
            return Err(format!(
                "neither {SINGLE} nor {INDEX}, {TORCH_SINGLE} or its index is there: download \
                 another format yourself"
            ));
        }
    }
    Ok(wanted)
}

/// Returns `true` if a file is one of several chat templates.
fn is_template(name: &str) -> bool {
    let file = name.strip_prefix("additional_chat_templates/");
    file.is_some_and(|file| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        file.ends_with(".jinja") && !file.starts_with('.') && file.chars().all(plain)
    })
}

/// Names with the same ending, for an error.
fn near(file: &str, names: &BTreeSet<String>) -> String {
    let end = file.rsplit_once('.').map_or("", |(_, end)| end);
    let same: Vec<String> = names.iter().filter(|name| name.ends_with(end)).cloned().collect();
    if same.is_empty() { String::new() } else { format!("; there are {}", crate::listed(&same)) }
}
