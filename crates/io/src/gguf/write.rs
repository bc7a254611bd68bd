//! Writing of GGUF files, version 3.

use super::{tensor::TensorType, value::kind};
use crate::file::replace_checked;
use std::{
    io::{Error, Write},
    path::Path,
};

/// Alignment of tensors, in bytes.
const ALIGNMENT: usize = 32;

/// Value of the metadata to write, in the width that llama.cpp reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A number without sign.
    U32(u32),
    /// A float.
    F32(f32),
    /// A flag.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    I32s(Vec<i32>),
    /// A list of floats.
    F32s(Vec<f32>),
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
            out.extend(kind::ARRAY.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                out.extend(kind::U32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                out.extend(kind::F32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                out.extend(kind::BOOL.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::Text(text) => {
                out.extend(kind::STRING.to_le_bytes());
                string(text, out);
            }
            Self::Texts(texts) => {
                list(out, kind::STRING, texts.len());
                texts.iter().for_each(|text| string(text, out));
            }
            Self::I32s(values) => {
                list(out, kind::I32, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                list(out, kind::F32, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

struct Line {
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    bytes: usize,
}

/// A GGUF file to write: metadata, and the tensors that will follow.
#[derive(Default)]
pub struct GgufWriter {
    entries: Vec<(String, Entry)>,
    tensors: Vec<Line>,
}

impl GgufWriter {
    /// Creates a file without content for an architecture (`general.architecture`).
    pub fn new(architecture: &str) -> Self {
        let mut file = Self::default();
        file.set("general.architecture", Entry::Text(architecture.into()));
        file
    }

    /// Sets a value of the metadata.
    pub fn set(&mut self, key: impl Into<String>, value: Entry) {
        let key = key.into();
        self.entries.retain(|(known, _)| *known != key);
        self.entries.push((key, value));
    }

    /// Adds a tensor. `shape` has the outermost dimension first.
    ///
    /// # Errors
    /// As [`TensorType::bytes`], with the name of the tensor.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        kind: TensorType,
    ) -> Result<(), String> {
        let name = name.into();
        let bytes = kind.bytes(shape).map_err(|reason| format!("`{name}`: {reason}"))?;
        self.tensors.push(Line { name, shape: shape.to_vec(), kind, bytes });
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            string(key, &mut out);
            value.write(&mut out);
        }
        let mut offset = 0;
        for Line { name, shape, kind, bytes } in &self.tensors {
            string(name, &mut out);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
            out.extend((*kind as u32).to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }

    /// Writes the file atomically. `data` writes the bytes of the tensor with a number, in the order in
    /// which they were added; `check` is called with the path of the whole file before it takes the
    /// place of an older one.
    ///
    /// # Errors
    /// Those of `data` and `check`, and those of the file.
    ///
    /// # Panics
    /// If `data` writes another number of bytes than the tensor has.
    pub fn write<E: From<Error>>(
        &self,
        path: &Path,
        mut data: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
        check: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let write = |file: &mut std::io::BufWriter<&std::fs::File>| {
            file.write_all(&self.header())?;
            for (number, line) in self.tensors.iter().enumerate() {
                let mut out = Counted { out: &mut *file, bytes: 0 };
                data(number, &mut out)?;
                assert_eq!(out.bytes, line.bytes, "bytes of {}", line.name);
                let padding = line.bytes.next_multiple_of(ALIGNMENT) - line.bytes;
                file.write_all(&[0; ALIGNMENT][..padding])?;
            }
            Ok(())
        };
        replace_checked(path, write, check)
    }
}

/// A writer that counts.
struct Counted<W> {
    out: W,
    bytes: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
