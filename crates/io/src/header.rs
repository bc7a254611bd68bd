//! Headers of weight files: the tensors of a file, without their values.

use crate::{FileError, torch::TorchFile};
use serde::Deserialize;
use std::{collections::BTreeMap, io::Read, path::Path};

/// Largest header that is read, in bytes: that of the `safetensors` crate.
const LARGEST: u64 = 100_000_000;

/// A tensor, as the header of its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    /// Name.
    pub name: String,
    /// Dtype by safetensors' name: `BF16`.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
}

impl TensorHeader {
    /// Number of values.
    pub fn values(&self) -> u64 {
        self.shape.iter().fold(1, |product, size| product.saturating_mul(*size as u64))
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Reads the header of a weight file: safetensors, or PyTorch's (`.bin`, `.pt`, `.pth`). Sorted by name.
///
/// ```
/// use burn_lora_io::tensor_headers;
///
/// let tensors = tensor_headers("../../testdata/gqa/model.safetensors".as_ref())?;
/// let embedding = tensors.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").unwrap();
/// assert_eq!((embedding.dtype.as_str(), embedding.shape.as_slice()), ("F32", &[128, 64][..]));
/// # Ok::<_, burn_lora_io::FileError>(())
/// ```
///
/// # Errors
/// [`FileError::Io`] if the file cannot be read; [`FileError::Format`] if it is of another format, or
/// was cut off.
pub fn tensor_headers(path: &Path) -> Result<Vec<TensorHeader>, FileError> {
    let torch = ["bin", "pt", "pth"];
    if path.extension().is_some_and(|extension| torch.iter().any(|known| extension == *known)) {
        return torch_headers(path);
    }
    let wrong = |reason: String| {
        let reason = format!("no safetensors file, or one that was cut off: {reason}");
        FileError::format(path, reason)
    };
    let mut file = crate::open(path).map_err(FileError::io(path))?;
    let size = file.metadata().map_err(FileError::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| wrong(error.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > LARGEST.min(size - 8) {
        return Err(wrong(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| wrong(error.to_string()))?;
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
    entries.remove("__metadata__");
    let end = size - 8 - length;
    let tensors = entries.into_iter().map(|(name, entry)| {
        let shown = crate::escaped(&name);
        let Entry { dtype, shape, data_offsets: [from, to] } =
            serde_json::from_value(entry).map_err(|error| wrong(format!("`{shown}`: {error}")))?;
        if from > to || to > end {
            return Err(wrong(format!("`{shown}` ends after the file")));
        }
        Ok(TensorHeader { name, dtype, shape, bytes: to - from })
    });
    tensors.collect()
}

fn torch_headers(path: &Path) -> Result<Vec<TensorHeader>, FileError> {
    let file = TorchFile::open(path)?;
    let tensors = file.names().filter_map(|name| {
        let (shape, dtype) = file.shape(name).zip(file.dtype(name))?;
        Some(TensorHeader {
            name: name.to_owned(),
            dtype: format!("{dtype:?}"),
            shape: shape.to_vec(),
            bytes: file.bytes(name) as u64,
        })
    });
    Ok(tensors.collect())
}
