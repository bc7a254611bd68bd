//! Safetensors: one file, or shards with an index.

use super::{bytes::copied, source::Source};
use crate::error::{LlamaError, count};
use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use burn_lora_io::{
    brief,
    shards::{INDEX, SINGLE, read_index},
};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

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
    let torch = |name: &str| {
        name.starts_with("pytorch_model") && name.ends_with(".bin") || name.ends_with(".pth")
    };
    let there = if let Some(name) = find(|name| name.ends_with(".gguf")) {
        format!("; `{name}` is read when it is named itself")
    } else if names.contains("adapter_config.json") {
        "; it is the folder of an adapter: name its base as the model".into()
    } else if let Some(name) =
        find(|name| name.starts_with("model-0") && name.ends_with(".safetensors"))
    {
        format!("; there is `{name}`: download the index of the shards, too")
    } else if let Some(name) = find(torch) {
        format!(
            "; `{name}` is pickled: convert it by transformers' \
             `AutoModelForCausalLM.from_pretrained(..).save_pretrained(..)`"
        )
    } else if let Some(name) = find(|name| name.ends_with(".safetensors")) {
        format!("; `{name}` is not in Hugging Face's layout, or has another name")
    } else {
        String::new()
    };
    format!("there is neither {SINGLE} nor {INDEX}{there}")
}

/// Memory-mapped safetensors of a folder. The data of a tensor is the mapped memory itself.
pub(super) struct SafetensorsFolder {
    files: Vec<Mapped>,
    /// File of each tensor, by index.
    tensors: BTreeMap<String, usize>,
}

struct Mapped {
    path: PathBuf,
    map: bytes::Bytes,
    metadata: Metadata,
    /// Offset of the data in bytes.
    start: usize,
}

impl SafetensorsFolder {
    /// Opens the checkpoint in a folder; reads and checks headers only. As in transformers,
    /// `model.safetensors` takes precedence over shards with an index.
    ///
    /// # Errors
    /// - [`LlamaError::Io`] if a file cannot be read.
    /// - [`LlamaError::Format`] if a file is missing, cut off, or not described by its header, or
    ///   the index names shards or tensors that are not there.
    pub fn open(folder: &Path) -> Result<Self, LlamaError> {
        let (index, single) = (folder.join(INDEX), folder.join(SINGLE));
        if single.exists() {
            let file = Mapped::open(single)?;
            let tensors: BTreeMap<_, _> = file.names().map(|name| (name, 0)).collect();
            if index.exists() && !names_same(&index, &tensors) {
                burn_lora_io::warn!(
                    "{}: {INDEX} is of another model than {SINGLE}: the latter is loaded, as by \
                     transformers, and the shards are not",
                    folder.display()
                );
            }
            return Ok(Self { files: vec![file], tensors });
        }
        if !index.exists() {
            return Err(LlamaError::format(folder, without_weights(folder)));
        }
        let (mut files, mut tensors) = (vec![], BTreeMap::new());
        for (shard, names) in read_index(&index)? {
            let path = folder.join(&shard);
            if !path.exists() {
                let reason = format!("shard `{}` is not in the folder: download it", brief(&shard));
                return Err(LlamaError::format(&index, reason));
            }
            let file = Mapped::open(path)?;
            let mut missing: Vec<String> =
                names.into_iter().filter(|name| file.metadata.info(name).is_none()).collect();
            if !missing.is_empty() {
                missing.sort();
                let (count, list) = (count(&missing), burn_lora_io::listed(&missing));
                let reason = format!("{count} missing, which {INDEX} has in it: {list}");
                return Err(LlamaError::format(&file.path, reason));
            }
            for name in file.names() {
                if let Some(other) = tensors.insert(name.clone(), files.len()) {
                    let other: &Mapped = &files[other];
                    let reason = format!("`{name}` is also in {}", other.path.display());
                    return Err(LlamaError::format(&file.path, reason));
                }
            }
            files.push(file);
        }
        Ok(Self { files, tensors })
    }

    fn file(&self, name: &str) -> Option<&Mapped> {
        self.tensors.get(name).map(|&file| &self.files[file])
    }
}

impl Mapped {
    fn open(path: PathBuf) -> Result<Self, LlamaError> {
        let file = burn_lora_io::open(&path).map_err(LlamaError::io(&path))?;
        // SAFETY: the map is read only; as everywhere where checkpoints are mapped, nobody may
        // shorten the file while it is read.
        let map = unsafe { Mmap::map(&file) }.map_err(LlamaError::io(&path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let reason = format!("no safetensors file, or one that was cut off: {error}");
            LlamaError::format(&path, reason)
        })?;
        Ok(Self { path, map: bytes::Bytes::from_owner(map), metadata, start: 8 + header })
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.tensors().into_keys()
    }

    /// Returns the bytes of a tensor.
    fn data(&self, name: &str) -> Option<&[u8]> {
        let (from, to) = self.metadata.info(name)?.data_offsets;
        self.map.get(self.start + from..self.start + to)
    }
}

impl Source for SafetensorsFolder {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file(name)?.metadata.info(name).map(|info| info.shape.as_slice())
    }

    fn path(&self, name: &str) -> &Path {
        &self.file(name).unwrap_or(&self.files[0]).path
    }

    fn bytes(&self, name: &str) -> usize {
        self.file(name).and_then(|file| file.data(name)).map_or(0, <[u8]>::len)
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        match self.file(name)?.metadata.info(name)?.dtype {
            Dtype::I8 => Some("I8"),
            Dtype::F8_E4M3 => Some("F8_E4M3"),
            _ => None,
        }
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        let info = self.file(name).and_then(|file| file.metadata.info(name));
        match info.map(|info| info.dtype) {
            Some(Dtype::F32) => vec![DType::F32],
            Some(Dtype::F16) => vec![DType::F16],
            Some(Dtype::BF16) => vec![DType::BF16],
            _ => vec![],
        }
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        self.read_as(name, |data, shape| (data, shape.to_vec()))
    }

    fn read_part(&self, name: &str, index: usize) -> Result<TensorData, LlamaError> {
        self.read_as(name, |data, shape| {
            let size = data.len() / shape[0];
            (&data[index * size..(index + 1) * size], shape[1..].to_vec())
        })
    }
}

impl SafetensorsFolder {
    /// Reads what `part` takes of the bytes and the shape of a tensor.
    fn read_as(
        &self,
        name: &str,
        part: impl for<'a> Fn(&'a [u8], &[usize]) -> (&'a [u8], Vec<usize>),
    ) -> Result<TensorData, LlamaError> {
        let missing = || LlamaError::MissingTensors {
            path: self.path(name).to_owned(),
            tensors: vec![name.to_owned()],
        };
        let file = self.file(name).ok_or_else(missing)?;
        let info = file.metadata.info(name).ok_or_else(missing)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // The bytes of an 8-bit float.
            Dtype::U8 | Dtype::F8_E4M3 => DType::U8,
            Dtype::I8 => DType::I8,
            other => {
                return Err(LlamaError::DType {
                    path: file.path.clone(),
                    tensor: name.into(),
                    found: other.to_string(),
                    expected: "F32, F16 or BF16",
                });
            }
        };
        let (data, shape) = part(file.data(name).ok_or_else(missing)?, &info.shape);
        if !(data.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Ok(TensorData::from_bytes_vec(copied(data), shape, dtype));
        }
        let data = Bytes::from_shared(file.map.slice_ref(data), AllocationProperty::File);
        Ok(TensorData::from_bytes(data, shape, dtype))
    }
}
