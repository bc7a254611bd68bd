//! The weight files of a model: a single file, or shards with an index.

use crate::{FileError, brief};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// File name of a model in a single file.
pub const SINGLE: &str = "model.safetensors";

/// File name of the index, which maps tensors to shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// File name of a model in a single file of PyTorch.
pub const TORCH_SINGLE: &str = "pytorch_model.bin";

/// File name of the index of PyTorch's shards.
pub const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Reads an index: the names of the shards, with the tensors of each.
///
/// # Errors
/// [`FileError::Io`] if the file cannot be read; [`FileError::Format`] if it is no index, names no
/// tensors, or names files outside its folder.
pub fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, FileError> {
    let json = crate::read(path).map_err(FileError::io(path))?;
    let index: Index = serde_json::from_slice(&json).map_err(|e| FileError::format(path, e))?;
    if index.weight_map.is_empty() {
        return Err(FileError::format(path, "`weight_map` names no tensors"));
    }
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        let plain = Path::new(&shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain {
            let reason = format!("`{}` is no name of a file in this folder", brief(&shard));
            return Err(FileError::format(path, reason));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

/// Returns the paths of the weight files of a model's folder, in transformers' order: safetensors before
/// PyTorch's, a single file before shards. Empty if there are none; a shard need not be there.
///
/// # Errors
/// As [`read_index`].
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    for (single, index) in [(SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)] {
        let (single, index) = (folder.join(single), folder.join(index));
        if single.exists() {
            return Ok(vec![single]);
        }
        if index.exists() {
            return Ok(read_index(&index)?.into_keys().map(|shard| folder.join(shard)).collect());
        }
    }
    Ok(vec![])
}
