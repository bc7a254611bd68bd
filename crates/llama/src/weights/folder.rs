//! The weight files of a folder in Hugging Face's layout: one, or shards with an index.

use super::{safetensors::SafetensorsFile, source::Source, torch::TorchWeights};
use crate::error::{LlamaError, count};
use burn::tensor::{DType, TensorData};
use burn_lora_io::{
    brief,
    shards::{INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE, read_index},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Opens a weight file.
type Open = fn(PathBuf) -> Result<Box<dyn Source>, LlamaError>;

/// Formats of weight files: a single file, an index, and how either's files are opened.
/// transformers' order: safetensors before PyTorch's, a single file before shards.
const FORMATS: [(&str, &str, Open); 2] = [
    (SINGLE, INDEX, |path| Ok(Box::new(SafetensorsFile::open(path)?))),
    (TORCH_SINGLE, TORCH_INDEX, |path| Ok(Box::new(TorchWeights::open(&path)?))),
];

/// Weight files of a folder.
pub(super) struct WeightsFolder {
    files: Vec<Box<dyn Source>>,
    /// File of each tensor, by index.
    tensors: BTreeMap<String, usize>,
}

impl WeightsFolder {
    /// Opens the checkpoint in a folder; reads and checks headers only.
    ///
    /// # Errors
    /// - [`LlamaError::Io`] if a file cannot be read.
    /// - [`LlamaError::Format`] if a file is missing, cut off, or not described by its header, or
    ///   the index names shards or tensors that are not there.
    pub fn open(folder: &Path) -> Result<Self, LlamaError> {
        for (single, index, open) in FORMATS {
            let (file, index) = (folder.join(single), folder.join(index));
            if file.exists() {
                return Self::single(open(file)?, &index);
            }
            if index.exists() {
                return Self::sharded(folder, &index, open);
            }
        }
        Err(LlamaError::format(folder, without_weights(folder)))
    }

    fn single(file: Box<dyn Source>, index: &Path) -> Result<Self, LlamaError> {
        let tensors: BTreeMap<_, _> =
            file.names().into_iter().map(|name| (name.to_owned(), 0)).collect();
        if index.exists() && !names_same(index, &tensors) {
            burn_lora_io::warn!(
                "{} is of another model than {}: the latter is loaded, as by transformers, and the \
                 shards are not",
                index.display(),
                shown(file.path("")),
            );
        }
        Ok(Self { files: vec![file], tensors })
    }

    fn sharded(folder: &Path, index: &Path, open: Open) -> Result<Self, LlamaError> {
        let (mut files, mut tensors): (Vec<Box<dyn Source>>, _) = (vec![], BTreeMap::new());
        for (shard, names) in read_index(index)? {
            let path = folder.join(&shard);
            if !path.exists() {
                let reason = format!("shard `{}` is not in the folder: download it", brief(&shard));
                return Err(LlamaError::format(index, reason));
            }
            let file = open(path)?;
            let mut missing: Vec<String> =
                names.into_iter().filter(|name| file.shape(name).is_none()).collect();
            if !missing.is_empty() {
                missing.sort();
                let (count, list) = (count(&missing), burn_lora_io::listed(&missing));
                let reason = format!("{count} missing, which {} has in it: {list}", shown(index));
                return Err(LlamaError::format(file.path(""), reason));
            }
            for name in file.names() {
                if let Some(other) = tensors.insert(name.to_owned(), files.len()) {
                    let other: &dyn Source = &*files[other];
                    let reason = format!("`{name}` is also in {}", other.path("").display());
                    return Err(LlamaError::format(file.path(""), reason));
                }
            }
            files.push(file);
        }
        Ok(Self { files, tensors })
    }

    /// File of a tensor; any if there is none of this name.
    fn file(&self, name: &str) -> &dyn Source {
        &*self.files[self.tensors.get(name).copied().unwrap_or(0)]
    }
}

impl Source for WeightsFolder {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file(name).shape(name)
    }

    fn path(&self, name: &str) -> &Path {
        self.file(name).path(name)
    }

    fn bytes(&self, name: &str) -> usize {
        self.file(name).bytes(name)
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        self.file(name).stored_dtype(name)
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        self.file(name).dtypes(name)
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        self.file(name).read(name)
    }

    fn read_part(&self, name: &str, index: usize) -> Result<TensorData, LlamaError> {
        self.file(name).read_part(name, index)
    }
}

/// File name for a message.
fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns `true` if an index names exactly these tensors.
fn names_same(index: &Path, tensors: &BTreeMap<String, usize>) -> bool {
    let shards = read_index(index).unwrap_or_default();
    let names: BTreeSet<_> = shards.values().flatten().collect();
    names.into_iter().eq(tensors.keys())
}

/// Message for a folder without readable weights, with a hint at what it has in their place.
fn without_weights(folder: &Path) -> String {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names: BTreeSet<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let find = |fits: fn(&str) -> bool| names.iter().find(|name| fits(name));
    let there = if let Some(name) = find(|name| name.ends_with(".gguf")) {
        format!("; `{name}` is read when it is named itself")
    } else if let Some(name) =
        find(|name| name.starts_with("model-0") || name.starts_with("pytorch_model-0"))
    {
        format!("; there is `{name}`: download the index of the shards, too")
    } else if let Some(name) = find(|name| name.ends_with(".pth")) {
        format!(
            "; `{name}` has the names of another layout: convert it by transformers' \
             `convert_llama_weights_to_hf.py`"
        )
    } else if let Some(name) = find(|name| name.ends_with(".safetensors")) {
        format!("; `{name}` is not in Hugging Face's layout, or has another name")
    } else {
        String::new()
    };
    format!("there is neither {SINGLE} nor {INDEX}, nor {TORCH_SINGLE} or its index{there}")
}
