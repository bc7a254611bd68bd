//! The base of an adapter, by its settings.

use crate::{
    FileError,
    shards::{INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// File of an adapter's settings.
pub(crate) const ADAPTER: &str = "adapter_config.json";

#[derive(Deserialize)]
struct Settings {
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
}

/// Returns the base model that the settings of an adapter name, as a path or an id for
/// [`hub::resolve`](crate::hub::resolve); `None` if the folder is none of an adapter, or has the
/// weights of a model.
///
/// # Errors
/// [`FileError::Io`] or [`FileError::Format`] if the settings cannot be read, or name no base.
pub fn base_of(folder: &Path) -> Result<Option<PathBuf>, FileError> {
    let path = folder.join(ADAPTER);
    let weights = [SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX];
    if !path.is_file() || weights.iter().any(|file| folder.join(file).exists()) {
        return Ok(None);
    }
    let json = crate::read(&path).map_err(FileError::io(&path))?;
    let settings: Settings =
        serde_json::from_slice(&json).map_err(|error| FileError::format(&path, error))?;
    let base = settings.base_model_name_or_path.filter(|base| !base.is_empty());
    let Some(base) = base else {
        let reason = "it names no base (`base_model_name_or_path`): name the model, and this folder as \
                      its adapter";
        return Err(FileError::format(&path, reason));
    };
    let known = Path::new(&base).exists();
    Ok(Some(match settings.revision.filter(|revision| !revision.is_empty() && !known) {
        Some(revision) => format!("{base}@{revision}").into(),
        None => base.into(),
    }))
}
