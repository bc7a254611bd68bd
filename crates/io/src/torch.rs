//! Tensors of files that PyTorch's `torch.save` wrote: `adapter_model.bin`, `pytorch_model.bin`.
//!
//! Such a file is a program for Python's pickle, which can run any code in Python. Here it is read as
//! data by `pytorch-reader` (Burn's own reader of these files): nothing in it is run.

use crate::{FileError, caught};
use pytorch_reader::{PytorchReader, Tensor};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use pytorch_reader::DType as TorchDType;

/// Bytes of all tensors for each byte of the file: a tensor may be there under several names, and a
/// file of a few bytes may claim tensors of any size that repeat one value.
const GROWTH: u64 = 8;

/// The tensors of a file by name; values are read one tensor at a time.
pub struct TorchFile {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl TorchFile {
    /// Opens a file, and reads which tensors it has. Values that are no tensors are left out.
    ///
    /// # Errors
    /// [`FileError::Io`] if it cannot be read; [`FileError::Format`] if it is no file of `torch.save`,
    /// is cut off, or has tensors of a kind that is not supported (sparse, quantized, complex), or
    /// whose sizes exceed the file's.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = crate::open(path).map_err(FileError::io(path))?;
        let length = file.metadata().map_err(FileError::io(path))?.len();
        let wrong = |reason: String| {
            let reason = format!("no file of `torch.save`, or one that was cut off: {reason}");
            FileError::format(path, reason)
        };
        let read = caught(|| PytorchReader::new(path)).map_err(wrong)?;
        let tensors = read.map_err(|error| wrong(error.to_string()))?.into_tensors();
        let bytes = tensors.values().fold(0u64, |sum, tensor| {
            let values = tensor.shape().iter().map(|&size| size as u64);
            let bytes = values.fold(tensor.dtype().size() as u64, u64::saturating_mul);
            sum.saturating_add(bytes)
        });
        if bytes > GROWTH.saturating_mul(length) {
            let reason = format!("its tensors would take {bytes} bytes, and it has {length}");
            return Err(FileError::format(path, reason));
        }
        Ok(Self { path: path.to_owned(), tensors: tensors.into_iter().collect() })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Tensor::shape)
    }

    /// Dtype of a tensor.
    pub fn dtype(&self, name: &str) -> Option<TorchDType> {
        self.tensors.get(name).map(Tensor::dtype)
    }

    /// Size of a tensor in bytes; 0 if there is none of this name.
    pub fn bytes(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, Tensor::byte_len)
    }

    /// Reads the values of a tensor, row by row, in the machine's byte order.
    ///
    /// # Errors
    /// [`FileError::Format`] if there is no tensor of this name, or its values cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, FileError> {
        let wrong = |reason: String| FileError::format(&self.path, reason);
        let tensor = self.tensors.get(name).ok_or_else(|| wrong(format!("no tensor `{name}`")))?;
        let read = caught(|| tensor.read()).map_err(wrong)?;
        read.map_err(|error| wrong(error.to_string()))
    }
}
