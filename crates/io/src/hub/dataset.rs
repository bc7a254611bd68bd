//! Which files of a dataset's repository an id stands for: configurations and splits, as `datasets` finds them
//! (<https://huggingface.co/docs/hub/datasets-manual-configuration>).

use glob::{MatchOptions, Pattern};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The card, whose front matter names configurations.
const CARD: &str = "README.md";

/// Endings of files with data.
const DATA: [&str; 4] = [".parquet", ".jsonl", ".json", ".csv"];

/// The split that is taken if none is named.
const TRAIN: &str = "train";

/// Other names of the splits of a dataset.
const SPLITS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Front matter of a card.
#[derive(Deserialize)]
struct Card {
    configs: Option<Vec<Config>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "config_name", default = "unnamed")]
    name: String,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<DataFiles>,
}

/// The name of a configuration that has none.
fn unnamed() -> String {
    "default".into()
}

/// Patterns of the files of each split.
#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    /// All for training.
    Train(Patterns),
    Listed(Vec<Split>),
    Named(BTreeMap<String, Patterns>),
}

#[derive(Deserialize)]
struct Split {
    split: String,
    path: Patterns,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

impl Patterns {
    fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Several(patterns) => patterns,
        }
        .iter()
        .map(String::as_str)
    }
}

impl DataFiles {
    fn splits(&self) -> Vec<(&str, &Patterns)> {
        match self {
            Self::Train(patterns) => vec![(TRAIN, patterns)],
            Self::Listed(splits) => {
                splits.iter().map(|split| (split.split.as_str(), &split.path)).collect()
            }
            Self::Named(splits) => {
                splits.iter().map(|(split, patterns)| (split.as_str(), patterns)).collect()
            }
        }
    }
}

/// Returns the files of a part of a dataset: of a split (by default `train`), of a configuration, or of
/// `configuration:split`.
pub(super) fn files(
    part: Option<&str>,
    names: &BTreeSet<String>,
    get: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<Vec<String>, String> {
    let configs = if names.contains(CARD) { configs(&get(CARD)?)? } else { vec![] };
    let named = |name: &str| configs.iter().find(|config| config.name == name);
    let known = || crate::listed(configs.iter().map(|config| &config.name));
    let (config, split) = match part.map(|part| part.split_once(':').unwrap_or((part, ""))) {
        None => (None, TRAIN),
        Some((word, "")) => match named(word) {
            Some(config) => (Some(config), TRAIN),
            None => (None, word),
        },
        Some((_, _)) if configs.is_empty() => {
            return Err(format!("{CARD} names no configurations: leave it out"));
        }
        Some((word, split)) => match named(word) {
            Some(config) => (Some(config), split),
            None => return Err(format!("no configuration `{word}` is there: {}", known())),
        },
    };
    let default = || match &configs[..] {
        [only] => Some(only),
        all => all.iter().find(|config| config.default).or_else(|| named(&unnamed())),
    };
    match config.or_else(default) {
        Some(config) => config.files(split, names),
        None if configs.is_empty() => by_name(split, names.iter()),
        None => {
            let example = &configs[0].name;
            Err(format!(
                "it has several configurations, {}: add one to the id, as `:{example}` or \
                 `:{example}:{split}`",
                known()
            ))
        }
    }
}

/// Reads the configurations that a card names.
fn configs(card: &Path) -> Result<Vec<Config>, String> {
    let text = crate::read_to_string(card).map_err(|error| format!("{CARD}: {error}"))?;
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let matter = text.strip_prefix("---\n").and_then(|rest| Some(rest.split_once("\n---")?.0));
    // Without `configs` the rest may be as it likes.
    let Some(matter) = matter.filter(|matter| matter.contains("configs:")) else {
        return Ok(vec![]);
    };
    let card: Card = serde_saphyr::from_str(matter).map_err(|error| {
        let reason = error.to_string();
        let reason = crate::escaped(reason.lines().next().unwrap_or_default()).to_string();
        format!("the front matter of {CARD}: {reason}; name a file: `owner/name/FILE`")
    })?;
    Ok(card.configs.unwrap_or_default())
}

impl Config {
    fn files(&self, split: &str, names: &BTreeSet<String>) -> Result<Vec<String>, String> {
        let folder = self.data_dir.as_deref().unwrap_or_default();
        let folder = folder.trim_start_matches("./").trim_matches('/');
        let within = |name: &&String| {
            let rest = name.strip_prefix(folder);
            folder.is_empty() || rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let Some(files) = &self.data_files else {
            return by_name(split, names.iter().filter(within));
        };
        let splits = files.splits();
        let patterns = splits.iter().find(|(name, _)| *name == split);
        let patterns =
            patterns.or_else(|| splits.iter().find(|(name, _)| usual(name) == usual(split)));
        let Some((_, patterns)) = patterns else {
            let known = Vec::from_iter(splits.iter().map(|(split, _)| *split)).join(", ");
            return Err(format!("no split `{split}` is there: {known}"));
        };
        let mut found = vec![];
        for pattern in patterns.iter() {
            let path =
                if folder.is_empty() { String::new() } else { format!("{folder}/") } + pattern;
            let wrong = |reason: &str| format!("{CARD}: `{}` {reason}", crate::escaped(pattern));
            let glob = Pattern::new(path.trim_start_matches("./"))
                .map_err(|error| wrong(&format!("is no pattern: {error}")))?;
            // A file that is named is not looked for in folders below, and `*` hides what is hidden.
            let options = MatchOptions {
                require_literal_separator: true,
                require_literal_leading_dot: true,
                ..MatchOptions::default()
            };
            let matching: Vec<_> =
                names.iter().filter(|name| glob.matches_with(name, options)).collect();
            let (data, other): (Vec<_>, Vec<_>) =
                matching.into_iter().partition(|name| DATA.iter().any(|end| name.ends_with(end)));
            if data.is_empty() {
                return Err(match other.first() {
                    Some(file) => format!("{file}: Parquet, JSON, JSON Lines and CSV are read"),
                    None => wrong("matches no file"),
                });
            }
            // In the order of the patterns, and each file once.
            found.extend(
                data.into_iter().filter(|name| !found.contains(*name)).cloned().collect::<Vec<_>>(),
            );
        }
        Ok(found)
    }
}

/// The usual name of a split.
fn usual(split: &str) -> &str {
    let known = SPLITS.iter().find(|(_, others)| others.contains(&split));
    known.map_or(split, |(split, _)| split)
}

/// Files of a split: those whose path has its name in it, or, if no path names any split, all files
/// with data for `train`. The format with the most files is taken.
fn by_name<'a>(
    split: &str,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<Vec<String>, String> {
    let count = |end: &&str| names.clone().filter(|name| name.ends_with(*end)).count();
    let end = DATA.into_iter().rev().max_by_key(count).unwrap_or(DATA[0]);
    let described = |name: &str| name.starts_with('.') || name.ends_with("dataset_infos.json");
    let data: Vec<&String> =
        names.clone().filter(|name| name.ends_with(end) && !described(name)).collect();
    if data.is_empty() {
        return Err("no file with data is there (Parquet, JSON, JSON Lines, CSV)".into());
    }
    let split = usual(split);
    let named = |name: &str| {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
        let words: BTreeSet<_> = words.collect();
        let known =
            SPLITS.iter().find(|(_, others)| others.iter().any(|word| words.contains(*word)));
        known.map(|(split, _)| (*split).to_owned()).or_else(|| words.get(split).cloned())
    };
    let splits: BTreeSet<String> = data.iter().filter_map(|name| named(name)).collect();
    if splits.is_empty() && split == TRAIN {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a part of a dataset, whose card has this front matter.
    fn select(part: &str, card: &str, names: &[&str]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CARD);
        std::fs::write(&path, format!("---\n{card}\n---\n# A dataset\n")).unwrap();
        let mut names: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
        if !card.is_empty() {
            names.insert(CARD.into());
        }
        files((!part.is_empty()).then_some(part), &names, &|_| Ok(path.clone()))
    }

    #[test]
    fn splits_by_the_names_of_files() {
        let shards = [
            "README.md",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
            "dataset_infos.json",
        ];
        assert_eq!(select("", "license: mit", &shards).unwrap(), shards[1..3]);
        assert_eq!(select("train", "license: mit", &shards).unwrap(), shards[1..3]);
        for split in ["validation", "dev", "val"] {
            assert_eq!(select(split, "configs: null", &shards).unwrap(), shards[3..4]);
        }
        let error = select("test", "license: mit", &shards).unwrap_err();
        assert_eq!(error, "no split `test` is there: train, validation");
        // Without names of splits, all is for training.
        let plain = [".gitattributes", "alpaca.json"];
        assert_eq!(select("", "", &plain).unwrap(), plain[1..]);
        assert!(select("test", "", &plain).unwrap_err().contains("only train"));
        let own = ["train_sft.jsonl", "test_sft.jsonl"];
        assert_eq!(select("", "", &own).unwrap(), own[..1]);
        assert!(select("", "", &["x.bin"]).unwrap_err().contains("no file with data"));
        let error = select("main:train", "", &plain).unwrap_err();
        assert!(error.contains("names no configurations"), "{error}");
    }

    const MATHS: [&str; 4] =
        ["main/train-0.parquet", "main/test-0.parquet", "socratic/train-0.parquet", "x.txt"];

    #[test]
    fn configurations_of_a_card() {
        let card = "configs:\n\
            - config_name: main\n\
            \x20 data_files:\n\
            \x20 - split: train\n\
            \x20   path: main/train-*\n\
            \x20 - split: test\n\
            \x20   path: [main/test-0.parquet]\n\
            - config_name: socratic\n\
            \x20 data_files:\n\
            \x20   train: socratic/*.parquet\n\
            dataset_info: {}";
        let select = |part: &str, card: &str| select(part, card, &MATHS);
        for (part, file) in [
            ("main", 0),
            ("main:train", 0),
            ("main:training", 0),
            ("main:test", 1),
            ("socratic", 2),
            ("socratic:train", 2),
        ] {
            assert_eq!(select(part, card).unwrap(), MATHS[file..=file], "{part}");
        }
        for (part, reason) in [
            (
                "",
                "several configurations, `main`, `socratic`: add one to the id, as `:main` or `:main:train`",
            ),
            ("test", "several configurations"),
            ("other:test", "no configuration `other` is there: `main`, `socratic`"),
            ("socratic:test", "no split `test` is there: train"),
        ] {
            let error = select(part, card).unwrap_err();
            assert!(error.contains(reason), "{part}: {error}");
        }
        // One is marked, or has the name that says so, or is the only one.
        let marked =
            card.replace("- config_name: main\n", "- config_name: main\n  default: true\n");
        assert_eq!(select("", &marked).unwrap(), MATHS[..1]);
        assert_eq!(select("test", &marked).unwrap(), MATHS[1..2]);
        let named = card.replace("socratic\n", "default\n");
        assert_eq!(select("", &named).unwrap(), MATHS[2..3]);
        assert_eq!(
            select("", "configs:\n- data_files: main/*.parquet").unwrap(),
            [MATHS[1], MATHS[0]]
        );
        // Without patterns, a folder's files are known by their names.
        let folder = "configs:\n- config_name: main\n  data_dir: main";
        assert_eq!(select("test", folder).unwrap(), MATHS[1..2]);
        let folder = "configs:\n- data_dir: ./main/\n  data_files: '*-0.parquet'";
        assert_eq!(select("", folder).unwrap(), [MATHS[1], MATHS[0]]);
    }

    #[test]
    fn cards_that_are_wrong() {
        for (card, reason) in [
            ("configs: 3", "front matter of README.md"),
            ("configs:\n- data_files: x.txt", "x.txt: Parquet, JSON"),
            ("configs:\n- data_files: y-*", "README.md: `y-*` matches no file"),
            ("configs:\n- data_files: 'main/[x'", "is no pattern"),
            ("configs:\n- data_files: '*.parquet'", "`*.parquet` matches no file"),
        ] {
            let error = select("", card, &MATHS).unwrap_err();
            assert!(error.contains(reason), "{card}: {error}");
        }
    }
}
