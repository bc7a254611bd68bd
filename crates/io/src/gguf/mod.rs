//! GGUF, llama.cpp's files, versions 2 and 3 in little endian. Source: ggml, `docs/gguf.md`.
//!
//! No crate is used: gguf-rs-lib, the one that checks what it reads, knows version 3 only.

mod header;
mod tensor;
mod value;

pub use tensor::{SUPPORTED, TensorInfo, TensorType, type_name};
pub use value::Value;

use crate::FileError;
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A file mapped into memory: its header is read and checked, tensors are read when they are asked
/// for.
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
    /// A file that is missing, no GGUF, of another version, cut off, or whose header contradicts
    /// itself.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = crate::open(path).map_err(FileError::io(path))?;
        // SAFETY: the map is read only; as everywhere where checkpoints are mapped, nobody may
        // shorten the file while it is read.
        let map = unsafe { Mmap::map(&file) }.map_err(FileError::io(path))?;
        let header = header::read(&map).map_err(|reason| FileError::format(path, reason));
        let (metadata, tensors) = header?;
        Ok(Self { path: path.to_owned(), map, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensors by their names in the file.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The bytes of a tensor of this file.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        // The range was checked when the file was opened.
        &self.map[tensor.range.clone()]
    }
}
