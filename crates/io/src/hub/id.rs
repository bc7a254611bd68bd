//! Ids of repositories on the hub.

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// What an id names on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id<'a> {
    pub kind: Kind,
    /// `owner/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit.
    pub revision: &'a str,
    /// A file in the repository.
    pub file: Option<&'a str>,
    /// A part of a dataset, such as `train`.
    pub split: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// Parses `owner/name` or `owner/name@revision`, for a GGUF file with its name after a `/`;
    /// `None` for what can only be a path.
    pub fn model(id: &'a str) -> Option<Self> {
        let found = Self::parse(id, Kind::Model)?;
        let gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf");
        (!gguf(found.name) && found.file.is_none_or(gguf)).then_some(found)
    }

    /// Parses `owner/name`, `owner/name@revision`, each with `/file` or `:split` after it; `None`
    /// for what can only be a path.
    pub fn dataset(id: &'a str) -> Option<Self> {
        let (id, split) = match id.split_once(':') {
            Some((id, split)) => (id, Some(split)),
            None => (id, None),
        };
        let found = Self::parse(id, Kind::Dataset)?;
        // `data/train.jsonl` is a file that is missing.
        let path =
            [".json", ".jsonl", ".csv", ".parquet"].iter().any(|end| found.name.ends_with(end));
        let fits = split.is_none_or(|split| is_word(split) && found.file.is_none());
        (fits && !path).then_some(Self { split, ..found })
    }

    fn parse(id: &'a str, kind: Kind) -> Option<Self> {
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
        fits.then_some(Self { kind, name, revision, file, split: None })
    }
}

fn is_word(word: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths() {
        let parsed = |id| Id::model(id).map(|id| (id.name, id.revision, id.file));
        let smol = "HuggingFaceTB/SmolLM2-135M";
        assert_eq!(parsed(smol), Some((smol, "main", None)));
        assert_eq!(parsed("a/b@refs/pr/1"), Some(("a/b", "refs/pr/1", None)));
        assert_eq!(parsed("a/b/c-Q4_K.gguf"), Some(("a/b", "main", Some("c-Q4_K.gguf"))));
        assert_eq!(parsed("a/b@v1/c.gguf"), Some(("a/b", "v1", Some("c.gguf"))));
        assert_eq!(parsed("a/b/d/c.gguf"), Some(("a/b", "main", Some("d/c.gguf"))));
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
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn datasets() {
        let parsed = |id| Id::dataset(id).map(|id| (id.name, id.revision, id.file, id.split));
        assert_eq!(parsed("a/b"), Some(("a/b", "main", None, None)));
        assert_eq!(parsed("a/b:test"), Some(("a/b", "main", None, Some("test"))));
        assert_eq!(parsed("a/b@v1:test"), Some(("a/b", "v1", None, Some("test"))));
        let file = Some("data/x.parquet");
        assert_eq!(parsed("a/b/data/x.parquet"), Some(("a/b", "main", file, None)));
        for path in ["a.jsonl", "data/a.jsonl", "data/b.parquet", "a/b:", "a/b:../x", "./a/b"] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
