//! GGUF, llama.cpp's files, versions 2 and 3 in little endian. Source: ggml, `docs/gguf.md`.
//!
//! No crate is used: gguf-rs-lib, the one that checks what it reads, knows version 3 only.

mod header;
mod tensor_type;

pub use tensor_type::{SUPPORTED, TensorType, type_name};

use crate::FileError;
use header::{integer, width};
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    ops::Range,
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

/// Where a tensor lies and what it is.
pub struct TensorInfo {
    /// The outermost dimension first, as everywhere but in GGUF.
    pub shape: Vec<usize>,
    /// The type, or the number of one that cannot be read.
    pub dtype: Result<TensorType, u32>,
    /// Its bytes in the file; none for a type that cannot be read.
    range: Range<usize>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    U64(u64),
    /// A signed one.
    I64(i64),
    /// A float32, kept as it is: as decimal it is shorter than as float64.
    F32(f32),
    /// A float64.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    String(String),
    /// An array of text.
    Strings(Vec<String>),
    /// An array of floats.
    F32s(Vec<f32>),
    /// An array of integers or booleans: their kind, and their bytes as in the file.
    Ints(u32, Vec<u8>),
    /// An array of arrays, which nobody asks for.
    Nested,
}

impl Value {
    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative, however it is stored.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(value) => Some(value),
            Self::I64(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::U64(value) => Some(value as f64),
            Self::I64(value) => Some(value as f64),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// An array of text.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Strings(values) => Some(values),
            _ => None,
        }
    }

    /// An array of floats.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::F32s(values) => Some(values),
            _ => None,
        }
    }

    /// An array of integers, if each fits.
    pub fn as_i32s(&self) -> Option<Vec<i32>> {
        let Self::Ints(kind, bytes) = self else { return None };
        let values = bytes.chunks_exact(width(*kind)?);
        values.map(|bytes| i32::try_from(integer(*kind, bytes)).ok()).collect()
    }
}

impl Value {
    /// The value in a message.
    pub fn brief(&self) -> String {
        match self {
            Self::Strings(_) | Self::F32s(_) | Self::Ints(..) | Self::Nested => "an array".into(),
            Self::String(text) => text.chars().take(40).collect(),
            Self::U64(number) => number.to_string(),
            Self::I64(number) => number.to_string(),
            Self::F32(number) => number.to_string(),
            Self::F64(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
        }
    }
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
