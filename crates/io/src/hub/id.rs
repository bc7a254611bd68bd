//! Ids of models on the hub.

/// The id of a model on the hub.
pub(super) struct ModelId<'a> {
    /// `owner/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub revision: &'a str,
}

impl<'a> ModelId<'a> {
    /// Parses `owner/name` or `owner/name@revision`; `None` for what can only be a path.
    pub fn parse(id: &'a str) -> Option<Self> {
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let (owner, model) = name.split_once('/')?;
        let is_word = |word: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
        };
        // The id becomes folder names of the cache: it must not lead out of it.
        let fits = [owner, model].into_iter().chain(revision.split('/')).all(is_word);
        (fits && !model.ends_with(".gguf")).then_some(Self { name, revision })
    }
}

#[cfg(test)]
mod tests {
    use super::ModelId;

    #[test]
    fn ids_and_paths() {
        let parsed = |id| ModelId::parse(id).map(|id| (id.name, id.revision));
        let smol = "HuggingFaceTB/SmolLM2-135M";
        assert_eq!(parsed(smol), Some((smol, "main")));
        assert_eq!(parsed("a/b@refs/pr/1"), Some(("a/b", "refs/pr/1")));
        let paths = [
            "gpt2", "/a/b", "./a", "../a", "a/../b", "a/b/c", "a/", "/a", "a/b.gguf", "a b/c",
            "a/b@", "a/b@../c", "a/b@/c", "a\\b/c", "",
        ];
        for path in paths {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
