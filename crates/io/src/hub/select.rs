//! Which files of a repository are downloaded.

use super::id::{Id, Kind};
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

/// Endings of files with data.
const DATA: [&str; 4] = [".parquet", ".jsonl", ".json", ".csv"];

/// Other names of the splits of a dataset, as `datasets` knows them.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Returns the names of the files that an id stands for. `names` are those of the repository, and
/// `get` obtains one of them, since an index says which files follow.
pub(super) fn files(
    id: &Id<'_>,
    names: &BTreeSet<String>,
    get: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<Vec<String>, String> {
    if let Some(file) = id.file {
        let found = names.contains(file).then(|| vec![file.to_owned()]);
        return found.ok_or_else(|| format!("{file} is not there{}", near(file, names)));
    }
    match id.kind {
        Kind::Model => model(names, get),
        Kind::Dataset => data(id.split.unwrap_or("train"), names),
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

/// Files of a split: those whose path has its name in it, or, if no path names any split, all files
/// with data for `train`. The format with the most files is taken, as by `datasets`.
fn data(split: &str, names: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let count = |end: &&str| names.iter().filter(|name| name.ends_with(*end)).count();
    let end = DATA.into_iter().rev().max_by_key(count).unwrap_or(DATA[0]);
    let described = |name: &str| name.starts_with('.') || name.ends_with("dataset_infos.json");
    let data: Vec<&String> =
        names.iter().filter(|name| name.ends_with(end) && !described(name)).collect();
    if data.is_empty() {
        return Err("no file with data is there (Parquet, JSON, JSON Lines, CSV)".into());
    }
    let named = |name: &str| {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
        let words: BTreeSet<_> = words.collect();
        let known =
            SPLITS.iter().find(|(_, others)| others.iter().any(|word| words.contains(*word)));
        known.map(|(split, _)| (*split).to_owned()).or_else(|| words.get(split).cloned())
    };
    let split = SPLITS
        .iter()
        .find(|(_, others)| others.contains(&split))
        .map_or(split, |(split, _)| *split);
    let splits: BTreeSet<String> = data.iter().filter_map(|name| named(name)).collect();
    if splits.is_empty() && split == "train" {
        return Ok(data.into_iter().cloned().collect());
    }
    let files: Vec<String> =
        data.into_iter().filter(|name| named(name).as_deref() == Some(split)).cloned().collect();
    if files.is_empty() {
        let known = Vec::from_iter(splits).join(", ");
        let known = if known.is_empty() { "only train".to_owned() } else { known };
        return Err(format!("no split `{split}` is there: {known}"));
    }
    Ok(files)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn select(id: &str, names: &[&str]) -> Result<Vec<String>, String> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let id = Id::dataset(id).unwrap();
        files(&id, &names, &|name| Err(format!("{name} is not read")))
    }

    #[test]
    fn splits_of_a_dataset() {
        let shards = [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
            "dataset_infos.json",
        ];
        assert_eq!(select("a/b", &shards).unwrap(), shards[1..3]);
        assert_eq!(select("a/b:train", &shards).unwrap(), shards[1..3]);
        for split in ["validation", "dev", "val"] {
            assert_eq!(select(&format!("a/b:{split}"), &shards).unwrap(), shards[3..4]);
        }
        let error = select("a/b:test", &shards).unwrap_err();
        assert_eq!(error, "no split `test` is there: train, validation");
        // Without names of splits, all is for training.
        let plain = [".gitattributes", "alpaca.json"];
        assert_eq!(select("a/b", &plain).unwrap(), plain[1..]);
        assert!(select("a/b:test", &plain).unwrap_err().contains("only train"));
        let own = ["train_sft.jsonl", "test_sft.jsonl"];
        assert_eq!(select("a/b", &own).unwrap(), own[..1]);
        assert!(select("a/b", &["x.bin"]).unwrap_err().contains("no file with data"));
        assert_eq!(select("a/b/data/x.csv", &["data/x.csv"]).unwrap(), ["data/x.csv"]);
        assert!(select("a/b/y.csv", &["data/x.csv"]).unwrap_err().contains("data/x.csv"));
    }
}
