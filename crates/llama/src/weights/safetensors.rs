//! A file of safetensors.

use super::{bytes::copied, source::Source};
use crate::error::LlamaError;
use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use std::path::{Path, PathBuf};

/// Memory-mapped safetensors. The data of a tensor is the mapped memory itself.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    map: bytes::Bytes,
    metadata: Metadata,
    /// Offset of the data in bytes.
    start: usize,
    names: Vec<String>,
}

impl SafetensorsFile {
    /// Maps a file; reads and checks its header.
    ///
    /// # Errors
    /// [`LlamaError::Io`] if it cannot be read; [`LlamaError::Format`] if it is cut off, or not
    /// described by its header.
    pub fn open(path: PathBuf) -> Result<Self, LlamaError> {
        let file = burn_lora_io::open(&path).map_err(LlamaError::io(&path))?;
        // SAFETY: the map is read only; as everywhere where checkpoints are mapped, nobody may
        // shorten the file while it is read.
        let map = unsafe { Mmap::map(&file) }.map_err(LlamaError::io(&path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let reason = format!("no safetensors file, or one that was cut off: {error}");
            LlamaError::format(&path, reason)
        })?;
        let names = metadata.tensors().into_keys().collect();
        let map = bytes::Bytes::from_owner(map);
        Ok(Self { path, map, metadata, start: 8 + header, names })
    }

    /// Returns the bytes of a tensor.
    fn data(&self, name: &str) -> Option<&[u8]> {
        let (from, to) = self.metadata.info(name)?.data_offsets;
        self.map.get(self.start + from..self.start + to)
    }

    /// Reads what `part` takes of the bytes and the shape of a tensor.
    fn read_as(
        &self,
        name: &str,
        part: impl for<'a> Fn(&'a [u8], &[usize]) -> (&'a [u8], Vec<usize>),
    ) -> Result<TensorData, LlamaError> {
        let missing = || LlamaError::MissingTensors {
            path: self.path.clone(),
            tensors: vec![name.to_owned()],
        };
        let info = self.metadata.info(name).ok_or_else(missing)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            // The bytes of an 8-bit float.
            Dtype::U8 | Dtype::F8_E4M3 => DType::U8,
            Dtype::I8 => DType::I8,
            other => {
                return Err(LlamaError::DType {
                    path: self.path.clone(),
                    tensor: name.into(),
                    found: other.to_string(),
                    expected: "F32, F16 or BF16",
                });
            }
        };
        let (data, shape) = part(self.data(name).ok_or_else(missing)?, &info.shape);
        if !(data.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Ok(TensorData::from_bytes_vec(copied(data), shape, dtype));
        }
        let data = Bytes::from_shared(self.map.slice_ref(data), AllocationProperty::File);
        Ok(TensorData::from_bytes(data, shape, dtype))
    }
}

impl Source for SafetensorsFile {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    fn path(&self, _name: &str) -> &Path {
        &self.path
    }

    fn bytes(&self, name: &str) -> usize {
        self.data(name).map_or(0, <[u8]>::len)
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        match self.metadata.info(name)?.dtype {
            Dtype::I8 => Some("I8"),
            Dtype::F8_E4M3 => Some("F8_E4M3"),
            _ => None,
        }
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        match self.metadata.info(name).map(|info| info.dtype) {
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
