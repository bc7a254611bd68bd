//! Ids of repositories on the hub.

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// What an id names on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub kind: Kind,
    /// `owner/name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A file in the repository.
    pub file: Option<String>,
    /// A part of a dataset: a split, such as `train`, a configuration, or both, `configuration:split`.
    pub part: Option<String>,
}

impl Id {
    /// Parses `owner/name` or `owner/name@revision`, for a GGUF file with its name after a `/`;
    /// `None` for what can only be a path.
    pub fn model(id: &str) -> Option<Self> {
        let found = Self::parse(id, Kind::Model)?;
        let gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf");
        (!gguf(&found.name) && found.file.as_deref().is_none_or(gguf)).then_some(found)
    }

    /// Parses `owner/name`, `owner/name@revision`, each with `/file` or `:part` after it; `None`
    /// for what can only be a path.
    pub fn dataset(id: &str) -> Option<Self> {
        let (id, part) = match id.split_once(':') {
            Some((id, part)) => (id, Some(part)),
            None => (id, None),
        };
        let found = Self::parse(id, Kind::Dataset)?;
        // `data/train.jsonl` is a file that is missing.
        let path =
            [".json", ".jsonl", ".csv", ".parquet"].iter().any(|end| found.name.ends_with(end));
        let words = |part: &str| part.split(':').count() < 3 && part.split(':').all(is_word);
        let fits = part.is_none_or(|part| words(part) && found.file.is_none());
        (fits && !path).then(|| Self { part: part.map(str::to_owned), ..found })
    }

    fn parse(id: &str, kind: Kind) -> Option<Self> {
        let (owner, rest) = id.split_once('/')?;
        // The id becomes folder names of the cache: it must not lead out of it.
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let name = &id[..owner.len() + 1 + end];
        let (revision, file) = match rest[end..].strip_prefix('@') {
            None => ("main", rest[end..].strip_prefix('/')),
            // A revision may have slashes, too: what ends as a file does is one.
            Some(rest) => match rest.rsplit_once('/') {
                Some((revision, file)) if file.contains('.') => (revision, Some(file)),
                _ => (rest, None),
            },
        };
        let words = [owner, &rest[..end]].into_iter().chain(revision.split('/'));
        let fits = words.chain(file.into_iter().flat_map(|file| file.split('/'))).all(is_word);
        fits.then(|| Self {
            kind,
            name: name.into(),
            revision: revision.into(),
            file: file.map(str::to_owned),
            part: None,
        })
    }
}

fn is_word(word: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, revision, file and part; nothing for a path.
    fn shown(id: Option<Id>) -> String {
        let or = |part: Option<String>| part.unwrap_or_else(|| "-".into());
        id.map_or(String::new(), |id| {
            format!("{} {} {} {}", id.name, id.revision, or(id.file), or(id.part))
        })
    }

    #[test]
    fn ids_and_paths() {
        for (id, expected) in [
            ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M main - -"),
            ("a/b@refs/pr/1", "a/b refs/pr/1 - -"),
            ("a/b/c-Q4_K.gguf", "a/b main c-Q4_K.gguf -"),
            ("a/b@v1/c.gguf", "a/b v1 c.gguf -"),
            ("a/b/d/c.gguf", "a/b main d/c.gguf -"),
        ] {
            assert_eq!(shown(Id::model(id)), expected);
        }
        let paths = [
            "gpt2",
            "/a/b",
            "./a",
            "../a",
            "a/../b",
            "a/b/c",
            "a/",
            "/a",
            "a/b.gguf",
            "a b/c",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            "a\\b/c",
            "",
            "a/b/../c.gguf",
            "a/b/.c.gguf",
            "a/b/",
        ];
        for path in paths {
            assert_eq!(Id::model(path), None, "{path}");
        }
    }

    #[test]
    fn datasets() {
        for (id, expected) in [
            ("a/b", "a/b main - -"),
            ("a/b:test", "a/b main - test"),
            ("a/b@v1:test", "a/b v1 - test"),
            ("a/b:main:test", "a/b main - main:test"),
            ("a/b/data/x.parquet", "a/b main data/x.parquet -"),
        ] {
            assert_eq!(shown(Id::dataset(id)), expected);
        }
        let paths = [
            "a.jsonl",
            "data/a.jsonl",
            "data/b.parquet",
            "a/b:",
            "a/b:x:",
            "a/b:x:y:z",
            "a/b:../x",
            "./a/b",
        ];
        for path in paths {
            assert_eq!(Id::dataset(path), None, "{path}");
        }
    }
}
