//! Models by their ids on huggingface.co.
//!
//! Wherever a model's folder is expected, an id is accepted too if no folder has that name:
//! `HuggingFaceTB/SmolLM2-135M`, or `owner/name@revision` with a branch, tag or commit. With the
//! feature `hub` the model is downloaded into the cache that Python's `huggingface_hub` also uses.

#[cfg(feature = "hub")]
mod client;
mod id;

#[cfg(feature = "hub")]
pub use client::{Hub, download};

use crate::FileError;
use id::ModelId;
use std::path::{Path, PathBuf};

/// Returns the folder or file of a model: `source` itself if it exists or cannot be an id, else the
/// folder into which the model with this id was downloaded. `progress` shows a bar for each file.
///
/// # Errors
/// [`FileError::Hub`] for an id without a folder of that name, if the feature `hub` is disabled or
/// the download fails.
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
