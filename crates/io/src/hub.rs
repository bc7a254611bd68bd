//! Models by their id on huggingface.co.
//!
//! Wherever a folder of a model is expected, an id (`HuggingFaceTB/SmolLM2-135M`, or with a branch,
//! tag or commit `owner/name@revision`) will do if there is no folder of that name. With the
//! feature `hub` the model is downloaded, into the cache that Python's `huggingface_hub` also uses.

#[cfg(feature = "hub")]
mod client;

#[cfg(feature = "hub")]
pub use client::{Hub, download};

use crate::FileError;
use std::path::{Path, PathBuf};

/// A model on the hub.
struct ModelId<'a> {
    /// `owner/name`.
    name: &'a str,
    /// A branch, a tag or a commit.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    revision: &'a str,
}

impl<'a> ModelId<'a> {
    /// Reads `owner/name` or `owner/name@revision`; `None` for what can only be a path.
    fn parse(id: &'a str) -> Option<Self> {
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let (owner, model) = name.split_once('/')?;
        let is_word = |word: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
        };
        // A name in the cache's folders: it must not lead out of them.
        let fits = [owner, model].into_iter().chain(revision.split('/')).all(is_word);
        (fits && !model.ends_with(".gguf")).then_some(Self { name, revision })
    }
}

/// The folder or file of a model: `source` itself if it exists or cannot be an id, else the folder
/// that the model of this id was downloaded to. `progress` shows a bar for each file.
///
/// # Errors
/// An id that there is no folder of, without the feature `hub` or when the download fails.
pub fn resolve(source: impl AsRef<Path>, progress: bool) -> Result<PathBuf, FileError> {
    let source = source.as_ref();
    match source.to_str().and_then(|id| Some((id, ModelId::parse(id)?))) {
        Some((id, model)) if !source.exists() => missing(id, model, progress),
        _ => Ok(source.to_owned()),
    }
}

#[cfg(feature = "hub")]
fn missing(id: &str, _model: ModelId<'_>, progress: bool) -> Result<PathBuf, FileError> {
    download(id, progress).map_err(|error| match error {
        FileError::Hub { model, reason } => {
            FileError::Hub { model, reason: format!("no folder, and as an id: {reason}") }
        }
        other => other,
    })
}

#[cfg(not(feature = "hub"))]
fn missing(_id: &str, model: ModelId<'_>, _progress: bool) -> Result<PathBuf, FileError> {
    Err(FileError::Hub {
        model: model.name.into(),
        reason: "there is no such folder; to download the model of this id, enable the feature \
                 `hub`"
            .into(),
    })
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
