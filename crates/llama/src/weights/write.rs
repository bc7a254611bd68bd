//! A safetensors file, written tensor by tensor.

use super::save::Lazy;
use crate::error::LlamaError;
use safetensors::tensor::{Metadata, TensorInfo};
use std::{
    collections::HashMap,
    io::{Error, Write},
    path::Path,
};

/// Writes tensors into a file, which is there whole or not at all. One of them is in memory at a time.
///
/// # Errors
/// What the device or the system says; a value that the file's dtype cannot hold.
pub(super) fn write(path: &Path, tensors: &[&Lazy<'_>]) -> Result<(), LlamaError> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        let (dtype, shape) = (tensor.dtype(), tensor.shape.clone());
        (tensor.name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    // Python's loaders ask for it.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect());
    let metadata = metadata.map_err(|error| LlamaError::format(path, error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| LlamaError::format(path, e))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut failed = None;
    let written = burn_lora_io::replace_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in tensors {
            let bytes = tensor.read(path).map_err(|error| {
                let text = error.to_string();
                failed = Some(error);
                Error::other(text)
            })?;
            file.write_all(&bytes)?;
        }
        Ok(())
    });
    written.map_err(|error| failed.unwrap_or_else(|| LlamaError::io(path)(error)))
}
