//! GGUF, the file format of llama.cpp: versions 2 and 3, little endian. Source: ggml,
//! `docs/gguf.md`.
//!
//! No crate is used: gguf-rs-lib, the one that validates what it reads, supports version 3 only.

mod header;
mod tensor;
mod value;
mod write;

pub use tensor::{SUPPORTED, TensorInfo, TensorType, type_name};
pub use value::Value;
pub use write::{Entry, GgufWriter};

use crate::FileError;
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A GGUF file, mapped into memory: the header is read and validated at opening, tensors are read
/// on demand.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`FileError::Io`] if the file cannot be read; [`FileError::Format`] if it is no GGUF file,
    /// of another version, truncated, or if its header is inconsistent.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = crate::open(path).map_err(FileError::io(path))?;
        // SAFETY: the map is read only; as for every mapped checkpoint, the file must not be
        // truncated while it is read.
        let map = unsafe { Mmap::map(&file) }.map_err(FileError::io(path))?;
        let header = header::read(&map).map_err(|reason| FileError::format(path, reason));
        let (metadata, tensors) = header?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The metadata by their keys.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The tensors by their names in the file.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Returns the bytes of a tensor of this file.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        // The range was checked when the file was opened.
        &self.map[tensor.range.clone()]
    }
}
