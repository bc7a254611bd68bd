//! Models, adapters and data by their ids on huggingface.co.
//!
//! Wherever the folder of a model or of an adapter is expected, an id is accepted too if no folder has
//! that name: `HuggingFaceTB/SmolLM2-135M`, or `owner/name@revision` with a branch, tag or commit. A
//! GGUF file is named after the id: `owner/name/model-Q4_K_M.gguf`. Where files with data are
//! expected, an id of a dataset is: `owner/name`, `owner/name:validation`, `owner/name:configuration`,
//! `owner/name:configuration:validation`, `owner/name/data.jsonl`.
//! With the feature `hub` they are downloaded into the cache that Python's `huggingface_hub` also uses.

#[cfg(feature = "hub")]
mod api;
#[cfg(feature = "hub")]
mod client;
mod data_file;
#[cfg(feature = "hub")]
mod dataset;
mod id;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod login;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
mod select;
#[cfg(feature = "hub")]
mod settings;

pub use self::data_file::DataFile;
#[cfg(feature = "hub")]
pub use self::{login::User, push::Upload, settings::Hub};

use crate::FileError;
use id::Id;
use std::path::{Path, PathBuf};

/// Returns the folder or file of a model or adapter: `source` itself if it exists or cannot be an id,
/// else that into which what has this id was downloaded.
///
/// # Errors
/// [`FileError::Hub`] for an id without a folder of that name, if the feature `hub` is disabled or
/// the download fails.
pub fn resolve(source: impl AsRef<Path>) -> Result<PathBuf, FileError> {
    let source = source.as_ref();
    match source.to_str() {
        Some(id) if Id::model(id).is_some() && !source.exists() => model(id),
        _ => Ok(source.to_owned()),
    }
}

/// Returns the folder or file of a model or adapter as [`resolve`] does, but of a model with an id only
/// its settings and its tokenizer are downloaded.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_settings(source: impl AsRef<Path>) -> Result<PathBuf, FileError> {
    let source = source.as_ref();
    match source.to_str() {
        Some(id) if Id::model(id).is_some() && !source.exists() => model_settings(id),
        _ => Ok(source.to_owned()),
    }
}

/// Returns `true` for what can be the id of a model or an adapter: `owner/name`, `owner/name@revision`.
pub fn is_model_id(text: &str) -> bool {
    Id::model(text).is_some_and(|id| id.file.is_none())
}

/// Returns the `owner/name` of what can be the id of a dataset.
pub fn dataset_name(text: &str) -> Option<String> {
    Id::dataset(text).map(|id| id.name)
}

/// Returns files with data: `source` itself if it exists or cannot be the id of a dataset, else the
/// files that it stands for, each of which is downloaded when it is asked for.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_data(source: impl AsRef<Path>) -> Result<Vec<DataFile>, FileError> {
    let source = source.as_ref();
    match source.to_str() {
        Some(id) if Id::dataset(id).is_some() && !source.exists() => data(id),
        _ => Ok(vec![source.to_owned().into()]),
    }
}

#[cfg(feature = "hub")]
fn model(id: &str) -> Result<PathBuf, FileError> {
    Hub::from_env().download(id).map_err(as_an_id)
}

#[cfg(feature = "hub")]
fn model_settings(id: &str) -> Result<PathBuf, FileError> {
    Hub::from_env().download_settings(id).map_err(as_an_id)
}

#[cfg(feature = "hub")]
fn data(id: &str) -> Result<Vec<DataFile>, FileError> {
    Hub::from_env().data(id).map_err(as_an_id)
}

#[cfg(feature = "hub")]
fn as_an_id(error: FileError) -> FileError {
    match error {
        FileError::Hub { model, reason } => {
            FileError::Hub { model, reason: format!("no file or folder, and as an id: {reason}") }
        }
        other => other,
    }
}

#[cfg(not(feature = "hub"))]
fn model(id: &str) -> Result<PathBuf, FileError> {
    Err(without(id))
}

#[cfg(not(feature = "hub"))]
fn model_settings(id: &str) -> Result<PathBuf, FileError> {
    Err(without(id))
}

#[cfg(not(feature = "hub"))]
fn data(id: &str) -> Result<Vec<DataFile>, FileError> {
    Err(without(id))
}

#[cfg(not(feature = "hub"))]
fn without(id: &str) -> FileError {
    FileError::Hub {
        model: id.into(),
        reason:
            "there is no such file or folder; to download what has this id, enable the feature \
                 `hub`"
                .into(),
    }
}
