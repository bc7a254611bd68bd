//! Writer of a safetensors file, tensor by tensor.

use crate::error::LlamaError;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_lora_adapter::AdaptedLayer;
use burn_lora_io::progress::Work;
use half::f16;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use std::{
    collections::HashMap,
    io::{Error, Write},
    path::Path,
};

/// Tensor that is read from the device when it is written.
pub(super) struct Lazy<'a> {
    /// Layer that it is of; several, if it has the transposed weights or the biases of all experts.
    pub(super) layers: Vec<&'a dyn AdaptedLayer>,
    pub(super) name: String,
    pub(super) bias: bool,
    pub(super) dtype: FloatDType,
    pub(super) shape: Vec<usize>,
    /// First row of the tensor in the layer.
    pub(super) start: usize,
}

impl Lazy<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * DType::from(self.dtype).size()
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self.dtype {
            FloatDType::BF16 => Dtype::BF16,
            FloatDType::F16 => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    /// Reads the bytes to write.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, LlamaError> {
        let parts = self.layers.iter().map(|layer| self.read_layer(*layer));
        let bytes = parts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|reason| LlamaError::Device { tensor: self.name.clone(), reason })?
            .concat();
        if self.dtype == FloatDType::F16
            && bytes.as_chunks().0.iter().any(|&bytes| !f16::from_le_bytes(bytes).is_finite())
        {
            let reason = format!(
                "`{}` has values that float16 does not reach: write bfloat16 or float32",
                self.name
            );
            return Err(LlamaError::format(path, reason));
        }
        Ok(bytes)
    }
}

impl Lazy<'_> {
    fn read_layer(&self, layer: &dyn AdaptedLayer) -> Result<Vec<u8>, String> {
        if self.bias {
            let bias = layer.bias().expect("listed because it is there");
            return read(bias.val().inner().cast(self.dtype));
        }
        let weight = layer.file_layout(layer.weight());
        let weight = match self.shape[..] {
            [_, _, _] => weight.transpose(),
            // Of a layer that checkpoints have in several parts.
            [rows, ..] if rows < weight.dims()[0] => weight.narrow(0, self.start, rows),
            _ => weight,
        };
        read(weight.cast(self.dtype))
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<u8>, String> {
    let data = tensor.try_into_data().map_err(|error| error.to_string())?;
    Ok(data.as_bytes().to_vec())
}

/// Writes tensors into a file, which is there whole or not at all. One of them is in memory at a
/// time.
///
/// # Errors
/// - [`LlamaError::Device`] if a tensor cannot be read from the device.
/// - [`LlamaError::Io`] if the file cannot be written.
/// - [`LlamaError::Format`] if the file's dtype cannot hold a value.
pub(super) fn write(path: &Path, tensors: &[&Lazy<'_>], work: &Work) -> Result<(), LlamaError> {
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
            work.advance(bytes.len() as u64);
        }
        Ok(())
    });
    written.map_err(|error| failed.unwrap_or_else(|| LlamaError::io(path)(error)))
}
